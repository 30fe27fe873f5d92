// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/fsnotify/fsnotify"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/signet-spiffe/signet/integration/install"
	"github.com/signet-spiffe/signet/internal/failpoint"
)

// second is a second driver on every node, in a trust domain of its own. Its agents
// die where tests want them to; the standard ones live beside them.
var second = install.Another{
	Name: "second",
	Options: install.Options{
		TrustDomain: "second.signet.example",
		// SVIDs live long, so that nothing but what a test does happens to them, and
		// shortly where a pod says so.
		Duration:      10 * time.Minute,
		AgentFlags:    map[string]string{"--log-level": "5", "--publish-timeout": "15s", minFlag: "30s"},
		ApproverFlags: map[string]string{"--log-level": "5", minFlag: "30s"},
	},
	AgentImage: install.FailpointAgentImage,
	AgentEnv:   map[string]string{failpoint.Folder: armedDir},
}

// armedDir is where points of the second driver are armed, on a node. The agent has
// the folder already.
const armedDir = "/var/lib/kubelet/plugins/second.csi.signet.example"

var installSecond = sync.OnceValue(func() error {
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	return env.Another(ctx, second)
})

// needSecond makes sure that the second driver is there.
func needSecond(t *testing.T) {
	t.Helper()
	if err := installSecond(); err != nil {
		t.Fatal(err)
	}
}

func secondID(ns string) string {
	return "spiffe://" + second.TrustDomain + "/ns/" + ns + "/sa/default"
}

// Operations that an agent is killed in.
const (
	atPublish   = "publish"
	atUnpublish = "unpublish"
	atRenewal   = "renewal"
	atRestart   = "restart"
)

// stepsOf are the points that an operation passes.
var stepsOf = map[string][]string{
	atPublish: {
		"volume/directory-made", "volume/mounted", "volume/pod-part-made", "volume/private-part-made", "private/temporary-written",
		"volume/owner-written", "prepare/created", "prepare/remembered", "socket/bound", "socket/in-place", "prepare/served",
		"issue/key-made", "attempt/kept", "request/before-create", "request/created", "request/issued", "issue/verified", "state/replaced",
		"store/state-written", "files/leftovers-removed", "files/one-written", "files/all-written", "files/name-linked", "files/named",
		"files/next-linked", "files/swapped", "store/files-written", "attempt/dropped", "push/done", "request/before-delete", "request/deleted",
		"publish/answered", "bind/target-made", "bind/mounted",
	},
	atUnpublish: {
		"unpublish/called", "remove/detached", "remove/ended", "wipe/overwritten", "wipe/emptied", "remove/copies-unmounted",
		"remove/unmounted", "remove/directory-removed", "unpublish/identity-ended", "unpublish/target-removed",
	},
	atRenewal: {
		"issue/key-made", "attempt/kept", "request/before-create", "request/created", "request/issued", "issue/verified", "private/temporary-written",
		"state/replaced", "store/state-written", "files/leftovers-removed", "files/one-written", "files/all-written", "files/named",
		"files/next-linked", "files/swapped", "store/files-written", "attempt/dropped", "push/done", "request/before-delete", "request/deleted",
	},
	atRestart: {
		"restore/recovered", "prepare/created", "socket/bound", "socket/in-place", "prepare/served", "private/temporary-written",
		"state/replaced", "store/state-written", "files/one-written", "files/next-linked", "files/swapped", "push/done",
	},
}

// Every point is tried in some operation, and what is tried exists.
func TestEveryFailpointIsTried(t *testing.T) {
	tried := map[string]bool{}
	for operation, points := range stepsOf {
		for _, point := range points {
			tried[point] = true
			if !slices.Contains(failpoint.Names, point) {
				t.Errorf("%s: there is no point %s", operation, point)
			}
		}
	}
	for _, point := range failpoint.Names {
		if !tried[point] {
			t.Errorf("no operation tries point %s", point)
		}
	}
}

