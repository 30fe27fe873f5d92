// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"

	"github.com/signet-spiffe/signet/integration/install"
	"github.com/signet-spiffe/signet/internal/pki"
)

// A pod on a real kubelet starts with tls.crt, tls.key, ca.crt and a working
// socket; X509Source is ready at its first try. An init container and a
// postStart hook see the same.
func testPodStartsWithItsIdentity(t *testing.T) {
	t.Parallel()
	ctx := needCluster(t, testTimeout)
	ns := newNamespace(ctx, t)
	pod := runPod(ctx, t, ns, podSpec{Name: "app", Change: func(pod *corev1.Pod) {
		init := pod.Spec.Containers[0].DeepCopy()
		init.Name, init.Args = "first", []string{"fetch"}
		pod.Spec.InitContainers = []corev1.Container{*init}
		// A hook that fails kills its container: a ready pod's has succeeded.
		pod.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{
			Exec: &corev1.ExecAction{Command: []string{"/sample", "fetch"}},
		}}
	}})

	log, err := env.Kube.CoreV1().Pods(ns).GetLogs("app", &corev1.PodLogOptions{Container: "first"}).DoRaw(ctx)
	if err != nil {
		t.Fatal(err)
	}
	first := decodeJSON[fetched](t, log)
	if first.Attempts != 1 {
		t.Errorf("in the init container X509Source was ready at try %d, want the first", first.Attempts)
	}
	if want := spiffeID(ns, "default"); first.ID != want {
		t.Errorf("the init container is %s, want %s", first.ID, want)
	}
	later := fetch(ctx, t, pod)
	if later.Attempts != 1 {
		t.Errorf("X509Source was ready at try %d, want the first", later.Attempts)
	}
	if later.Serial != first.Serial {
		t.Errorf("the container has serial %s, its init container had %s", later.Serial, first.Serial)
	}
	checkFiles(ctx, t, pod, spiffeID(ns, "default"), later.Serial)
	// Requests do not pile up: the one that was made is deleted while the pod
	// runs.
	waitNoRequests(ctx, t, ns)
}

func waitNoRequests(ctx context.Context, t *testing.T, ns string) {
	t.Helper()
	err := install.AwaitNone(ctx, install.Selection{
		Client: env.CertManager.CertmanagerV1().RESTClient(), Resource: "certificaterequests", Namespace: ns,
		What: "no CertificateRequest to be left",
	}, func(*cmapi.CertificateRequest) bool { return true })
	if err != nil {
		t.Error(err)
	}
}

// checkFiles verifies the files in a pod as the strictest of their readers.
func checkFiles(ctx context.Context, t *testing.T, pod *corev1.Pod, wantID, wantSerial string) {
	t.Helper()
	chain, err := pki.ParseCertificates(mustExecute(ctx, t, pod, "cat", mountPath+"/tls.crt"))
	if err != nil {
		t.Fatalf("tls.crt: %v", err)
	}
	key, err := pki.ParsePrivateKeyPEM(mustExecute(ctx, t, pod, "cat", mountPath+"/tls.key"))
	if err != nil {
		t.Fatalf("tls.key: %v", err)
	}
	authorities, err := pki.ParseCertificates(mustExecute(ctx, t, pod, "cat", mountPath+"/ca.crt"))
	if err != nil {
		t.Fatalf("ca.crt: %v", err)
	}
	id := spiffeid.RequireFromString(wantID)
	err = pki.VerifySVID(chain, pki.Expectation{
		ID: id, Key: key, Now: time.Now(), Bundle: x509bundle.FromX509Authorities(id.TrustDomain(), authorities),
	})
	if err != nil {
		t.Errorf("the files hold no valid SVID: %v", err)
	}
	if got := chain[0].SerialNumber.Text(16); got != wantSerial {
		t.Errorf("the files have serial %s, the socket has %s", got, wantSerial)
	}
}

