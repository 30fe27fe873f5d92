// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	corev1 "k8s.io/api/core/v1"

	"github.com/signet-spiffe/signet/integration/install"
	agentv1 "github.com/signet-spiffe/signet/proto/signet/agent/v1"
)

// adminDir is where an agent's admin socket is on its node: in a folder in memory of
// its own pod.
func adminDir(agent *corev1.Pod) string {
	return filepath.Join("/var/lib/kubelet/pods", string(agent.UID), "volumes/kubernetes.io~empty-dir/admin", install.DriverName)
}

// workloadsOf runs "signet-agent workloads ARGS" where an administrator would.
func workloadsOf(ctx context.Context, agent *corev1.Pod, args ...string) ([]byte, error) {
	return executeCommand(ctx, agent, "agent", append([]string{"/signet-agent", "workloads"}, args...)...)
}

// listedWorkload is what the administrator is told of a pod that has one volume.
func listedWorkload(ctx context.Context, t *testing.T, agent, pod *corev1.Pod) map[string]any {
	t.Helper()
	out, err := workloadsOf(ctx, agent, "list", "-namespace", pod.Namespace, "-pod", pod.Name, "-output", "json")
	if err != nil {
		t.Fatal(err)
	}
	all := decodeJSON[struct{ Workloads []map[string]any }](t, out).Workloads
	if len(all) != 1 {
		t.Fatalf("%d workloads of %s/%s are listed: %s", len(all), pod.Namespace, pod.Name, out)
	}
	return all[0]
}

// fileSerial is the serial number in the pod's tls.crt.
func fileSerial(t *testing.T, n onNode, pod *corev1.Pod) string {
	t.Helper()
	content, err := os.ReadFile(n.path(filepath.Join(volumeDir(pod), "mount", "tls.crt")))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(content)
	if block == nil {
		t.Fatalf("tls.crt is not PEM: %q", content)
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return leaf.SerialNumber.Text(16)
}

// The administrator sees how a pod stands, and a renewal by hand gives it another
// SVID at once, in its files and on its socket, which a watch shows.
func testTheAdministratorListsWatchesAndRenews(t *testing.T) {
	t.Parallel()
	ctx := needCluster(t, testTimeout)
	ns := newNamespace(ctx, t)
	pod := runPod(ctx, t, ns, podSpec{Name: "app", Node: nodeOne})
	n, agent := node(ctx, t, nodeOne), mustAgentOn(ctx, t, nodeOne)

	w := listedWorkload(ctx, t, agent, pod)
	serial, _ := w["serial"].(string)
	for field, want := range map[string]string{
		"volume_id": n.volumeHandle(t, pod), "pod_uid": string(pod.UID), "service_account": "default", "spiffe_id": spiffeID(ns, "default"),
		"state": "WORKLOAD_STATE_READY", "serial": fileSerial(t, n, pod), "last_error": "",
	} {
		if w[field] != want {
			t.Errorf("the administrator is told %s %v, want %s", field, w[field], want)
		}
	}

	client := agentv1.NewAgentServiceClient(n.dialUnix(t, filepath.Join(adminDir(agent), "admin.sock")))
	stream, err := client.WatchWorkloads(ctx, &agentv1.WatchWorkloadsRequest{Selector: &agentv1.WorkloadSelector{Namespace: ns}})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := stream.Recv(); err != nil || !m.Synced || len(m.Workloads) != 1 {
		t.Fatalf("the watch begins with %v, %v", m, err)
	}
	out, err := workloadsOf(ctx, agent, "renew", "-namespace", ns, "-pod", pod.Name, "-wait", "-timeout", "30s")
	if err != nil || !strings.Contains(string(out), "renewed, serial "+serial) {
		t.Fatalf("renew: %s: %v", out, err)
	}
	for now := serial; now == serial; {
		m, err := stream.Recv()
		if err != nil {
			t.Fatalf("the watch ended before it showed the renewal: %v", err)
		}
		for _, w := range m.Workloads {
			now = w.Serial
		}
	}
	if got := fetch(ctx, t, pod).Serial; got == serial {
		t.Errorf("the pod's socket still serves %s", got)
	}
	if got := fileSerial(t, n, pod); got == serial {
		t.Errorf("the pod's files still have %s", got)
	}

	if out, err := workloadsOf(ctx, agent, "renew", "-namespace", ns, "-pod", "nobody"); err == nil || !strings.Contains(err.Error(), "NotFound") {
		t.Errorf("renewing a pod that is not there: %s, %v", out, err)
	}
	if out, err := workloadsOf(ctx, agent, "renew"); err == nil {
		t.Errorf("renewing nothing in particular: %s", out)
	}
}

// A pod has no admin socket. One that the node's administrator gave the very folder
// to does not get through to it, unless it is root.
func testNoPodReachesTheAdminSocket(t *testing.T) {
	t.Parallel()
	ctx := needCluster(t, testTimeout)
	ns := newNamespace(ctx, t)
	agent := mustAgentOn(ctx, t, nodeTwo)
	n, dir := node(ctx, t, nodeTwo), adminDir(agent)
	for path, want := range map[string]fs.FileMode{dir: fs.ModeDir | 0o700, filepath.Join(dir, "admin.sock"): fs.ModeSocket | 0o600} {
		info, err := os.Lstat(n.path(path))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != want {
			t.Errorf("%s is %s, want %s", path, info.Mode(), want)
		}
	}
	pod := runPod(ctx, t, ns, podSpec{Name: "curious", Node: nodeTwo, Change: func(pod *corev1.Pod) {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: "stolen", VolumeSource: corev1.VolumeSource{
			HostPath: &corev1.HostPathVolumeSource{Path: filepath.Dir(dir)},
		}})
		c := &pod.Spec.Containers[0]
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "stolen", MountPath: "/stolen"})
		c.SecurityContext = &corev1.SecurityContext{RunAsUser: ptr(int64(65532)), RunAsNonRoot: ptr(true)}
	}})
	if out, err := execute(ctx, pod, "app", "ls", "/run/signet"); err == nil {
		t.Errorf("a pod has /run/signet: %s", out)
	}
	got := dialRaw(ctx, t, pod, "--socket=unix:///stolen/"+install.DriverName+"/admin.sock", "--method=Health", "--header=none")
	if got.Code != codes.Unavailable.String() || !strings.Contains(got.Message, "permission denied") {
		t.Errorf("at the admin socket another user is told %+v, want that it may not", got)
	}
	if got := fetch(ctx, t, pod); got.ID != spiffeID(ns, "default") {
		t.Errorf("at its own socket it gets %s", got.ID)
	}
}
