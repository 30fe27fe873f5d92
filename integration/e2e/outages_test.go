// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	apiutil "github.com/cert-manager/cert-manager/pkg/api/util"
	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"

	"github.com/signet-spiffe/signet/integration/install"
)

// fleet is some pods whose agents are to live through what is done to others.
type fleet struct {
	ns     string
	keeper *keeper
	// pods are the standard driver's, two on each node. quick is the lab's, on the
	// first node: it is renewed every three seconds, and so shows at once whether
	// renewals go on.
	pods  []*kept
	quick *kept
	// agents are those at the beginning, with their metrics.
	agents map[string]*corev1.Pod
	before map[string]metrics
	// meanwhile counts pods that were started during a fault.
	meanwhile int
}

func newFleet(ctx context.Context, t *testing.T) *fleet {
	t.Helper()
	needLab(t)
	f := &fleet{ns: newNamespace(ctx, t), keeper: newKeeper(ctx, t), agents: map[string]*corev1.Pod{}, before: map[string]metrics{}}
	for _, name := range []string{nodeOne, nodeTwo} {
		for i := range 2 {
			pod := runPod(ctx, t, f.ns, podSpec{Name: fmt.Sprintf("%s-%d", name, i), Node: name})
			f.pods = append(f.pods, f.keeper.keepAll(ctx, t, pod)...)
		}
	}
	quick := runPod(ctx, t, f.ns, podSpec{Name: "quick", Node: nodeOne, Driver: lab.DriverName(), Attributes: labAttributes()})
	f.quick = f.keeper.keep(t, node(ctx, t, nodeOne), quick, volumeName, labID(f.ns))
	f.keeper.waitStreams(ctx, t, f.all())
	for _, name := range []string{nodeOne, nodeTwo} {
		f.agents[name] = mustAgentOn(ctx, t, name)
		f.before[name] = node(ctx, t, name).metrics(ctx, t, f.agents[name])
	}
	return f
}

func (f *fleet) all() []*kept { return append(keptOnes(f.quick), f.pods...) }

// create creates a pod on the first node during a fault.
func (f *fleet) create(ctx context.Context, t *testing.T) *corev1.Pod {
	t.Helper()
	f.meanwhile++
	return createPod(ctx, t, f.ns, podSpec{Name: fmt.Sprint("meanwhile-", f.meanwhile), Node: nodeOne})
}

// recover waits until a pod that was created during a fault has started, without
// any help, and what fell due has been renewed.
func (f *fleet) recover(ctx context.Context, t *testing.T, pod *corev1.Pod) {
	t.Helper()
	began := time.Now()
	pod = waitPod(ctx, t, f.ns, pod.Name, "to be ready after the recovery", readyOrNot)
	t.Logf("the pod that waited was ready %s after the recovery", time.Since(began).Round(time.Millisecond))
	checkFiles(ctx, t, pod, spiffeID(f.ns, "default"), fetch(ctx, t, pod).Serial)
	f.settle(ctx, t)
	deletePod(ctx, t, pod)
}

// settle waits until what fell due has been renewed, and checks that nothing broke.
func (f *fleet) settle(ctx context.Context, t *testing.T) {
	t.Helper()
	f.keeper.waitFresh(ctx, t, f.all())
	f.keeper.check(t, f.all())
	if n := f.keeper.broke(f.all()...); n != 0 {
		t.Errorf("%d streams broke, although the agents live", n)
	}
	for name, agent := range f.agents {
		node(ctx, t, name).checkHealthy(ctx, t, agent)
	}
}

// serving checks that a socket answers a client that is new to it.
func (f *fleet) serving(ctx context.Context, t *testing.T) {
	t.Helper()
	for _, v := range f.all() {
		if _, err := serveOnce(ctx, v.node.podSocket(t, v.pod)); err != nil {
			t.Errorf("%s: %v", v.name(), err)
		}
	}
}