// Two replicas of one service account on one node have different keys and
// serials.
func testReplicasHaveKeysOfTheirOwn(t *testing.T) {
	t.Parallel()
	ctx := needCluster(t, testTimeout)
	ns := newNamespace(ctx, t)
	certificates := make([]*x509.Certificate, 2)
	for i := range certificates {
		createPod(ctx, t, ns, podSpec{Name: fmt.Sprint("replica-", i), Node: nodeOne})
	}
	for i := range certificates {
		pod := waitPod(ctx, t, ns, fmt.Sprint("replica-", i), "to be ready", readyOrNot)
		certificates[i] = certificateIn(ctx, t, pod)
	}
	if a, b := certificates[0].URIs[0].String(), certificates[1].URIs[0].String(); a != b || a != spiffeID(ns, "default") {
		t.Errorf("the replicas are %s and %s, want both %s", a, b, spiffeID(ns, "default"))
	}
	if certificates[0].SerialNumber.Cmp(certificates[1].SerialNumber) == 0 {
		t.Error("both replicas have one serial")
	}
	if string(certificates[0].RawSubjectPublicKeyInfo) == string(certificates[1].RawSubjectPublicKeyInfo) {
		t.Error("both replicas have one key")
	}
}

func readyOrNot(pod *corev1.Pod) error {
	if install.Ready(pod) {
		return nil
	}
	return fmt.Errorf("it is %s", pod.Status.Phase)
}

func certificateIn(ctx context.Context, t *testing.T, pod *corev1.Pod) *x509.Certificate {
	t.Helper()
	content := mustExecute(ctx, t, pod, "cat", mountPath+"/tls.crt")
	block, _ := pem.Decode(content)
	if block == nil {
		t.Fatalf("tls.crt is not PEM: %q", content)
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatalf("tls.crt: %v", err)
	}
	return certificate
}

// 1,000 publishes of a published volume, eight at a time: one mount in
// mountinfo, the same SVID.
func testThousandPublishesAreOne(t *testing.T) {
	t.Parallel()
	ctx := needCluster(t, testTimeout)
	ns := newNamespace(ctx, t)
	n := node(ctx, t, nodeOne)
	pod := runPod(ctx, t, ns, podSpec{Name: "app", Node: nodeOne})
	before := fetch(ctx, t, pod)

	handle, target := n.volumeHandle(t, pod), filepath.Join(volumeDir(pod), "mount")
	driver := n.driver(t)
	var group errgroup.Group
	group.SetLimit(8)
	for range 1000 {
		group.Go(func() error {
			_, err := driver.NodePublishVolume(ctx, publishRequest(pod, handle, target))
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatalf("publish of a published volume: %v", err)
	}
	if got := n.mountsWith(t, target); len(got) != 1 {
		t.Errorf("the target is mounted %d times, want once: %+v", len(got), got)
	}
	if got := n.mountsWith(t, handle); len(got) != 1 || got[0].FSType != "tmpfs" {
		t.Errorf("the volume's own mounts are %+v, want one tmpfs", got)
	}
	if after := fetch(ctx, t, pod); after.Serial != before.Serial {
		t.Errorf("the serial was %s and is %s: a publish issued anew", before.Serial, after.Serial)
	}
}

// Unpublish with the target missing, unmounted or unknown: OK each time.
func testUnpublishIsIdempotent(t *testing.T) {
	t.Parallel()
	ctx := needCluster(t, testTimeout)
	ns := newNamespace(ctx, t)
	n := node(ctx, t, nodeOne)
	driver := n.driver(t)
	pod := runPod(ctx, t, ns, podSpec{Name: "app", Node: nodeOne})

	unpublish := func(t *testing.T, id, target string) {
		t.Helper()
		for range 2 {
			_, err := driver.NodeUnpublishVolume(ctx, &csipb.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: target})
			if err != nil {
				t.Errorf("unpublish: %v", err)
			}
		}
		if got := n.mountsWith(t, id); len(got) != 0 {
			t.Errorf("mounts are left: %+v", got)
		}
		if _, err := os.Lstat(n.path(target)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the target is left: %v", err)
		}
	}
	// A second volume of the same pod, which kubelet knows nothing of.
	publish := func(t *testing.T, id, target string) {
		t.Helper()
		// The target's parent is kubelet's to make.
		if err := os.MkdirAll(n.path(filepath.Dir(target)), 0o750); err != nil {
			t.Fatal(err)
		}
		if _, err := driver.NodePublishVolume(ctx, publishRequest(pod, id, target)); err != nil {
			t.Fatalf("publish: %v", err)
		}
		if got := n.mountsWith(t, target); len(got) != 1 {
			t.Fatalf("after a publish the target is mounted %d times, want once", len(got))
		}
	}
	// kubelet removes what it does not know from its directory of pods, but not
	// from a pod's.
	target := func(id string) string { return filepath.Join(podsDir, string(pod.UID), id, "mount") }
	removeParent := func(id string) {
		if err := os.Remove(n.path(filepath.Dir(target(id)))); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("clean up: %v", err)
		}
	}

	t.Run("a volume nobody knows", func(t *testing.T) {
		unpublish(t, ns+"-unknown", target(ns+"-unknown"))
	})
	t.Run("a target somebody unmounted", func(t *testing.T) {
		id := ns + "-unmounted"
		defer removeParent(id)
		publish(t, id, target(id))
		if out, err := n.Exec(ctx, "umount", target(id)).CombinedOutput(); err != nil {
			t.Fatalf("umount: %v: %s", err, out)
		}
		unpublish(t, id, target(id))
	})
	t.Run("a target somebody removed", func(t *testing.T) {
		id := ns + "-removed"
		defer removeParent(id)
		publish(t, id, target(id))
		if out, err := n.Exec(ctx, "umount", target(id)).CombinedOutput(); err != nil {
			t.Fatalf("umount: %v: %s", err, out)
		}
		if err := os.RemoveAll(n.path(filepath.Dir(target(id)))); err != nil {
			t.Fatal(err)
		}
		unpublish(t, id, target(id))
	})
	t.Run("a published volume", func(t *testing.T) {
		id := ns + "-published"
		defer removeParent(id)
		publish(t, id, target(id))
		unpublish(t, id, target(id))
	})
}

