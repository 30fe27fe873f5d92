// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	delegatedidentityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/delegatedidentity/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/signet-spiffe/signet/agent/issue/certmanager"
	"github.com/signet-spiffe/signet/agent/trust"
	"github.com/signet-spiffe/signet/internal/observe"
	agentv1 "github.com/signet-spiffe/signet/proto/signet/agent/v1"
)

// TestDelegatesSeeWhatIsMounted: a volume appears with its SVID when it is
// published, with or without a socket and after a restart too, and goes with it.
func TestDelegatesSeeWhatIsMounted(t *testing.T) {
	for _, delivery := range []string{"both", "files"} {
		t.Run(delivery, func(t *testing.T) {
			n := newNode(t)
			a := n.start()
			none, changed := delegated{volumes: a.storage}.Workloads()
			if len(none) != 0 {
				t.Fatalf("before any mount: %d workloads", len(none))
			}
			r := n.publishRequest()
			r.VolumeContext["test.driver/delivery"] = delivery
			if _, err := a.NodePublishVolume(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			<-changed
			serial := n.serial()
			n.wantDelegated(a, serial)
			a.kill()

			a = n.start()
			if _, err := a.NodePublishVolume(t.Context(), r); err != nil { // The volume is taken up by then.
				t.Fatal(err)
			}
			n.wantDelegated(a, serial)
			_, changed = delegated{volumes: a.storage}.Workloads()
			if _, err := a.NodeUnpublishVolume(t.Context(), &csipb.NodeUnpublishVolumeRequest{VolumeId: "v", TargetPath: n.target("v", "mount")}); err != nil {
				t.Fatal(err)
			}
			<-changed
			if left, _ := (delegated{volumes: a.storage}).Workloads(); len(left) != 0 {
				t.Errorf("after the unmount: %d workloads", len(left))
			}
			a.kill()
		})
	}
}

func (n *node) wantDelegated(a *agent, serial string) {
	n.t.Helper()
	workloads, _ := delegated{volumes: a.storage}.Workloads()
	if len(workloads) != 1 {
		n.t.Fatalf("%d workloads, want 1", len(workloads))
	}
	w := workloads[0]
	if w.Namespace != pod.Namespace || w.Pod != pod.Name || w.PodUID != pod.UID || w.ServiceAccount != pod.ServiceAccount || w.Volume != "v" {
		n.t.Errorf("workload is %s/%s %s %s %s", w.Namespace, w.Pod, w.PodUID, w.ServiceAccount, w.Volume)
	}
	if w.SVID == nil || w.SVID.Certificates[0].SerialNumber.Text(16) != serial {
		n.t.Errorf("its SVID is not the one in the files (%s)", serial)
	}
}

func TestDelegateFlags(t *testing.T) {
	for given, want := range map[string]string{
		"--authorized-delegates=-1":         "no user ID",
		"--authorized-delegates=4294967295": "no user ID",
		"--authorized-delegates=spiffe://x": "invalid argument",
		"--authorized-delegates=0,1337":     "",
	} {
		o, err := parse(t, "--node-id=node-1", "--kubeconfig="+writeKubeconfig(t), given)
		if want == "" {
			if err != nil || len(o.delegates.uids) != 2 || o.delegates.uids[1] != 1337 {
				t.Errorf("%s: %v, %v", given, o.delegates.uids, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", given, err, want)
		}
	}
	_, err := parse(t, "--node-id=node-1", "--kubeconfig="+writeKubeconfig(t), "--authorized-delegates=0", "--admin-socket-path=")
	var usage *observe.UsageError
	if !errors.As(err, &usage) || !strings.Contains(err.Error(), "--admin-socket-path") {
		t.Errorf("delegates without a socket: %v", err)
	}
}

// Only a delegate who is neither root nor the agent's user needs a socket that others
// can get to.
func TestTheSocketIsOpenNoFurtherThanNeeded(t *testing.T) {
	for given, want := range map[string]bool{"0": false, "0,1337": true, "1337": true} {
		o, err := parse(t, "--node-id=node-1", "--kubeconfig="+writeKubeconfig(t), "--authorized-delegates="+given)
		must(t, err)
		if got := o.delegates.strangers(); got != want {
			t.Errorf("--authorized-delegates=%s opens the socket to every user: %t, want %t", given, got, want)
		}
	}
}

// A delegate gets the SVID that the pod has, the next one, and its end; root does not
// unless it is named, and a delegate gets nothing else. Streams end with Unavailable
// when the agent stops, so that the proxy comes back.
func TestDelegatesOverTheAdminSocket(t *testing.T) {
	const proxy = 1337
	n := newNode(t)
	a := n.start()
	defer a.kill()
	dir, err := os.MkdirTemp("/tmp", "signet") // t.TempDir is for its owner alone.
	must(t, err)
	defer os.RemoveAll(dir)
	must(t, os.Chmod(dir, 0o755))
	o, err := parse(t, "--node-id=node-1", "--kubeconfig="+writeKubeconfig(t), "--admin-socket-path="+filepath.Join(dir, "d", "admin.sock"), "--authorized-delegates=1337")
	must(t, err)
	source := trust.NewObserved(td)
	served := openAdmin(o, a.registry, (*certmanager.Issuer)(nil), observe.NewLevel(slog.LevelInfo), prometheus.NewRegistry(), slog.New(slog.NewTextHandler(io.Discard, nil)),
		o.delegates.services(o, a.storage, source)...)
	if served.server == nil {
		t.Fatal("there is no admin socket")
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); served.run(ctx) }()
	defer func() { stop(); <-ended }()

	delegate, root := connectAs(t, o.adminSocket, proxy), connectAs(t, o.adminSocket, 0)
	ours := &delegatedidentityv1.SubscribeToX509SVIDsRequest{Selectors: []*types.Selector{{Type: "k8s", Value: "ns:" + pod.Namespace}}}
	refused, err := delegatedidentityv1.NewDelegatedIdentityClient(root).SubscribeToX509SVIDs(t.Context(), ours)
	must(t, err)
	if _, err := refused.Recv(); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "no delegate") {
		t.Errorf("root, who was not named: %v", err)
	}
	_, err = delegatedidentityv1.NewDelegatedIdentityClient(connectAs(t, o.adminSocket, proxy+1)).FetchJWTSVIDs(t.Context(), &delegatedidentityv1.FetchJWTSVIDsRequest{})
	if status.Code(err) != codes.Unavailable {
		t.Errorf("a stranger gets so far: %v", err)
	}
	_, err = agentv1.NewAgentServiceClient(delegate).GetVersion(t.Context(), &agentv1.GetVersionRequest{})
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("the delegate asks the administrator's service: %v", err)
	}

	stream, err := delegatedidentityv1.NewDelegatedIdentityClient(delegate).SubscribeToX509SVIDs(t.Context(), ours)
	must(t, err)
	next := func() (serials []string) {
		t.Helper()
		m, err := stream.Recv()
		must(t, err)
		for _, s := range m.X509Svids {
			svid, err := x509svid.ParseRaw(s.X509Svid.CertChain[0], s.X509SvidKey)
			must(t, err)
			serials = append(serials, svid.Certificates[0].SerialNumber.Text(16))
		}
		return serials
	}
	if got := next(); len(got) != 0 {
		t.Errorf("before any mount: %q", got)
	}
	_, err = a.NodePublishVolume(t.Context(), n.publishRequest())
	must(t, err)
	first := next()
	if len(first) != 1 || first[0] != n.serial() {
		t.Errorf("after the mount: %q, the pod has %s", first, n.serial())
	}
	_, err = a.registry.Renew(t.Context(), "v")
	must(t, err)
	if second := next(); len(second) != 1 || second[0] == first[0] || second[0] != n.serial() {
		t.Errorf("after the renewal: %q, the pod has %s", second, n.serial())
	}
	_, err = a.NodeUnpublishVolume(t.Context(), &csipb.NodeUnpublishVolumeRequest{VolumeId: "v", TargetPath: n.target("v", "mount")})
	must(t, err)
	if got := next(); len(got) != 0 {
		t.Errorf("after the unmount: %q", got)
	}
	stop()
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the agent stops: %v, want Unavailable", err)
	}
}

// connectAs connects as another user: the kernel tells the server whose thread it was.
func connectAs(t *testing.T, path string, uid int) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+path, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(_ context.Context, path string) (net.Conn, error) { return dialAs(path, uid) }))
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func dialAs(path string, uid int) (net.Conn, error) {
	type dialed struct {
		conn net.Conn
		err  error
	}
	result := make(chan dialed)
	go func() {
		runtime.LockOSThread() // And never unlocked: the thread ends with the goroutine.
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
			result <- dialed{nil, errno}
			return
		}
		conn, err := net.Dial("unix", path)
		result <- dialed{conn, err}
	}()
	r := <-result
	return r.conn, r.err
}