// The agent is killed at every step of a publish, an unpublish, a renewal and its
// own start. Afterwards the pod is ready or gone; files, socket and key agree;
// there is one mount; nothing is left over; nothing expired. All the while a
// volume of the standard driver in the same pods does not notice.
func testKilledAtEveryStep(t *testing.T) {
	t.Parallel()
	ctx := needCluster(t, 6*time.Minute)
	needSecond(t)
	ns := newNamespace(ctx, t)
	for i, name := range []string{nodeOne, nodeTwo} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := newVictim(ctx, t, ns, name)
			unpublish := half(stepsOf[atUnpublish], i)
			for j, point := range half(stepsOf[atPublish], i) {
				pod := v.killAtPublish(ctx, t, j, point)
				if j < len(unpublish) {
					v.killAtUnpublish(ctx, t, pod, unpublish[j])
				} else {
					v.remove(ctx, t, pod)
				}
			}
			v.killAtRenewal(ctx, t, half(stepsOf[atRenewal], i))
			v.killAtRestart(ctx, t, half(stepsOf[atRestart], i))
			v.finish(ctx, t)
		})
	}
}

// half are the points of one of two nodes.
func half(points []string, node int) []string {
	var out []string
	for i, point := range points {
		if i%2 == node {
			out = append(out, point)
		}
	}
	return out
}

// victim is the second driver's agent on a node.
type victim struct {
	onNode
	ns string
	// witness has a volume of each driver and lives through it all.
	witness         *corev1.Pod
	keeper          *keeper
	standard, other *kept
	// restarts are those before, kills those by this test.
	restarts, kills int
}

// newVictim makes the node's witness.
func newVictim(ctx context.Context, t *testing.T, ns, name string) *victim {
	t.Helper()
	v := &victim{onNode: node(ctx, t, name), ns: ns, keeper: newKeeper(ctx, t)}
	v.restarts = int(v.agent(ctx, t).Status.ContainerStatuses[0].RestartCount)
	v.witness = runPod(ctx, t, ns, podSpec{Name: "witness-" + name, Node: name, Change: addSecondVolume})
	v.standard = v.keeper.keep(t, v.onNode, v.witness, volumeName, spiffeID(ns, "default"))
	v.other = v.keeper.keep(t, v.onNode, v.witness, secondVolume, secondID(ns))
	return v
}

const secondVolume = "second"

// addSecondVolume gives a pod a volume of the second driver besides.
func addSecondVolume(pod *corev1.Pod) {
	pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: secondVolume, VolumeSource: corev1.VolumeSource{
		CSI: &corev1.CSIVolumeSource{Driver: second.DriverName(), ReadOnly: ptr(true)},
	}})
	pod.Spec.Containers[0].VolumeMounts = append(pod.Spec.Containers[0].VolumeMounts,
		corev1.VolumeMount{Name: secondVolume, MountPath: "/second", ReadOnly: true})
}