// A non-ephemeral, writable, block or unknown-attribute volume:
// InvalidArgument that names the field.
func testInvalidVolumesAreRefusedByName(t *testing.T) {
	t.Parallel()
	ctx := needCluster(t, testTimeout)
	ns := newNamespace(ctx, t)
	n := node(ctx, t, nodeOne)
	driver := n.driver(t)
	pod := runPod(ctx, t, ns, podSpec{Name: "app", Node: nodeOne})

	for name, test := range map[string]struct {
		change func(*csipb.NodePublishVolumeRequest)
		field  string
	}{
		"not ephemeral": {func(r *csipb.NodePublishVolumeRequest) {
			r.VolumeContext["csi.storage.k8s.io/ephemeral"] = "false"
		}, "csi.storage.k8s.io/ephemeral"},
		"writable": {func(r *csipb.NodePublishVolumeRequest) { r.Readonly = false }, "readOnly"},
		"block": {func(r *csipb.NodePublishVolumeRequest) {
			r.VolumeCapability.AccessType = &csipb.VolumeCapability_Block{Block: &csipb.VolumeCapability_BlockVolume{}}
		}, "volume_capability.block"},
		"no capability": {func(r *csipb.NodePublishVolumeRequest) { r.VolumeCapability = nil }, "volume_capability"},
		"unknown attribute": {func(r *csipb.NodePublishVolumeRequest) {
			r.VolumeContext["spiffe.csi.cert-manager.io/fsgroup"] = "1"
		}, "spiffe.csi.cert-manager.io/fsgroup"},
		"group out of range": {func(r *csipb.NodePublishVolumeRequest) {
			r.VolumeContext["spiffe.csi.cert-manager.io/fs-group"] = "0"
		}, "spiffe.csi.cert-manager.io/fs-group"},
		"no pod": {func(r *csipb.NodePublishVolumeRequest) {
			delete(r.VolumeContext, "csi.storage.k8s.io/pod.name")
		}, "podInfoOnMount"},
		"no target": {func(r *csipb.NodePublishVolumeRequest) { r.TargetPath = "" }, "target_path"},
		"no volume": {func(r *csipb.NodePublishVolumeRequest) { r.VolumeId = "" }, "volume_id"},
		"a volume outside its place": {func(r *csipb.NodePublishVolumeRequest) {
			r.VolumeId = "../escape"
		}, "volume_id"},
	} {
		t.Run(name, func(t *testing.T) {
			id := ns + "-invalid"
			request := publishRequest(pod, id, filepath.Join(podsDir, id, "mount"))
			test.change(request)
			_, err := driver.NodePublishVolume(ctx, request)
			if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), test.field) {
				t.Errorf("got %v, want InvalidArgument that names %s", err, test.field)
			}
			if got := n.mountsWith(t, id); len(got) != 0 {
				t.Errorf("mounts are left: %+v", got)
			}
		})
	}
	t.Run("a pod is told by an Event", func(t *testing.T) {
		writable := createPod(ctx, t, ns, podSpec{Name: "writable", Change: func(pod *corev1.Pod) {
			pod.Spec.Volumes[0].CSI.ReadOnly = ptr(false)
		}})
		waitEvent(ctx, t, writable, "InvalidArgument", "pod.spec.volumes[].csi.readOnly")
	})
}

