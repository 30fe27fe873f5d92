// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"

	"github.com/signet-spiffe/signet/integration/install"
)

const (
	mountPath  = "/var/run/secrets/spiffe.io"
	volumeName = "spiffe"
	socketURL  = "unix://" + mountPath + "/spiffe.sock"
	nodeOne    = "node-1"
	nodeTwo    = "node-2"
)

// needCluster skips a test when there is no cluster, and gives it the time that
// one test may take.
func needCluster(t *testing.T, timeout time.Duration) context.Context {
	t.Helper()
	if env.skipped != "" {
		t.Skip(env.skipped)
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), timeout, fmt.Errorf("not within %s", timeout))
	t.Cleanup(cancel)
	return ctx
}

var namespaces atomic.Int32

// newNamespace makes a namespace for one test. Like every namespace of such a
// cluster it has a default service account; pods wait for that themselves.
func newNamespace(ctx context.Context, t *testing.T) string {
	t.Helper()
	name := fmt.Sprintf("e2e-%d", namespaces.Add(1))
	_, err := env.Kube.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: name, Annotations: map[string]string{"test": t.Name()},
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("create namespace: %v", err)
	}
	t.Cleanup(func() {
		// A failed test's namespace stays, so that its pods are in the logs.
		if t.Failed() {
			return
		}
		if err := env.Kube.CoreV1().Namespaces().Delete(context.WithoutCancel(ctx), name, metav1.DeleteOptions{}); err != nil {
			t.Errorf("delete namespace: %v", err)
		}
	})
	return name
}

func newServiceAccount(ctx context.Context, t *testing.T, ns, name string) {
	t.Helper()
	_, err := env.Kube.CoreV1().ServiceAccounts(ns).Create(ctx,
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("create service account: %v", err)
	}
}

// podSpec is what tests choose of a pod. The zero value but for Name is a pod
// that mounts the driver's volume, runs `sample wait` and may run anywhere.
type podSpec struct {
	Name, ServiceAccount, Node string
	Args                       []string
	// Driver of the volume; empty is the standard installation's.
	Driver string
	// Attributes of the volume.
	Attributes map[string]string
	// NoVolume makes a pod that does not mount the driver.
	NoVolume bool
	// Change, if set, is the last to touch the pod.
	Change func(*corev1.Pod)
}

func (s podSpec) pod() *corev1.Pod {
	args := s.Args
	if args == nil {
		args = []string{"wait"}
	}
	container := corev1.Container{
		Name: "app", Image: install.SampleImage, ImagePullPolicy: corev1.PullIfNotPresent, Args: args,
	}
	grace := int64(1)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: s.Name},
		Spec: corev1.PodSpec{
			ServiceAccountName:            s.ServiceAccount,
			RestartPolicy:                 corev1.RestartPolicyNever,
			TerminationGracePeriodSeconds: &grace,
			SecurityContext:               &corev1.PodSecurityContext{FSGroup: ptr(int64(65532))},
			Containers:                    []corev1.Container{container},
		},
	}
	if s.Node != "" {
		pod.Spec.NodeSelector = map[string]string{corev1.LabelHostname: s.Node}
	}
	if !s.NoVolume {
		pod.Spec.Volumes = []corev1.Volume{{Name: volumeName, VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{
			Driver: cmp.Or(s.Driver, install.DriverName), ReadOnly: ptr(true), VolumeAttributes: s.Attributes,
		}}}}
		mountIdentity(&pod.Spec.Containers[0])
	}
	if s.Change != nil {
		s.Change(pod)
	}
	return pod
}

func mountIdentity(c *corev1.Container) {
	c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: volumeName, MountPath: mountPath, ReadOnly: true})
	c.Env = append(c.Env, corev1.EnvVar{Name: "SPIFFE_ENDPOINT_SOCKET", Value: socketURL})
}

func ptr[T any](v T) *T { return &v }

// createPod creates a pod and returns at once.
func createPod(ctx context.Context, t *testing.T, ns string, s podSpec) *corev1.Pod {
	t.Helper()
	var pod *corev1.Pod
	// A new namespace is without its default service account for a moment, and
	// the API server refuses pods until then.
	waitServiceAccount(ctx, t, ns, s.ServiceAccount)
	pod, err := env.Kube.CoreV1().Pods(ns).Create(ctx, s.pod(), metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("create pod %s/%s: %v", ns, s.Name, err)
	}
	return pod
}

func waitServiceAccount(ctx context.Context, t *testing.T, ns, name string) {
	t.Helper()
	if err := awaitServiceAccount(ctx, ns, cmp.Or(name, "default")); err != nil {
		t.Fatal(err)
	}
}