// agent is the agent's pod as it is now.
func (v *victim) agent(ctx context.Context, t *testing.T) *corev1.Pod {
	t.Helper()
	pod, err := agentIn(ctx, second.Namespace(), v.Name)
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

// killAt arms a point, does what leads there, and returns when the agent has died
// there and another one serves.
func (v *victim) killAt(ctx context.Context, t *testing.T, point string, do func()) {
	t.Helper()
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Close()
	if err := watcher.Add(v.path(armedDir)); err != nil {
		t.Fatal(err)
	}
	armed := v.path(filepath.Join(armedDir, failpoint.FileName(point)))
	if err := os.WriteFile(armed, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	do()
	for reached := false; !reached; {
		select {
		case event := <-watcher.Events:
			reached = event.Has(fsnotify.Remove) && filepath.Base(event.Name) == filepath.Base(armed)
		case <-ctx.Done():
			_ = os.Remove(armed)
			t.Fatalf("the agent on %s never reached %s: %v\n%s", v.Name, point, context.Cause(ctx), env.Describe(context.WithoutCancel(ctx), v.agent(context.WithoutCancel(ctx), t)))
		}
	}
	v.kills++
	v.waitServing(ctx, t)
}

// waitServing waits until an agent answers kubelet, and serves what the one before
// it left.
func (v *victim) waitServing(ctx context.Context, t *testing.T) {
	t.Helper()
	driver := csipb.NewNodeClient(v.dialUnix(t, filepath.Join(armedDir, "csi.sock")))
	_, err := driver.NodeGetInfo(ctx, &csipb.NodeGetInfoRequest{}, grpc.WaitForReady(true))
	for status.Code(err) == codes.Unavailable { // The connection was still to the one that died.
		_, err = driver.NodeGetInfo(ctx, &csipb.NodeGetInfoRequest{}, grpc.WaitForReady(true))
	}
	if err != nil {
		t.Fatalf("the agent on %s does not come back: %v\n%s", v.Name, err, env.Describe(context.WithoutCancel(ctx), v.agent(context.WithoutCancel(ctx), t)))
	}
	v.keeper.waitStreams(ctx, t, keptOnes(v.other))
}

// killAtPublish kills the agent while it makes a pod's volume.
func (v *victim) killAtPublish(ctx context.Context, t *testing.T, i int, point string) *corev1.Pod {
	t.Helper()
	began := time.Now()
	spec := podSpec{Name: fmt.Sprintf("%s-%d", v.Name, i), Node: v.Name, Driver: second.DriverName()}
	if point == "prepare/remembered" {
		// Only a volume that does not wait for its SVID is remembered without one.
		spec.Attributes = map[string]string{second.DriverName() + "/wait": "false"}
	}
	v.killAt(ctx, t, point, func() { createPod(ctx, t, v.ns, spec) })
	pod := waitPod(ctx, t, v.ns, spec.Name, "to be ready after the agent died at "+point, readyOrNot)
	v.checkPublished(ctx, t, point, pod)
	t.Logf("publish, killed at %s: ready after %s", point, time.Since(began).Round(time.Millisecond))
	return pod
}

// checkPublished is what must hold for a volume of the second driver.
func (v *victim) checkPublished(ctx context.Context, t *testing.T, point string, pod *corev1.Pod) {
	t.Helper()
	handle := v.volumeHandle(t, pod)
	if got := v.mountsWith(t, volumeDir(pod)); len(got) != 1 {
		t.Errorf("%s: the target is mounted %d times, want once: %+v", point, len(got), got)
	}
	if got := v.mountsWith(t, handle); len(got) != 1 || got[0].FSType != "tmpfs" {
		t.Errorf("%s: the volume's own mounts are %+v, want one tmpfs", point, got)
	}
	serial := waitSocket(ctx, t, v.onNode, pod)
	leaf, err := readVolume(v.path(filepath.Join(volumeDir(pod), "mount")), spiffeid.RequireFromString(secondID(v.ns)))
	switch {
	case err != nil:
		t.Errorf("%s: files: %v", point, err)
	case leaf.SerialNumber.Text(16) != serial:
		t.Errorf("%s: the files have serial %s, the socket has %s", point, leaf.SerialNumber.Text(16), serial)
	}
	v.checkPart(t, point, filepath.Join(volumeDir(pod), "mount"))
	waitNoRequests(ctx, t, v.ns)
}

// checkPart finds what a crash may have left in what the pod sees.
func (v *victim) checkPart(t *testing.T, point, dir string) {
	t.Helper()
	entries, err := os.ReadDir(v.path(dir))
	if err != nil {
		t.Errorf("%s: %v", point, err)
		return
	}
	generations := 0
	for _, entry := range entries {
		switch name := entry.Name(); {
		case strings.HasPrefix(name, "..gen-"):
			generations++
		case strings.HasPrefix(name, "..") && name != "..data":
			t.Errorf("%s: %s is left in the volume", point, name)
		}
	}
	if generations < 1 || generations > 2 {
		t.Errorf("%s: the volume holds %d generations of files, want the present one and at most the one before", point, generations)
	}
}

// killAtUnpublish kills the agent while it removes a pod's volume.
func (v *victim) killAtUnpublish(ctx context.Context, t *testing.T, pod *corev1.Pod, point string) {
	t.Helper()
	began := time.Now()
	handle := v.volumeHandle(t, pod)
	v.killAt(ctx, t, point, func() {
		if err := env.Kube.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	})
	waitGone(ctx, t, pod)
	v.checkGone(ctx, t, point, pod, handle)
	t.Logf("unpublish, killed at %s: gone after %s", point, time.Since(began).Round(time.Millisecond))
}

// remove deletes a pod, to which nothing happens.
func (v *victim) remove(ctx context.Context, t *testing.T, pod *corev1.Pod) {
	t.Helper()
	if err := env.Kube.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

// checkGone is what must hold when a pod has gone.
func (v *victim) checkGone(ctx context.Context, t *testing.T, point string, pod *corev1.Pod, handle string) {
	t.Helper()
	v.waitMounts(ctx, t, func(all []mount) error {
		for _, m := range all {
			if strings.Contains(m.Point, handle) || strings.Contains(m.Point, string(pod.UID)) {
				return fmt.Errorf("%s: %s is still mounted", point, m.Point)
			}
		}
		return nil
	})
	v.waitAbsent(ctx, t, armedDir, handle)
}

// killAtRenewal kills the agent while it renews an SVID, again and again the same
// volume's. Its pod never has an expired one, and every key has its certificate.
func (v *victim) killAtRenewal(ctx context.Context, t *testing.T, points []string) {
	t.Helper()
	// Renewed every three seconds.
	driver := second.DriverName()
	pod := runPod(ctx, t, v.ns, podSpec{Name: "renewing-" + v.Name, Node: v.Name, Driver: driver, Attributes: map[string]string{
		driver + "/duration": "30s", driver + "/renew-before": "27s",
	}})
	kept := v.keeper.keep(t, v.onNode, pod, volumeName, secondID(v.ns))
	for _, point := range points {
		began := time.Now()
		v.killAt(ctx, t, point, func() {}) // The next one shows that renewals go on.
		t.Logf("renewal, killed at %s: served again after %s", point, time.Since(began).Round(time.Millisecond))
	}
	v.keeper.waitNext(ctx, t, keptOnes(kept))
	v.keeper.check(t, keptOnes(kept))
	// The point's file has gone each time, and the container was restarted as often. A
	// death that follows another before the client is back breaks no stream.
	if kept.broken < len(points)/2 {
		t.Errorf("the stream broke %d times, the agent died %d times: this test killed another", kept.broken, len(points))
	}
	v.keeper.release(kept)
	handle := v.volumeHandle(t, pod)
	deletePod(ctx, t, pod)
	v.checkGone(ctx, t, atRenewal, pod, handle)
}

func keptOnes(all ...*kept) []*kept { return all }

// killAtRestart kills the agent, and the next one while it takes up the volumes.
// The witness's SVID stays the one it was.
func (v *victim) killAtRestart(ctx context.Context, t *testing.T, points []string) {
	t.Helper()
	v.keeper.mu.Lock()
	before := len(v.other.svids)
	v.keeper.mu.Unlock()
	for _, point := range points {
		began := time.Now()
		v.killAt(ctx, t, point, func() {
			if err := agentProcess(ctx, t, v.agent(ctx, t)).Signal(syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		})
		v.kills++ // Two deaths; the file of the point vanished at the second.
		t.Logf("restart, killed at %s: serving after %s", point, time.Since(began).Round(time.Millisecond))
	}
	v.keeper.mu.Lock()
	defer v.keeper.mu.Unlock()
	if after := len(v.other.svids); after != before {
		t.Errorf("restarts issued %d SVIDs, want none", after-before)
	}
}

// finish checks what is left when all but the witness are gone.
func (v *victim) finish(ctx context.Context, t *testing.T) {
	t.Helper()
	// What kubelet is told of last: the pods that were deleted without waiting.
	handle := v.volumeHandleOf(t, v.witness, secondVolume)
	v.waitMounts(ctx, t, func(all []mount) error {
		for _, m := range all {
			if strings.HasPrefix(m.Point, filepath.Join(armedDir, "volumes")) && !strings.Contains(m.Point, handle) {
				return fmt.Errorf("%s is still mounted", m.Point)
			}
		}
		return nil
	})
	entries, err := os.ReadDir(v.path(filepath.Join(armedDir, "volumes")))
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if entry.Name() != handle {
			v.waitAbsent(ctx, t, filepath.Join(armedDir, "volumes"), entry.Name())
		}
	}
	v.keeper.waitStreams(ctx, t, keptOnes(v.standard, v.other))
	v.keeper.check(t, keptOnes(v.standard, v.other))
	if v.standard.broken != 0 {
		t.Errorf("the stream of the standard driver broke %d times while the second driver's agent was killed", v.standard.broken)
	}
	// Whatever else ended an agent would be a defect.
	waitPod(ctx, t, second.Namespace(), v.agent(ctx, t).Name, fmt.Sprintf("to have been restarted %d times", v.kills), func(pod *corev1.Pod) error {
		container := pod.Status.ContainerStatuses[0]
		if n := int(container.RestartCount) - v.restarts; n != v.kills || !container.Ready {
			return fmt.Errorf("it was restarted %d times; ready: %t", n, container.Ready)
		}
		return nil
	})
	t.Logf("%d kills; the longest that the witness's stream was away is %s", v.kills, v.other.resumed.Round(time.Millisecond))
	for _, point := range failpoint.Names {
		if _, err := os.Stat(v.path(filepath.Join(armedDir, failpoint.FileName(point)))); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still armed: %v", point, err)
		}
	}
}
