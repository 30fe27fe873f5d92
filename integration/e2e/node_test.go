// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/fsnotify/fsnotify"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/signet-spiffe/signet/integration/cluster"
	"github.com/signet-spiffe/signet/integration/install"
)

// Paths on a node.
const (
	pluginDir = "/var/lib/kubelet/plugins/" + install.DriverName
	csiSocket = pluginDir + "/csi.sock"
	podsDir   = "/var/lib/kubelet/pods"
)

// onNode is a node's file system and mount table as seen from this process.
type onNode struct {
	cluster.Node
	pid int
}

func node(ctx context.Context, t *testing.T, name string) onNode {
	t.Helper()
	for _, n := range env.cluster.Nodes() {
		if n.Name != name {
			continue
		}
		pid, err := n.PID(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return onNode{n, pid}
	}
	t.Fatalf("there is no node %s", name)
	return onNode{}
}

// path is where this process finds a path of the node.
func (n onNode) path(path string) string {
	return filepath.Join("/proc", fmt.Sprint(n.pid), "root", path)
}

// mount is a line of mountinfo.
type mount struct {
	Point, FSType, Root, Options, Super string
}

// mounts reads the node's mount table.
func (n onNode) mounts() ([]mount, error) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", n.pid))
	if err != nil {
		return nil, err
	}
	return parseMounts(string(content))
}

// parseMounts reads proc_pid_mountinfo(5).
func parseMounts(content string) ([]mount, error) {
	var out []mount
	lines := bufio.NewScanner(strings.NewReader(content))
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 6 || len(right) < 3 {
			return nil, fmt.Errorf("unexpected line in mountinfo: %q", lines.Text())
		}
		out = append(out, mount{Root: left[3], Point: left[4], Options: left[5], FSType: right[0], Super: right[2]})
	}
	return out, lines.Err()
}

// mountsWith lists the mounts whose mount point contains text.
func (n onNode) mountsWith(t *testing.T, text string) []mount {
	t.Helper()
	all, err := n.mounts()
	if err != nil {
		t.Fatal(err)
	}
	var out []mount
	for _, m := range all {
		if strings.Contains(m.Point, text) {
			out = append(out, m)
		}
	}
	return out
}

// waitMounts waits until done is content with the node's mounts. The kernel
// says when they change: an open mountinfo then polls as exceptional
// (proc_pid_mounts(5)).
func (n onNode) waitMounts(ctx context.Context, t *testing.T, done func([]mount) error) {
	t.Helper()
	file, err := os.Open(fmt.Sprintf("/proc/%d/mountinfo", n.pid))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for {
		all, err := n.mounts()
		if err != nil {
			t.Fatal(err)
		}
		missing := done(all)
		if missing == nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("wait for mounts on %s: %v: %v", n.Name, context.Cause(ctx), missing)
		}
		// A short timeout lets the end of ctx be seen.
		_, err = unix.Poll([]unix.PollFd{{Fd: int32(file.Fd()), Events: unix.POLLPRI}}, int(time.Second.Milliseconds()))
		if err != nil && !errors.Is(err, unix.EINTR) {
			t.Fatalf("poll mountinfo: %v", err)
		}
	}
}

// volumeDir is kubelet's directory of a pod's identity volume, on the node.
func volumeDir(pod *corev1.Pod) string { return volumeDirOf(pod, volumeName) }

// volumeDirOf is kubelet's directory of any CSI volume of a pod.
func volumeDirOf(pod *corev1.Pod, volume string) string {
	return filepath.Join(podsDir, string(pod.UID), "volumes", "kubernetes.io~csi", volume)
}

// volumeHandle reads what kubelet calls a pod's volume.
func (n onNode) volumeHandle(t *testing.T, pod *corev1.Pod) string {
	t.Helper()
	return n.volumeHandleOf(t, pod, volumeName)
}

func (n onNode) volumeHandleOf(t *testing.T, pod *corev1.Pod, volume string) string {
	t.Helper()
	content, err := os.ReadFile(n.path(filepath.Join(volumeDirOf(pod, volume), "vol_data.json")))
	if err != nil {
		t.Fatal(err)
	}
	var data struct {
		VolumeHandle string `json:"volumeHandle"`
	}
	if err := json.Unmarshal(content, &data); err != nil || data.VolumeHandle == "" {
		t.Fatalf("kubelet's vol_data.json has no volume handle: %s (%v)", content, err)
	}
	return data.VolumeHandle
}