func awaitServiceAccount(ctx context.Context, ns, name string) error {
	_, err := install.Await(ctx, install.Selection{
		Client: env.Kube.CoreV1().RESTClient(), Resource: "serviceaccounts", Namespace: ns, Name: name,
		What: "service account " + ns + "/" + name,
	}, func(*corev1.ServiceAccount, bool) error { return nil })
	return err
}

// runPod creates a pod and waits until it is ready.
func runPod(ctx context.Context, t *testing.T, ns string, s podSpec) *corev1.Pod {
	t.Helper()
	createPod(ctx, t, ns, s)
	return waitPod(ctx, t, ns, s.Name, "to be ready", func(pod *corev1.Pod) error {
		if install.Ready(pod) {
			return nil
		}
		if pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded {
			return install.Never(fmt.Errorf("it has ended: %s", pod.Status.Phase))
		}
		return fmt.Errorf("it is %s", pod.Status.Phase)
	})
}

// waitPod waits for a pod by watching it. When it waits in vain, the test ends
// with all there is to know about the pod and about the agent on its node.
func waitPod(ctx context.Context, t *testing.T, ns, name, what string, done func(*corev1.Pod) error) *corev1.Pod {
	t.Helper()
	pod, err := install.Await(ctx, podSelection(ns, name, what), func(pod *corev1.Pod, deleted bool) error {
		if deleted {
			return install.Never(errors.New("it was deleted"))
		}
		return done(pod)
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, describePod(ctx, ns, name))
	}
	return pod
}

func podSelection(ns, name, what string) install.Selection {
	return install.Selection{
		Client: env.Kube.CoreV1().RESTClient(), Resource: "pods", Namespace: ns, Name: name,
		What: fmt.Sprintf("pod %s/%s %s", ns, name, what),
	}
}

// describePod describes a pod and the agent on its node.
func describePod(ctx context.Context, ns, name string) string {
	// The test's time may be what has run out.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
	defer cancel()
	pod, err := env.Kube.CoreV1().Pods(ns).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err.Error()
	}
	out := env.Describe(ctx, pod)
	if pod.Spec.NodeName == "" {
		return out
	}
	agent, err := agentOn(ctx, pod.Spec.NodeName)
	if err != nil {
		return out + "\n" + err.Error()
	}
	return out + "\n" + env.Describe(ctx, agent)
}

// agentOn is the agent's pod on a node.
func agentOn(ctx context.Context, node string) (*corev1.Pod, error) {
	return agentIn(ctx, install.Namespace, node)
}

// agentIn is the agent's pod on a node, of the installation in a namespace.
func agentIn(ctx context.Context, namespace, node string) (*corev1.Pod, error) {
	pods, err := env.Kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + node})
	if err != nil {
		return nil, fmt.Errorf("find the agent on %s: %w", node, err)
	}
	for i := range pods.Items {
		pod := &pods.Items[i]
		owner := metav1.GetControllerOf(pod)
		if owner != nil && owner.Kind == "DaemonSet" && owner.Name == install.AgentName && pod.DeletionTimestamp == nil {
			return pod, nil
		}
	}
	return nil, fmt.Errorf("there is no agent on %s", node)
}

func mustAgentOn(ctx context.Context, t *testing.T, node string) *corev1.Pod {
	t.Helper()
	return mustAgentIn(ctx, t, install.Namespace, node)
}

func mustAgentIn(ctx context.Context, t *testing.T, namespace, node string) *corev1.Pod {
	t.Helper()
	pod, err := agentIn(ctx, namespace, node)
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

// deletePod deletes a pod and waits until it is gone.
func deletePod(ctx context.Context, t *testing.T, pod *corev1.Pod) {
	t.Helper()
	err := env.Kube.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		t.Fatalf("delete pod: %v", err)
	}
	waitGone(ctx, t, pod)
}

func waitGone(ctx context.Context, t *testing.T, pod *corev1.Pod) {
	t.Helper()
	err := install.AwaitNone(ctx, podSelection(pod.Namespace, pod.Name, "to be gone"),
		func(got *corev1.Pod) bool { return got.UID == pod.UID })
	if err != nil {
		t.Fatalf("%v\n%s", err, describePod(ctx, pod.Namespace, pod.Name))
	}
}

// execute runs a command of the sample in a container of a running pod and
// returns what it printed. A command that fails is an error with its words.
func execute(ctx context.Context, pod *corev1.Pod, container string, args ...string) ([]byte, error) {
	return executeCommand(ctx, pod, container, append([]string{"/sample"}, args...)...)
}

