// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/signet-spiffe/signet/integration/install"
)

// appUser runs the app, and who may look through its /proc/1/root.
const appUser = 10001

// The recipes of docs/cli.md: signet-agent in a debug container beside an app
// that has no shell, in a pod without any privilege.
func testADebugContainerSeesWhatTheAppIsTold(t *testing.T) {
	t.Parallel()
	ctx := needCluster(t, testTimeout)
	ns := newNamespace(ctx, t)
	pod := runPod(ctx, t, ns, podSpec{Name: "app", Node: nodeOne, Change: func(pod *corev1.Pod) {
		pod.Spec.Containers[0].SecurityContext = unprivileged(appUser)
	}})
	id := spiffeID(ns, "default")

	inTarget := debugger("in-target", "healthcheck", "-verbose")
	inTarget.TargetContainerName = "app"
	inTarget.SecurityContext = unprivileged(appUser)

	fetching := debugger("fetching", "api", "fetch", "x509", "-socketPath", "/proc/1/root"+mountPath+"/spiffe.sock")
	fetching.TargetContainerName = "app"
	fetching.SecurityContext = unprivileged(appUser)

	another := debugger("another", "api", "fetch", "-socketPath", "/proc/1/root"+mountPath+"/spiffe.sock")
	another.TargetContainerName = "app"
	another.SecurityContext = unprivileged(appUser + 1)

	withVolume := debugger("with-volume", "api", "fetch", "-output", "json")
	withVolume.SecurityContext = unprivileged(appUser + 1)
	withVolume.VolumeMounts = []corev1.VolumeMount{{Name: volumeName, MountPath: mountPath, ReadOnly: true}}

	pod.Spec.EphemeralContainers = []corev1.EphemeralContainer{inTarget, fetching, another, withVolume}
	if _, err := env.Kube.CoreV1().Pods(ns).UpdateEphemeralContainers(ctx, pod.Name, pod, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	// As docs/cli.md has it, with kubectl.
	kubectlDebug(ctx, t, pod, "kubectl-target", `{"securityContext":{"runAsUser":10001}}`, "--target=app")
	kubectlDebug(ctx, t, pod, "kubectl-volume", `{"securityContext":{"runAsUser":10002},"volumeMounts":[{"name":"`+volumeName+`","mountPath":"`+mountPath+`","readOnly":true}]}`)
	for name, want := range map[string]struct {
		code int32
		says string
	}{
		"kubectl-target": {0, "SPIFFE ID:\t\t" + id + "\n"},
		"kubectl-volume": {0, "SPIFFE ID:\t\t" + id + "\n"},
		"in-target":      {0, "Agent is healthy."},
		"fetching":       {0, "SPIFFE ID:\t\t" + id + "\n"},
		"another":        {1, fmt.Sprintf("user %d may not connect", appUser+1)},
		"with-volume":    {0, `"spiffe_id":"` + id + `"`},
	} {
		code, says := ended(ctx, t, pod, name)
		if code != want.code || !strings.Contains(says, want.says) {
			t.Errorf("%s ended with %d and said %q, want %d and %q", name, code, says, want.code, want.says)
		}
		if strings.Contains(says, "PRIVATE KEY") || strings.Contains(says, `"x509_svid_key":"M`) {
			t.Errorf("%s says a key", name)
		}
	}
}

// kubectlDebug has kubectl add a debug container that runs "signet-agent api fetch",
// which finds the socket by itself.
func kubectlDebug(ctx context.Context, t *testing.T, pod *corev1.Pod, name, custom string, more ...string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "custom.json")
	if err := os.WriteFile(file, []byte(custom), 0o600); err != nil {
		t.Fatal(err)
	}
	args := append([]string{
		"--kubeconfig", env.cluster.Kubeconfig(), "debug", "-n", pod.Namespace, pod.Name, "-c", name, "--profile=restricted",
		"--image=" + install.AgentImage, "--image-pull-policy=IfNotPresent", "--custom=" + file,
	}, more...)
	out, err := exec.CommandContext(ctx, env.cluster.Binaries()["kubectl"], append(args, "--", "/signet-agent", "api", "fetch")...).CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl debug: %v: %s", err, out)
	}
}

// unprivileged is what the restricted profile of pod security asks for.
func unprivileged(uid int64) *corev1.SecurityContext {
	return &corev1.SecurityContext{
		RunAsUser: &uid, RunAsNonRoot: ptr(true), AllowPrivilegeEscalation: ptr(false),
		Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
}

// debugger is a debug container that runs a command of signet-agent.
func debugger(name string, args ...string) corev1.EphemeralContainer {
	return corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon{
		Name: name, Image: install.AgentImage, ImagePullPolicy: corev1.PullIfNotPresent,
		Command: append([]string{"/signet-agent"}, args...),
	}}
}

// ended waits until a debug container has ended, and returns its exit code and
// output.
func ended(ctx context.Context, t *testing.T, pod *corev1.Pod, name string) (code int32, output string) {
	t.Helper()
	waitPod(ctx, t, pod.Namespace, pod.Name, "to have run "+name, func(pod *corev1.Pod) error {
		for _, status := range pod.Status.EphemeralContainerStatuses {
			if end := status.State.Terminated; status.Name == name && end != nil {
				code = end.ExitCode
				return nil
			}
		}
		return fmt.Errorf("debug container %s has not ended", name)
	})
	log, err := env.Kube.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, &corev1.PodLogOptions{Container: name}).DoRaw(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return code, string(log)
}
