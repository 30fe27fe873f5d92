// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/signet-spiffe/signet/integration/install"
	"github.com/signet-spiffe/signet/internal/request"
)

// What deploy/pod-environment gives to pods.
const (
	environmentLabel  = request.Prefix + "pod-environment"
	environmentVolume = "signet-spiffe"
	environmentSince  = "1.36.0"
)

// environmentPod is a labelled pod that says nothing of an identity.
func environmentPod(name string, change func(*corev1.Pod)) podSpec {
	return podSpec{Name: name, NoVolume: true, Change: func(pod *corev1.Pod) {
		pod.Labels = map[string]string{environmentLabel: "enabled"}
		pod.Spec.SecurityContext = nil // No fsGroup: nothing but the socket is needed.
		if change != nil {
			change(pod)
		}
	}}
}

// The component deploy/pod-environment: a labelled pod has its identity from the
// variable alone. Its subtests look at what the API server makes of pods, mostly
// without running them.
func testPodEnvironment(t *testing.T) {
	t.Parallel()
	ctx := needCluster(t, 2*testTimeout)
	needPodEnvironment(ctx, t)
	run(t, []part{
		{"a labelled pod starts with its identity", testALabelledPodStartsWithItsIdentity},
		{"pods are completed or left alone", testPodsAreCompletedOrLeftAlone},
		{"a container that joins sees the socket", testAContainerThatJoinsSeesTheSocket},
		{"a volume of that name that is none of the driver's is refused", testAVolumeOfThatNameIsRefused},
	})
}

// needPodEnvironment installs the component with kubectl, as its README says, and
// waits until it works.
func needPodEnvironment(ctx context.Context, t *testing.T) {
	t.Helper()
	server, err := env.Kube.Discovery().ServerVersion()
	if err != nil {
		t.Fatal(err)
	}
	policies, err := env.Kube.Discovery().ServerResourcesForGroupVersion("admissionregistration.k8s.io/v1")
	if err != nil {
		t.Fatal(err)
	}
	served := false
	for _, r := range policies.APIResources {
		served = served || r.Kind == "MutatingAdmissionPolicy"
	}
	is := version.MustParseGeneric(server.GitVersion)
	if promised := is.AtLeast(version.MustParseGeneric(environmentSince)); served != promised {
		t.Fatalf("Kubernetes %s serves MutatingAdmissionPolicy v1: %t; deploy/README.md says since %s", is, served, environmentSince)
	}
	if !served {
		t.Skipf("Kubernetes %s does not serve MutatingAdmissionPolicy v1, which deploy/pod-environment consists of; %s does", is, environmentSince)
	}
	folder := filepath.Join("..", "..", "deploy", "pod-environment")
	kubectl(ctx, t, "apply", "-k", folder)
	t.Cleanup(func() { kubectl(context.WithoutCancel(ctx), t, "delete", "-k", folder) })
	ns := newNamespace(ctx, t)
	waitServiceAccount(ctx, t, ns, "default")
	// API servers do not tell when a policy has reached them; asking is all there
	// is.
	var last error
	err = wait.PollUntilContextCancel(ctx, 100*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		var pod *corev1.Pod
		pod, last = admit(ctx, ns, environmentPod("asks", nil))
		return last == nil && len(pod.Spec.Volumes) > 0 && volumeOf(pod, environmentVolume) != nil, nil
	})
	if err != nil {
		t.Fatalf("the policy does not take effect: %v, %v", context.Cause(ctx), last)
	}
}

// kubectl runs the cluster's own.
func kubectl(ctx context.Context, t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(ctx, env.cluster.Binaries()["kubectl"], args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+env.cluster.Kubeconfig())
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("kubectl %s: %v: %s", strings.Join(args, " "), err, stderr.Bytes())
	}
	return stdout.String()
}

