// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"google.golang.org/grpc/codes"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"

	"github.com/signet-spiffe/signet/integration/install"
)

// rotationTimeout leaves time for two renewals.
const rotationTimeout = 3*svidLife + time.Minute

// Two services on two nodes speak mTLS, one with the socket, one with the
// files. Over one unbroken client both sides are seen to rotate twice, and no
// request fails.
func testPairSpeaksAcrossNodesAndRotations(t *testing.T) {
	t.Parallel()
	ctx := needCluster(t, rotationTimeout)
	ns := newNamespace(ctx, t)
	server, client := runPair(ctx, t, ns, "socket", "files")
	if server.Spec.NodeName == client.Spec.NodeName {
		t.Fatalf("both pods are on %s", server.Spec.NodeName)
	}
	var servers, clients []string
	follow(ctx, t, client, func(line said) bool {
		switch line.Event {
		case "request":
			servers, clients = appendNew(servers, line.PeerSerial), appendNew(clients, line.OwnSerial)
			if line.PeerID != spiffeID(ns, "server") || line.OwnID != spiffeID(ns, "client") {
				t.Errorf("%s spoke to %s", line.OwnID, line.PeerID)
			}
		default:
			t.Errorf("a request failed: %+v", line)
		}
		return len(servers) > 2 && len(clients) > 2
	})
}

// appendNew appends a serial that differs from the one before. One that comes
// back is a rollback, and counts as well: it is in the list twice.
func appendNew(serials []string, serial string) []string {
	if len(serials) > 0 && serials[len(serials)-1] == serial {
		return serials
	}
	return append(serials, serial)
}

// runPair runs a server on one node and a client, which calls it without end,
// on the other.
func runPair(ctx context.Context, t *testing.T, ns, serverSource, clientSource string) (server, client *corev1.Pod) {
	t.Helper()
	newServiceAccount(ctx, t, ns, "server")
	newServiceAccount(ctx, t, ns, "client")
	server = runPod(ctx, t, ns, podSpec{Name: "server", ServiceAccount: "server", Node: nodeOne, Args: []string{
		"serve", "--source=" + serverSource, "--listen=:8443", "--peer=" + spiffeID(ns, "client"),
	}})
	client = runPod(ctx, t, ns, podSpec{Name: "client", ServiceAccount: "client", Node: nodeTwo, Args: []string{
		"call", "--source=" + clientSource, "--url=https://" + server.Status.PodIP + ":8443/",
		"--interval=500ms", "--peer=" + spiffeID(ns, "server"),
	}})
	return server, client
}

// A client with a valid identity that the server does not expect is refused in
// the handshake, and a server that the client does not expect as well.
func testAWrongIdentityIsRefused(t *testing.T) {
	t.Parallel()
	ctx := needCluster(t, testTimeout)
	ns := newNamespace(ctx, t)
	for _, name := range []string{"server", "client", "intruder"} {
		newServiceAccount(ctx, t, ns, name)
	}
	server := runPod(ctx, t, ns, podSpec{Name: "server", ServiceAccount: "server", Args: []string{
		"serve", "--peer=" + spiffeID(ns, "client"),
	}})
	call := func(name, serviceAccount, peer string, more ...string) {
		t.Helper()
		createPod(ctx, t, ns, podSpec{Name: name, ServiceAccount: serviceAccount, Args: append([]string{
			"call", "--url=https://" + server.Status.PodIP + ":8443/", "--interval=100ms", "--count=5", "--peer=" + spiffeID(ns, peer),
		}, more...)})
	}
	call("welcome", "client", "server")
	call("intruder", "intruder", "server", "--expect-refused")
	call("deceived", "client", "intruder", "--expect-refused")
	for _, name := range []string{"welcome", "intruder", "deceived"} {
		waitPod(ctx, t, ns, name, "to succeed", func(pod *corev1.Pod) error {
			switch pod.Status.Phase {
			case corev1.PodSucceeded:
				return nil
			case corev1.PodFailed:
				return install.Never(errors.New("it has failed"))
			}
			return fmt.Errorf("it is %s", pod.Status.Phase)
		})
	}
}