// executeCommand is execute for any command.
func executeCommand(ctx context.Context, pod *corev1.Pod, container string, args ...string) ([]byte, error) {
	request := env.Kube.CoreV1().RESTClient().Post().Resource("pods").Namespace(pod.Namespace).Name(pod.Name).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{
			Container: container, Command: args, Stdout: true, Stderr: true,
		}, scheme.ParameterCodec)
	executor, err := remotecommand.NewWebSocketExecutor(env.cluster.RESTConfig(), "GET", request.URL().String())
	if err != nil {
		return nil, fmt.Errorf("exec %v: %w", args, err)
	}
	var stdout, stderr bytes.Buffer
	err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &stdout, Stderr: &stderr})
	if err != nil {
		return stdout.Bytes(), fmt.Errorf("exec %v in %s/%s: %w: %s", args, pod.Namespace, pod.Name, err, strings.TrimSpace(stderr.String()))
	}
	return stdout.Bytes(), nil
}

// mustExecute ends the test when the command fails.
func mustExecute(ctx context.Context, t *testing.T, pod *corev1.Pod, args ...string) []byte {
	t.Helper()
	out, err := execute(ctx, pod, "app", args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, describePod(ctx, pod.Namespace, pod.Name))
	}
	return out
}

// exitedWith reports whether an error of execute is the command's own exit.
func exitedWith(err error) (code int, ok bool) {
	var exit utilexec.CodeExitError
	if errors.As(err, &exit) {
		return exit.Code, true
	}
	return 0, false
}

// fetched is what `sample fetch` prints.
type fetched struct {
	ID       string    `json:"id"`
	Serial   string    `json:"serial"`
	DNSNames []string  `json:"dns_names"`
	NotAfter time.Time `json:"not_after"`
	Attempts int       `json:"attempts"`
	ReadyMS  float64   `json:"ready_ms"`
}

// fetch gets the SVID from the Workload API inside the pod.
func fetch(ctx context.Context, t *testing.T, pod *corev1.Pod) fetched {
	t.Helper()
	return decodeJSON[fetched](t, mustExecute(ctx, t, pod, "fetch"))
}

func decodeJSON[T any](t *testing.T, content []byte) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(content, &v); err != nil {
		t.Fatalf("decode %q: %v", content, err)
	}
	return v
}

// node of the sample's `ls`.
type listed struct {
	Name, Type, Mode, Target string
	UID, GID                 uint32
	Resolved                 *listed
}

func list(ctx context.Context, t *testing.T, pod *corev1.Pod, dir string) map[string]listed {
	t.Helper()
	names := map[string]listed{}
	for _, entry := range decodeJSON[[]listed](t, mustExecute(ctx, t, pod, "ls", dir)) {
		names[entry.Name] = entry
	}
	return names
}

// said is a line of the sample's log.
type said struct {
	Event      string
	OwnID      string `json:"own_id"`
	OwnSerial  string `json:"own_serial"`
	PeerID     string `json:"peer_id"`
	PeerSerial string `json:"peer_serial"`
	Roots      []string
	Code       string
	Error      string
}

// follow reads a container's log line by line, as it is written, until done
// returns true. The end of the log before that ends the test.
func follow(ctx context.Context, t *testing.T, pod *corev1.Pod, done func(said) bool) {
	t.Helper()
	stream, err := env.Kube.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, &corev1.PodLogOptions{Container: "app", Follow: true}).Stream(ctx)
	if err != nil {
		t.Fatalf("read log of %s/%s: %v", pod.Namespace, pod.Name, err)
	}
	defer stream.Close()
	lines := bufio.NewScanner(stream)
	for lines.Scan() {
		var line said
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			continue // not an event: a panic's trace, say, which ends the log
		}
		if done(line) {
			return
		}
	}
	err = lines.Err()
	if err == nil {
		err = io.EOF
	}
	t.Fatalf("log of %s/%s ended too early: %v (%v)\n%s", pod.Namespace, pod.Name, err, context.Cause(ctx), describePod(ctx, pod.Namespace, pod.Name))
}

// waitEvent waits for an Event of the pod whose message contains every one of
// the texts.
func waitEvent(ctx context.Context, t *testing.T, pod *corev1.Pod, texts ...string) *corev1.Event {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Log(describePod(ctx, pod.Namespace, pod.Name))
		}
	}()
	return waitEventOf(ctx, t, pod.Namespace, pod.UID, texts...)
}

func waitEventOf(ctx context.Context, t *testing.T, ns string, uid types.UID, texts ...string) *corev1.Event {
	t.Helper()
	event, err := install.Await(ctx, install.Selection{
		Client: env.Kube.CoreV1().RESTClient(), Resource: "events", Namespace: ns,
		What: fmt.Sprintf("an Event in %s with %q", ns, texts),
	}, func(e *corev1.Event, _ bool) error {
		if e.InvolvedObject.UID != uid {
			return errors.New("Events of other objects")
		}
		for _, text := range texts {
			if !strings.Contains(e.Message, text) {
				return fmt.Errorf("%s: %s", e.Reason, e.Message)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return event
}

// spiffeID is the identity of a service account.
func spiffeID(ns, serviceAccount string) string {
	return "spiffe://" + trustDomain + "/ns/" + ns + "/sa/" + serviceAccount
}