// admit has the API server take a pod in and forget it.
func admit(ctx context.Context, ns string, s podSpec) (*corev1.Pod, error) {
	return env.Kube.CoreV1().Pods(ns).Create(ctx, s.pod(), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
}

func volumeOf(pod *corev1.Pod, name string) *corev1.Volume {
	for i := range pod.Spec.Volumes {
		if pod.Spec.Volumes[i].Name == name {
			return &pod.Spec.Volumes[i]
		}
	}
	return nil
}

// A labelled pod of two containers and two init containers, one of them a sidecar,
// runs as somebody who may read no file of the volume: each has the pod's SVID by
// go-spiffe, which knows nothing but the variable.
func testALabelledPodStartsWithItsIdentity(t *testing.T) {
	t.Parallel()
	ctx := needCluster(t, testTimeout)
	ns := newNamespace(ctx, t)
	pod := runPod(ctx, t, ns, environmentPod("app", func(pod *corev1.Pod) {
		first, sidecar, second := pod.Spec.Containers[0].DeepCopy(), pod.Spec.Containers[0].DeepCopy(), pod.Spec.Containers[0].DeepCopy()
		first.Name, first.Args = "first", []string{"fetch"}
		sidecar.Name, sidecar.RestartPolicy = "sidecar", ptr(corev1.ContainerRestartPolicyAlways)
		second.Name = "second"
		second.Env = []corev1.EnvVar{{Name: "OTHER", Value: "stays"}}
		second.VolumeMounts = []corev1.VolumeMount{{Name: "other", MountPath: "/other"}}
		pod.Spec.Volumes = []corev1.Volume{{Name: "other", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
		pod.Spec.InitContainers = []corev1.Container{*first, *sidecar}
		pod.Spec.Containers = append(pod.Spec.Containers, *second)
	}))
	log, err := env.Kube.CoreV1().Pods(ns).GetLogs("app", &corev1.PodLogOptions{Container: "first"}).DoRaw(ctx)
	if err != nil {
		t.Fatal(err)
	}
	want := decodeJSON[fetched](t, log)
	if want.ID != spiffeID(ns, "default") || want.Attempts != 1 {
		t.Errorf("the init container got %+v, want %s at the first try", want, spiffeID(ns, "default"))
	}
	for _, container := range []string{"app", "second", "sidecar"} {
		out, err := execute(ctx, pod, container, "fetch")
		if err != nil {
			t.Errorf("%s: %v", container, err)
			continue
		}
		if got := decodeJSON[fetched](t, out); got.ID != want.ID || got.Serial != want.Serial {
			t.Errorf("%s got %s with serial %s, the init container got %s with %s", container, got.ID, got.Serial, want.ID, want.Serial)
		}
	}
	// The socket is all there is: no file, and so no key.
	names := list(ctx, t, pod, mountPath)
	delete(names, ".")
	if len(names) != 1 || names["spiffe.sock"].Type != "socket" {
		t.Errorf("the volume holds %+v, want the socket alone", names)
	}
}

// completed is what of a pod the policy may change: its volumes as "name driver
// delivery", and the variables and mounts of each container.
type completed struct {
	Volumes    []string
	Containers map[string][]string
}

func summary(pod *corev1.Pod) completed {
	c := completed{Containers: map[string][]string{}}
	for _, v := range pod.Spec.Volumes {
		kind := "other"
		if v.CSI != nil {
			kind = fmt.Sprint(v.CSI.Driver, " ", v.CSI.VolumeAttributes[request.Prefix+"delivery"])
			if v.CSI.ReadOnly == nil || !*v.CSI.ReadOnly {
				kind += " writable"
			}
		} else if v.Projected != nil {
			continue // the token that every pod gets
		}
		c.Volumes = append(c.Volumes, v.Name+" "+kind)
	}
	for _, container := range append(pod.Spec.InitContainers, pod.Spec.Containers...) {
		has := []string{}
		for _, e := range container.Env {
			has = append(has, e.Name+"="+e.Value)
		}
		for _, m := range container.VolumeMounts {
			if strings.HasPrefix(m.MountPath, "/var/run/secrets/kubernetes.io") {
				continue
			}
			mode := ""
			if !m.ReadOnly {
				mode = " writable"
			}
			has = append(has, m.Name+" at "+m.MountPath+mode)
		}
		c.Containers[container.Name] = has
	}
	return c
}

const (
	addedVolume   = environmentVolume + " " + install.DriverName + " socket"
	addedVariable = "SPIFFE_ENDPOINT_SOCKET=" + socketURL
	addedMount    = environmentVolume + " at " + mountPath
)

// What becomes of pods that have some of it already, or anything in the way.
func testPodsAreCompletedOrLeftAlone(t *testing.T) {
	t.Parallel()
	ctx := needCluster(t, testTimeout)
	ns, optedOut := newNamespace(ctx, t), newNamespace(ctx, t)
	patch := fmt.Appendf(nil, `{"metadata":{"labels":{%q:"disabled"}}}`, environmentLabel)
	if _, err := env.Kube.CoreV1().Namespaces().Patch(ctx, optedOut, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	waitServiceAccount(ctx, t, ns, "default")
	waitServiceAccount(ctx, t, optedOut, "default")

	mount := func(i int, name, path string) func(*corev1.Pod) {
		return func(pod *corev1.Pod) {
			c := &pod.Spec.Containers[i]
			c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: name, MountPath: path})
		}
	}
	setVariable := func(value string) func(*corev1.Pod) {
		return func(pod *corev1.Pod) {
			pod.Spec.Containers[0].Env = append(pod.Spec.Containers[0].Env, corev1.EnvVar{Name: "SPIFFE_ENDPOINT_SOCKET", Value: value})
		}
	}
	volume := func(name string, source corev1.VolumeSource) func(*corev1.Pod) {
		return func(pod *corev1.Pod) {
			pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: source})
		}
	}
	second := func(pod *corev1.Pod) {
		c := pod.Spec.Containers[0].DeepCopy()
		c.Name = "second"
		pod.Spec.Containers = append(pod.Spec.Containers, *c)
	}
	driver := func(attributes map[string]string) corev1.VolumeSource {
		return corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: install.DriverName, ReadOnly: ptr(true), VolumeAttributes: attributes}}
	}
	emptyDir := corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}
	all := []string{addedVariable, addedMount}

	tests := map[string]struct {
		namespace string
		changes   []func(*corev1.Pod)
		want      completed
	}{
		"nothing in the way": {want: completed{[]string{addedVolume}, map[string][]string{"app": all}}},
		"no label": {
			changes: []func(*corev1.Pod){func(pod *corev1.Pod) { pod.Labels = nil }},
			want:    completed{nil, map[string][]string{"app": {}}},
		},
		"another value of the label": {
			changes: []func(*corev1.Pod){func(pod *corev1.Pod) { pod.Labels[environmentLabel] = "disabled" }},
			want:    completed{nil, map[string][]string{"app": {}}},
		},
		"a namespace that opted out": {
			namespace: optedOut,
			want:      completed{nil, map[string][]string{"app": {}}},
		},
		"a pod that mounts the driver": {
			changes: []func(*corev1.Pod){second, volume("mine", driver(nil)), mount(0, "mine", "/mine")},
			want: completed{[]string{"mine " + install.DriverName + " "},
				map[string][]string{"app": {"mine at /mine writable"}, "second": {}}},
		},
		"the volume with attributes of the author": {
			changes: []func(*corev1.Pod){volume(environmentVolume, driver(map[string]string{request.Prefix + "delivery": "both"}))},
			want:    completed{[]string{environmentVolume + " " + install.DriverName + " both"}, map[string][]string{"app": all}},
		},
		"a container that has it all": {
			changes: []func(*corev1.Pod){
				second, volume(environmentVolume, driver(map[string]string{request.Prefix + "delivery": "socket"})),
				mount(0, environmentVolume, mountPath), setVariable(socketURL),
			},
			want: completed{[]string{addedVolume}, map[string][]string{"app": all, "second": all}},
		},
		"a container that has the volume elsewhere": {
			changes: []func(*corev1.Pod){second, volume(environmentVolume, driver(nil)), mount(0, environmentVolume, "/elsewhere")},
			want: completed{[]string{environmentVolume + " " + install.DriverName + " "},
				map[string][]string{"app": {environmentVolume + " at /elsewhere writable"}, "second": all}},
		},
		"a container that has something else there": {
			changes: []func(*corev1.Pod){second, volume("scratch", emptyDir), mount(0, "scratch", mountPath)},
			want: completed{[]string{"scratch other", addedVolume},
				map[string][]string{"app": {"scratch at " + mountPath + " writable"}, "second": all}},
		},
		"a container that has something else there, with a slash": {
			changes: []func(*corev1.Pod){volume("scratch", emptyDir), mount(0, "scratch", mountPath+"/")},
			want: completed{[]string{"scratch other", addedVolume},
				map[string][]string{"app": {"scratch at " + mountPath + "/ writable"}}},
		},
		"a variable of the author's": {
			changes: []func(*corev1.Pod){second, setVariable("unix:///somewhere/else.sock")},
			want: completed{[]string{addedVolume},
				map[string][]string{"app": {"SPIFFE_ENDPOINT_SOCKET=unix:///somewhere/else.sock", addedMount}, "second": all}},
		},
		"a variable that is there twice": {
			changes: []func(*corev1.Pod){func(pod *corev1.Pod) {
				pod.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "TWICE", Value: "1"}, {Name: "TWICE", Value: "2"}}
			}},
			want: completed{[]string{addedVolume}, map[string][]string{"app": {"TWICE=1", "TWICE=2", addedVariable, addedMount}}},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			in := test.namespace
			if in == "" {
				in = ns
			}
			spec := environmentPod("app", func(pod *corev1.Pod) {
				for _, change := range test.changes {
					change(pod)
				}
			})
			pod, err := admit(ctx, in, spec)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, summary(pod)); diff != "" {
				t.Errorf("the pod (-want +got):\n%s", diff)
			}
			// What came of it is left as it is: reinvocation adds nothing.
			twice, err := admit(ctx, in, podSpec{Change: func(p *corev1.Pod) {
				p.ObjectMeta, p.Spec = *pod.ObjectMeta.DeepCopy(), *pod.Spec.DeepCopy()
				p.ResourceVersion, p.UID = "", "" // which a new pod must not have
			}})
			if err != nil {
				t.Fatalf("once more: %v", err)
			}
			if diff := cmp.Diff(pod.Spec, twice.Spec); diff != "" {
				t.Errorf("admitted once more (-once +twice):\n%s", diff)
			}
		})
	}
}