// A stream is told of each rotation, and the files change with it: what the
// socket says is what the files hold. A reader that opens files again and again
// never meets a key without its certificate.
func testRotationReachesStreamAndFiles(t *testing.T) {
	t.Parallel()
	ctx := needCluster(t, rotationTimeout)
	ns := newNamespace(ctx, t)
	pod := runPod(ctx, t, ns, podSpec{Name: "holder", Args: []string{"hold"}, Change: func(pod *corev1.Pod) {
		reader := pod.Spec.Containers[0].DeepCopy()
		reader.Name, reader.Args = "reader", []string{"read", "--count=20000", "--spread=" + (svidLife + svidLife/2).String()}
		pod.Spec.Containers = append(pod.Spec.Containers, *reader)
	}})
	var serials []string
	var last said
	follow(ctx, t, pod, func(line said) bool {
		if line.Event != "update" {
			t.Errorf("the stream broke: %+v", line)
			return false
		}
		// A root that a test before has brought, and that has expired, is news too.
		if line.OwnSerial == last.OwnSerial && slices.Equal(line.Roots, last.Roots) {
			t.Errorf("the stream repeated itself: %+v", line)
		}
		last, serials = line, appendNew(serials, line.OwnSerial)
		return len(serials) == 3
	})
	checkFiles(ctx, t, pod, spiffeID(ns, "default"), serials[2])
	waitPod(ctx, t, ns, pod.Name, "to have read its files", func(pod *corev1.Pod) error {
		for _, status := range pod.Status.ContainerStatuses {
			if end := status.State.Terminated; status.Name == "reader" && end != nil {
				if end.ExitCode != 0 {
					return install.Never(fmt.Errorf("the reader failed with exit code %d", end.ExitCode))
				}
				return nil
			}
		}
		return errors.New("the reader is at work")
	})
}

// issuances records the CertificateRequests that appear in a namespace.
type issuances struct {
	mu    sync.Mutex
	names map[types.UID]string
	stop  func()
}