// Everything around the agents is stopped and started again, one part after the
// other, under pods whose SVIDs live for a minute. Streams and files live through
// all of it, a pod that is started meanwhile waits and then starts by itself, and
// nothing expires. In the end the agents hold what they held before.
func testPartsComeAndGo(t *testing.T) {
	ctx := needCluster(t, 6*time.Minute)
	f := newFleet(ctx, t)
	for _, part := range []struct {
		name string
		test func(context.Context, *testing.T, *fleet)
	}{
		{"the approvers", withoutApprovers},
		{"cert-manager", withoutCertManager},
		{"cert-manager's webhook", withoutWebhook},
		{"the API server", withoutAPIServer},
		{"kubelet", withoutKubelet},
		{"containerd", withoutContainerd},
	} {
		t.Run(part.name, func(t *testing.T) { part.test(ctx, t, f) })
	}
	f.keeper.waitNext(ctx, t, f.all())
	f.settle(ctx, t)
	f.checkLeaks(ctx, t)
}

// stopped ends a component and returns what starts it again, which happens at the
// end of the test at the latest.
func stopped(ctx context.Context, t *testing.T, component, onNode string) (start func()) {
	t.Helper()
	// Killed: a part that is told to stop may take longer about it than an SVID lives.
	if err := env.cluster.KillComponent(ctx, component, onNode); err != nil {
		t.Fatal(err)
	}
	running := false
	start = func() {
		if running {
			return
		}
		running = true
		if err := env.cluster.StartComponent(context.WithoutCancel(ctx), component, onNode); err != nil {
			t.Errorf("start %s again: %v", component, err)
		}
	}
	t.Cleanup(start)
	return start
}

// waitRequest waits until a pod's request is as far as done says.
func waitRequest(ctx context.Context, t *testing.T, pod *corev1.Pod, what string, done func(*cmapi.CertificateRequest) bool) {
	t.Helper()
	_, err := install.Await(ctx, install.Selection{
		Client: env.CertManager.CertmanagerV1().RESTClient(), Resource: "certificaterequests", Namespace: pod.Namespace,
		What: fmt.Sprintf("a CertificateRequest of pod %s/%s, %s", pod.Namespace, pod.Name, what),
	}, func(cr *cmapi.CertificateRequest, _ bool) error {
		if len(cr.OwnerReferences) != 1 || cr.OwnerReferences[0].UID != pod.UID || !done(cr) {
			return errors.New("there are others")
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, describePod(ctx, pod.Namespace, pod.Name))
	}
}

func withoutApprovers(ctx context.Context, t *testing.T, f *fleet) {
	scale := scaleApprover(ctx, t, 0)
	t.Cleanup(func() { scaleApprover(context.WithoutCancel(ctx), t, scale) })
	err := install.AwaitNone(ctx, install.Selection{
		Client: env.Kube.CoreV1().RESTClient(), Resource: "pods", Namespace: install.Namespace, What: "the approvers to be gone",
	}, func(pod *corev1.Pod) bool { return strings.HasPrefix(pod.Name, install.ApproverName) })
	if err != nil {
		t.Fatal(err)
	}
	pod := f.create(ctx, t)
	waitRequest(ctx, t, pod, "undecided", func(cr *cmapi.CertificateRequest) bool {
		return !apiutil.CertificateRequestIsApproved(cr) && !apiutil.CertificateRequestIsDenied(cr)
	})
	f.serving(ctx, t)
	scaleApprover(ctx, t, scale)
	f.recover(ctx, t, pod)
	if err := env.WaitReady(ctx); err != nil {
		t.Error(err)
	}
}

func withoutCertManager(ctx context.Context, t *testing.T, f *fleet) {
	start := stopped(ctx, t, "cert-manager-controller", "")
	pod := f.create(ctx, t)
	waitRequest(ctx, t, pod, "approved", apiutil.CertificateRequestIsApproved)
	f.serving(ctx, t)
	start()
	f.recover(ctx, t, pod)
}

// Without its webhook no request can be made; the agent says so and asks again.
func withoutWebhook(ctx context.Context, t *testing.T, f *fleet) {
	start := stopped(ctx, t, "cert-manager-webhook", "")
	pod := f.create(ctx, t)
	<-followAgent(ctx, t, f.agents[nodeOne], "no SVID from this attempt", pod.Name, "is cert-manager's webhook running?")
	f.serving(ctx, t)
	start()
	f.recover(ctx, t, pod)
}

// Without API server no pod can be made. A mount is attempted all the same, as a
// kubelet does which has heard of a pod the moment before. Agents say on /readyz
// what they lack.
func withoutAPIServer(ctx context.Context, t *testing.T, f *fleet) {
	n := node(ctx, t, nodeOne)
	pod := f.pods[0].pod
	id := f.ns + "-meanwhile"
	target := filepath.Join(podsDir, string(pod.UID), id, "mount")
	if err := os.MkdirAll(n.path(filepath.Dir(target)), 0o750); err != nil {
		t.Fatal(err)
	}
	driver := n.driver(t)
	defer func() {
		_, err := driver.NodeUnpublishVolume(ctx, &csipb.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: target})
		if err := errors.Join(err, os.Remove(n.path(filepath.Dir(target)))); err != nil {
			t.Errorf("clean up: %v", err)
		}
	}()

	start := stopped(ctx, t, "kube-apiserver", "")
	for name, agent := range f.agents {
		node(ctx, t, name).waitUnready(ctx, t, agent, "API server cannot be reached")
	}
	f.serving(ctx, t)
	soon, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if _, err := driver.NodePublishVolume(soon, publishRequest(pod, id, target)); err == nil {
		t.Error("a volume was published without API server")
	}
	start()
	waitAPIServer(ctx, t)
	began := time.Now()
	_, err := driver.NodePublishVolume(ctx, publishRequest(pod, id, target))
	for status.Code(err) == codes.DeadlineExceeded && ctx.Err() == nil { // Kubelet comes back, too.
		_, err = driver.NodePublishVolume(ctx, publishRequest(pod, id, target))
	}
	if err != nil {
		t.Errorf("the mount that waited: %v", err)
	}
	t.Logf("the mount that waited succeeded %s after the recovery", time.Since(began).Round(time.Millisecond))
	if got := n.mountsWith(t, target); len(got) != 1 {
		t.Errorf("the target is mounted %d times, want once", len(got))
	}
	f.settle(ctx, t)
	if err := env.WaitReady(ctx); err != nil {
		t.Error(err)
	}
}