// A volume of the policy's name that is something else: there is no identity to be
// had without breaking the pod, and none starts that asked for one.
func testAVolumeOfThatNameIsRefused(t *testing.T) {
	t.Parallel()
	ctx := needCluster(t, testTimeout)
	ns := newNamespace(ctx, t)
	waitServiceAccount(ctx, t, ns, "default")
	_, err := admit(ctx, ns, environmentPod("app", func(pod *corev1.Pod) {
		pod.Spec.Volumes = []corev1.Volume{{Name: environmentVolume, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
	}))
	if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "may not specify more than 1 volume type") {
		t.Errorf("the API server says %v, want that the volume may not be of two types", err)
	}
}

// A debug container that joins a labelled pod sees its socket too. One that joined
// without that, which cannot be changed any more, is in nobody's way.
func testAContainerThatJoinsSeesTheSocket(t *testing.T) {
	t.Parallel()
	ctx := needCluster(t, testTimeout)
	ns := newNamespace(ctx, t)
	pod := runPod(ctx, t, ns, environmentPod("app", nil))
	want := fetch(ctx, t, pod)

	setEnvironmentLabel(ctx, t, pod, "disabled")
	pod = join(ctx, t, pod, "debug-1")
	if c := pod.Spec.EphemeralContainers[0]; len(c.Env) != 0 || len(c.VolumeMounts) != 0 {
		t.Errorf("without the label the debug container got %v and %v", c.Env, c.VolumeMounts)
	}
	setEnvironmentLabel(ctx, t, pod, "enabled")
	pod = join(ctx, t, pod, "debug-2")
	out, err := execute(ctx, pod, "debug-2", "fetch")
	if err != nil {
		t.Fatal(err)
	}
	if got := decodeJSON[fetched](t, out); got.ID != want.ID || got.Serial != want.Serial {
		t.Errorf("debug-2 got %s with serial %s, the pod has %s with %s", got.ID, got.Serial, want.ID, want.Serial)
	}

	// A labelled pod without the volume, which cannot get it any more.
	plain := runPod(ctx, t, ns, podSpec{Name: "plain"})
	setEnvironmentLabel(ctx, t, plain, "enabled")
	plain = join(ctx, t, plain, "debug-1")
	if c := plain.Spec.EphemeralContainers[0]; len(c.Env) != 0 || len(c.VolumeMounts) != 0 {
		t.Errorf("the debug container of a pod without the volume got %v and %v", c.Env, c.VolumeMounts)
	}
}

func setEnvironmentLabel(ctx context.Context, t *testing.T, pod *corev1.Pod, value string) {
	t.Helper()
	patch := fmt.Appendf(nil, `{"metadata":{"labels":{%q:%q}}}`, environmentLabel, value)
	if _, err := env.Kube.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

// join does what `kubectl debug` does, and waits until the container runs.
func join(ctx context.Context, t *testing.T, pod *corev1.Pod, name string) *corev1.Pod {
	t.Helper()
	container := corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon{
		Name: name, Image: install.SampleImage, ImagePullPolicy: corev1.PullIfNotPresent, Args: []string{"wait"},
	}}
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"ephemeralContainers": []corev1.EphemeralContainer{container}}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = env.Kube.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "ephemeralcontainers")
	if err != nil {
		t.Fatalf("join %s to pod %s: %v", name, pod.Name, err)
	}
	return waitPod(ctx, t, pod.Namespace, pod.Name, "to have "+name+" running", func(pod *corev1.Pod) error {
		for _, s := range pod.Status.EphemeralContainerStatuses {
			if s.Name == name && s.State.Running != nil {
				return nil
			}
		}
		return fmt.Errorf("its debug containers are %+v", pod.Status.EphemeralContainerStatuses)
	})
}