// fs-group attribute, pod fsGroup, none: ownership and modes as designed, seen
// from inside the container. The attribute goes before the pod's group.
func testFilesBelongToTheGroup(t *testing.T) {
	t.Parallel()
	ctx := needCluster(t, testTimeout)
	ns := newNamespace(ctx, t)
	const attribute = install.DriverName + "/fs-group"
	tests := map[string]struct {
		attributes map[string]string
		fsGroup    *int64
		want       uint32
	}{
		"attribute": {map[string]string{attribute: "2000"}, nil, 2000},
		"both":      {map[string]string{attribute: "2000"}, ptr(int64(3000)), 2000},
		"pod":       {nil, ptr(int64(3000)), 3000},
		"none":      {nil, nil, 0},
	}
	for name, test := range tests {
		createPod(ctx, t, ns, podSpec{Name: name, Attributes: test.attributes, Change: func(pod *corev1.Pod) {
			pod.Spec.SecurityContext.FSGroup = test.fsGroup
			// `ls` must look below a directory that only root and the group enter.
			pod.Spec.SecurityContext.RunAsUser = ptr(int64(0))
		}})
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			pod := waitPod(ctx, t, ns, name, "to be ready", readyOrNot)
			names := list(ctx, t, pod, mountPath)
			if got := names["..data"].Resolved; got == nil {
				t.Error("..data is not there")
			} else if got.Mode != "0550" || got.UID != 0 || got.GID != test.want {
				t.Errorf("the files' directory is %s %d:%d, want 0550 0:%d", got.Mode, got.UID, got.GID, test.want)
			}
			for _, file := range []string{"tls.crt", "tls.key", "ca.crt"} {
				got := names[file].Resolved
				if got == nil {
					t.Errorf("%s is not there", file)
				} else if got.Mode != "0440" || got.UID != 0 || got.GID != test.want {
					t.Errorf("%s is %s %d:%d, want 0440 0:%d", file, got.Mode, got.UID, got.GID, test.want)
				}
			}
			// Everybody in the pod may speak to the Workload API.
			if got := names["spiffe.sock"]; got.Type != "socket" || got.Mode != "0777" {
				t.Errorf("spiffe.sock is a %s with mode %s, want a socket with 0777", got.Type, got.Mode)
			}
		})
	}
	t.Run("a user outside the group has the socket but not the files", func(t *testing.T) {
		pod := runPod(ctx, t, ns, podSpec{Name: "stranger", Change: func(pod *corev1.Pod) {
			pod.Spec.SecurityContext.FSGroup = nil
			// Without a group it would be root's: the image has no /etc/passwd.
			pod.Spec.SecurityContext.RunAsUser = ptr(int64(65532))
			pod.Spec.SecurityContext.RunAsGroup = ptr(int64(65532))
		}})
		fetch(ctx, t, pod)
		if out, err := execute(ctx, pod, "app", "cat", mountPath+"/tls.key"); err == nil {
			t.Errorf("read %d bytes of tls.key", len(out))
		} else if _, ran := exitedWith(err); !ran {
			t.Errorf("cat: %v", err)
		}
	})
}

// When a pod is gone nothing is left of it: no mount, no state, no
// CertificateRequest.
func testNothingIsLeftOfADeletedPod(t *testing.T) {
	t.Parallel()
	ctx := needCluster(t, testTimeout)
	ns := newNamespace(ctx, t)
	n := node(ctx, t, nodeOne)
	pod := runPod(ctx, t, ns, podSpec{Name: "app", Node: nodeOne})
	handle := n.volumeHandle(t, pod)
	if len(n.mountsWith(t, handle)) == 0 || len(n.mountsWith(t, volumeDir(pod))) == 0 {
		t.Fatal("a running pod's volume is not in the mount table: this test looks in the wrong place")
	}
	deletePod(ctx, t, pod)
	n.waitMounts(ctx, t, func(all []mount) error {
		for _, m := range all {
			if strings.Contains(m.Point, handle) || strings.Contains(m.Point, string(pod.UID)) {
				return fmt.Errorf("%s is still mounted", m.Point)
			}
		}
		return nil
	})
	n.waitAbsent(ctx, t, pluginDir, handle)
	waitNoRequests(ctx, t, ns)
}