// recordIssuances begins to record; what is there already is recorded too.
func recordIssuances(ctx context.Context, t *testing.T, ns string) *issuances {
	t.Helper()
	requests := env.CertManager.CertmanagerV1().CertificateRequests(ns)
	existing, err := requests.List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r := &issuances{names: map[types.UID]string{}}
	r.note(existing.Items...)
	// A watch that breaks is taken up where it broke: an API server that was
	// away must not make requests go unnoticed.
	w, err := watchtools.NewRetryWatcherWithContext(ctx, existing.ResourceVersion, &cache.ListWatch{
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return requests.Watch(ctx, o)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	r.stop = w.Stop
	t.Cleanup(w.Stop)
	go func() {
		for event := range w.ResultChan() {
			if cr, ok := event.Object.(*cmapi.CertificateRequest); ok {
				r.note(*cr)
			}
		}
	}()
	return r
}

func (r *issuances) note(items ...cmapi.CertificateRequest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, cr := range items {
		r.names[cr.UID] = cr.Name
	}
}

// seen lists the requests so far.
func (r *issuances) seen() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for _, name := range r.names {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// Agent killed mid-life: the socket answers again with the same SVID, nothing is
// issued for it, streams were told Unavailable, and files rotate on schedule.
func testAKilledAgentComesBackWithTheSameSVIDs(t *testing.T) {
	ctx := needCluster(t, rotationTimeout)
	ns := newNamespace(ctx, t)
	pod := runPod(ctx, t, ns, podSpec{Name: "app", Node: nodeOne})
	before := fetch(ctx, t, pod)
	issued := recordIssuances(ctx, t, ns)
	stream := openStream(ctx, t, node(ctx, t, nodeOne).podSocket(t, pod))

	restartAgent(ctx, t, func(process *os.Process, _ *corev1.Pod) error { return process.Signal(syscall.SIGKILL) })
	if code := endOf(t, stream); code != codes.Unavailable {
		t.Errorf("the stream of a killed agent ended with %s, want Unavailable", code)
	}
	after := fetch(ctx, t, pod)
	checkUnchanged(t, before, after, issued)
	checkRotatesOn(ctx, t, pod, after.Serial)
}

// Agent told to stop and replaced, as a DaemonSet's update does.
func testAReplacedAgentServesTheSameSVIDs(t *testing.T) {
	ctx := needCluster(t, rotationTimeout)
	ns := newNamespace(ctx, t)
	pod := runPod(ctx, t, ns, podSpec{Name: "app", Node: nodeOne})
	before := fetch(ctx, t, pod)
	issued := recordIssuances(ctx, t, ns)
	stream := openStream(ctx, t, node(ctx, t, nodeOne).podSocket(t, pod))

	old := mustAgentOn(ctx, t, nodeOne)
	deletePod(ctx, t, old)
	if code := endOf(t, stream); code != codes.Unavailable {
		t.Errorf("the stream of a stopped agent ended with %s, want Unavailable", code)
	}
	if err := env.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	after := fetch(ctx, t, pod)
	checkUnchanged(t, before, after, issued)
	// The mounts must be the ones that the new agent writes to.
	checkRotatesOn(ctx, t, pod, after.Serial)
}

func checkUnchanged(t *testing.T, before, after fetched, issued *issuances) {
	t.Helper()
	if time.Until(before.NotAfter) < svidLife/3 {
		t.Logf("the restart took so long that a renewal was due: not comparing serials")
		return
	}
	if after.Serial != before.Serial {
		t.Errorf("the serial was %s and is %s, want the same", before.Serial, after.Serial)
	}
	if got := issued.seen(); len(got) > 0 {
		t.Errorf("the restart made CertificateRequests %q, want none", got)
	}
}

// checkRotatesOn waits until the files hold another SVID than the given one.
func checkRotatesOn(ctx context.Context, t *testing.T, pod *corev1.Pod, serial string) {
	t.Helper()
	out := mustExecute(ctx, t, pod, "hold", "--source=files", "--updates=2")
	var serials []string
	for line := range strings.Lines(string(out)) {
		update := decodeJSON[said](t, []byte(line))
		if update.Event == "update" {
			serials = append(serials, update.OwnSerial)
		}
	}
	if len(serials) < 2 || serials[1] == serial {
		t.Fatalf("the files had serials %q after %s, want a new one", serials, serial)
	}
	checkFiles(ctx, t, pod, spiffeID(pod.Namespace, "default"), fetch(ctx, t, pod).Serial)
}

// restartAgent ends the agent on node one in place and waits until its
// container is ready again.
func restartAgent(ctx context.Context, t *testing.T, end func(*os.Process, *corev1.Pod) error) {
	t.Helper()
	agent := mustAgentOn(ctx, t, nodeOne)
	restarts := agent.Status.ContainerStatuses[0].RestartCount
	if err := end(agentProcess(ctx, t, agent), agent); err != nil {
		t.Fatalf("end the agent: %v", err)
	}
	waitPod(ctx, t, agent.Namespace, agent.Name, "to be restarted and ready", func(pod *corev1.Pod) error {
		status := pod.Status.ContainerStatuses[0]
		if status.RestartCount > restarts && status.Ready {
			return nil
		}
		return fmt.Errorf("it has %d restarts, had %d; ready: %t", status.RestartCount, restarts, status.Ready)
	})
}

// agentProcess waits until the API server tells of an agent's present container, and
// returns its process: after a restart it tells of the one before for a moment.
func agentProcess(ctx context.Context, t *testing.T, agent *corev1.Pod) *os.Process {
	t.Helper()
	var process *os.Process
	waitPod(ctx, t, agent.Namespace, agent.Name, "to show the container that runs", func(pod *corev1.Pod) (err error) {
		process, err = findAgentProcess(pod)
		return err
	})
	return process
}

// findAgentProcess finds the one process of an agent's container: the program of
// that name in a cgroup of the container's.
func findAgentProcess(agent *corev1.Pod) (*os.Process, error) {
	if len(agent.Status.ContainerStatuses) == 0 {
		return nil, errors.New("it has no container yet")
	}
	_, container, ok := strings.Cut(agent.Status.ContainerStatuses[0].ContainerID, "://")
	if !ok || container == "" {
		return nil, errors.New("its container has no ID yet")
	}
	found, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		return nil, err
	}
	for _, path := range found {
		groups, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(groups), container) {
			continue // ended meanwhile, or another's
		}
		dir := filepath.Dir(path)
		name, err := os.ReadFile(filepath.Join(dir, "comm"))
		if err != nil || strings.TrimSpace(string(name)) != install.AgentName {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			return nil, err
		}
		return os.FindProcess(pid)
	}
	return nil, fmt.Errorf("no process of container %s is %s", container, install.AgentName)
}

// API server down when the agent starts: existing volumes and sockets are
// served, a publish of a published volume is answered, and when the server is
// back, rotation goes on.
func testAnAgentWithoutAPIServerServesWhatItHas(t *testing.T) {
	ctx := needCluster(t, rotationTimeout)
	ns := newNamespace(ctx, t)
	n := node(ctx, t, nodeOne)
	pod := runPod(ctx, t, ns, podSpec{Name: "app", Node: nodeOne})
	handle := n.volumeHandle(t, pod)
	before := fetch(ctx, t, pod)
	agent := mustAgentOn(ctx, t, nodeOne)
	process := agentProcess(ctx, t, agent)
	conn := n.podSocket(t, pod)
	stream := openStream(ctx, t, conn)

	const server = "kube-apiserver"
	if err := env.cluster.StopComponent(ctx, server, ""); err != nil {
		t.Fatal(err)
	}
	running := false
	start := func() {
		if running {
			return
		}
		running = true
		if err := env.cluster.StartComponent(context.WithoutCancel(ctx), server, ""); err != nil {
			t.Errorf("start the API server again: %v", err)
		}
	}
	defer start()
	if err := process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if code := endOf(t, stream); code != codes.Unavailable {
		t.Errorf("the stream ended with %s, want Unavailable", code)
	}
	// kubelet restarts the container by itself. gRPC connects again when the
	// socket does.
	svid := waitSocket(ctx, t, n, pod)
	if svid != before.Serial {
		t.Errorf("without API server the socket serves serial %s, want %s", svid, before.Serial)
	}
	if _, err := n.driver(t).NodePublishVolume(ctx, publishRequest(pod, handle, filepath.Join(volumeDir(pod), "mount"))); err != nil {
		t.Errorf("publish of a published volume without API server: %v", err)
	}
	if got := n.mountsWith(t, volumeDir(pod)); len(got) != 1 {
		t.Errorf("the volume is mounted %d times, want once", len(got))
	}
	start()
	waitAPIServer(ctx, t)
	checkRotatesOn(ctx, t, pod, before.Serial)
	if err := env.WaitReady(ctx); err != nil {
		t.Error(err)
	}
}

// Approver down when a pod starts: the pod waits, its Events say what for, and
// it starts when the approver is back, by the request it made before.
func testAPodWaitsForTheApprover(t *testing.T) {
	ctx := needCluster(t, rotationTimeout)
	ns := newNamespace(ctx, t)
	issued := recordIssuances(ctx, t, ns)
	scale := scaleApprover(ctx, t, 0)
	defer scaleApprover(context.WithoutCancel(ctx), t, scale)
	err := install.AwaitNone(ctx, install.Selection{
		Client: env.Kube.CoreV1().RESTClient(), Resource: "pods", Namespace: install.Namespace, What: "the approvers to be gone",
	}, func(pod *corev1.Pod) bool { return strings.HasPrefix(pod.Name, install.ApproverName) })
	if err != nil {
		t.Fatal(err)
	}
	pod := createPod(ctx, t, ns, podSpec{Name: "app"})
	event := waitEvent(ctx, t, pod, "approval")
	t.Logf("the pod's Event says: %s", event.Message)
	scaleApprover(ctx, t, scale)
	began := time.Now()
	waitPod(ctx, t, ns, "app", "to be ready", readyOrNot)
	t.Logf("ready %s after the approver was started", time.Since(began).Round(time.Millisecond))
	if got := issued.seen(); len(got) != 1 {
		t.Errorf("the mount took CertificateRequests %q, want one", got)
	}
	if err := env.WaitReady(ctx); err != nil {
		t.Error(err)
	}
}

// scaleApprover sets how many approvers run and returns how many did.
func scaleApprover(ctx context.Context, t *testing.T, replicas int32) (before int32) {
	t.Helper()
	deployments := env.Kube.AppsV1().Deployments(install.Namespace)
	scale, err := deployments.GetScale(ctx, install.ApproverName, metav1.GetOptions{})
	if err != nil {
		t.Fatalf("scale the approver: %v", err)
	}
	before = scale.Spec.Replicas
	_, err = deployments.UpdateScale(ctx, install.ApproverName, &autoscalingv1.Scale{
		ObjectMeta: metav1.ObjectMeta{Name: install.ApproverName, Namespace: install.Namespace},
		Spec:       autoscalingv1.ScaleSpec{Replicas: replicas},
	}, metav1.UpdateOptions{})
	if err != nil {
		t.Fatalf("scale the approver: %v", err)
	}
	return before
}