// waitScheduled waits until a pod has its node, whose kubelet need not know.
func waitScheduled(ctx context.Context, t *testing.T, pod *corev1.Pod) {
	t.Helper()
	waitPod(ctx, t, pod.Namespace, pod.Name, "to be scheduled", func(pod *corev1.Pod) error {
		if pod.Spec.NodeName == "" {
			return errors.New("it has no node")
		}
		return nil
	})
}

func withoutKubelet(ctx context.Context, t *testing.T, f *fleet) { withoutOnNode(ctx, t, f, "kubelet") }

// Containers, the agent's among them, outlive their runtime.
func withoutContainerd(ctx context.Context, t *testing.T, f *fleet) {
	withoutOnNode(ctx, t, f, "containerd")
}

func withoutOnNode(ctx context.Context, t *testing.T, f *fleet, component string) {
	start := stopped(ctx, t, component, nodeOne)
	pod := f.create(ctx, t)
	waitScheduled(ctx, t, pod)
	f.serving(ctx, t)
	f.keeper.waitNext(ctx, t, keptOnes(f.quick)) // Renewals go on.
	start()
	f.recover(ctx, t, pod)
}

// What an agent may hold more than before: a connection that has not quite closed.
const spareGoroutines, spareDescriptors = 10, 5

// checkLeaks waits until the agents, which must be those from the beginning, hold
// no more goroutines, files and volumes than then.
func (f *fleet) checkLeaks(ctx context.Context, t *testing.T) {
	t.Helper()
	for name, agent := range f.agents {
		n, before := node(ctx, t, name), f.before[name]
		after := n.waitMetrics(ctx, t, agent, "the agent on "+name+" to hold what it held", func(m metrics) error {
			for metric, spare := range map[string]float64{
				"go_goroutines": spareGoroutines, "process_open_fds": spareDescriptors,
				`signet_agent_volumes{phase="ready"}`: 0, `signet_agent_volumes{phase="pending"}`: 0,
				"signet_workloadapi_listeners": 0, "signet_agent_certificate_requests_waiting": 0,
			} {
				if m[metric] > before[metric]+spare {
					return fmt.Errorf("%s was %g and is %g", metric, before[metric], m[metric])
				}
			}
			return nil
		})
		if after["process_start_time_seconds"] != before["process_start_time_seconds"] {
			t.Errorf("the agent on %s was restarted", name)
		}
		t.Logf("%s: goroutines %g → %g, descriptors %g → %g", name, before["go_goroutines"], after["go_goroutines"], before["process_open_fds"], after["process_open_fds"])
	}
	waitNoRequests(ctx, t, f.ns)
}