// dialUnix makes a gRPC connection to a socket of the node. sun_path is 108
// bytes, so the name is reached through its directory's descriptor.
func (n onNode) dialUnix(t *testing.T, path string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+filepath.Base(path),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			dir, err := os.Open(n.path(filepath.Dir(path)))
			if err != nil {
				return nil, err
			}
			defer dir.Close()
			var d net.Dialer
			return d.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)))
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// driver is the CSI node service of the agent on this node.
func (n onNode) driver(t *testing.T) csipb.NodeClient {
	t.Helper()
	return csipb.NewNodeClient(n.dialUnix(t, csiSocket))
}

// podSocket is a pod's Workload API socket, dialled from the node.
func (n onNode) podSocket(t *testing.T, pod *corev1.Pod) *grpc.ClientConn {
	t.Helper()
	return n.dialUnix(t, filepath.Join(volumeDir(pod), "mount", "spiffe.sock"))
}

// publishRequest is what kubelet sends for a pod's volume.
func publishRequest(pod *corev1.Pod, volumeID, target string) *csipb.NodePublishVolumeRequest {
	return &csipb.NodePublishVolumeRequest{
		VolumeId: volumeID, TargetPath: target, Readonly: true,
		VolumeCapability: &csipb.VolumeCapability{
			AccessType: &csipb.VolumeCapability_Mount{Mount: &csipb.VolumeCapability_MountVolume{VolumeMountGroup: "65532"}},
			AccessMode: &csipb.VolumeCapability_AccessMode{Mode: csipb.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		},
		VolumeContext: map[string]string{
			"csi.storage.k8s.io/ephemeral":           "true",
			"csi.storage.k8s.io/pod.name":            pod.Name,
			"csi.storage.k8s.io/pod.namespace":       pod.Namespace,
			"csi.storage.k8s.io/pod.uid":             string(pod.UID),
			"csi.storage.k8s.io/serviceAccount.name": pod.Spec.ServiceAccountName,
		},
	}
}

// waitAbsent waits until no name below dir contains text.
func (n onNode) waitAbsent(ctx context.Context, t *testing.T, dir, text string) {
	t.Helper()
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Close()
	for {
		found, err := n.search(watcher, dir, text)
		if err != nil {
			t.Fatal(err)
		}
		if found == "" {
			return
		}
		select {
		case <-watcher.Events:
		case err := <-watcher.Errors:
			t.Fatal(err)
		case <-ctx.Done():
			t.Fatalf("wait for %s to go on %s: %v", found, n.Name, context.Cause(ctx))
		}
	}
}

// search finds a name that contains text, and has watcher watch the
// directories on the way.
func (n onNode) search(watcher *fsnotify.Watcher, dir, text string) (found string, err error) {
	root := n.path(dir)
	err = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if path != root && strings.Contains(entry.Name(), text) {
			found = path
			return fs.SkipAll
		}
		if !entry.IsDir() {
			return nil
		}
		if err := watcher.Add(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
	return found, err
}

// waitSocket waits until a pod's socket serves an SVID and returns its serial.
// gRPC waits for the connection; a stream that breaks is opened again when the
// volume's directory changes.
func waitSocket(ctx context.Context, t *testing.T, n onNode, pod *corev1.Pod) string {
	t.Helper()
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Close()
	if err := watcher.Add(n.path(filepath.Join(volumeDir(pod), "mount"))); err != nil {
		t.Fatal(err)
	}
	for {
		serial, err := serveOnce(ctx, n.podSocket(t, pod))
		if err == nil {
			return serial
		}
		select {
		case <-watcher.Events: // the new agent's socket
		case <-ctx.Done():
			t.Fatalf("wait for the socket of %s/%s: %v: %v", pod.Namespace, pod.Name, context.Cause(ctx), err)
		}
	}
}

// serveOnce asks for the SVID once.
func serveOnce(ctx context.Context, conn *grpc.ClientConn) (serial string, err error) {
	stream, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(
		withMetadata(ctx, "workload.spiffe.io", "true"), &workload.X509SVIDRequest{})
	if err != nil {
		return "", err
	}
	answer, err := stream.Recv()
	if err != nil {
		return "", err
	}
	chain, err := x509.ParseCertificates(answer.GetSvids()[0].GetX509Svid())
	if err != nil {
		return "", err
	}
	return chain[0].SerialNumber.Text(16), nil
}

// waitAPIServer waits until the API server answers. It has no way to announce
// itself; asking is all there is.
func waitAPIServer(ctx context.Context, t *testing.T) {
	t.Helper()
	err := wait.PollUntilContextCancel(ctx, 100*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		_, err := env.Kube.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		return err == nil, nil
	})
	if err != nil {
		t.Fatalf("the API server does not come back: %v", context.Cause(ctx))
	}
}
