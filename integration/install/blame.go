// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// blame lists Signet's own pods that are not ready, with why and their last
// words.
func (in *Installer) blame(ctx context.Context, namespace string) error {
	pods, err := in.Kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("look for the pod to blame: %w", err)
	}
	if len(pods.Items) == 0 {
		return fmt.Errorf("namespace %s has no pods", namespace)
	}
	var errs []error
	for i := range pods.Items {
		if pod := &pods.Items[i]; !Ready(pod) {
			errs = append(errs, errors.New(in.Describe(ctx, pod)))
		}
	}
	return errors.Join(errs...)
}

// Ready reports whether a pod is ready.
func Ready(pod *corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// Describe says in some lines how a pod is: its phase, what its containers wait
// for, its events and the end of its logs. What cannot be read is said so.
func (in *Installer) Describe(ctx context.Context, pod *corev1.Pod) string {
	var out strings.Builder
	fmt.Fprintf(&out, "pod %s/%s on node %q is %s", pod.Namespace, pod.Name, pod.Spec.NodeName, pod.Status.Phase)
	if pod.Status.Message != "" {
		fmt.Fprintf(&out, " (%s)", pod.Status.Message)
	}
	out.WriteString("\n")
	for _, status := range append(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses...) {
		fmt.Fprintf(&out, "  container %s: %s, %d restarts\n", status.Name, containerState(status), status.RestartCount)
		out.WriteString(in.lastWords(ctx, pod, status))
	}
	out.WriteString(in.eventsOf(ctx, pod))
	return strings.TrimRight(out.String(), "\n")
}

func containerState(s corev1.ContainerStatus) string {
	switch {
	case s.State.Waiting != nil:
		return strings.TrimSpace("waiting: " + s.State.Waiting.Reason + " " + s.State.Waiting.Message)
	case s.State.Terminated != nil:
		return fmt.Sprintf("ended: %s, exit code %d %s", s.State.Terminated.Reason, s.State.Terminated.ExitCode, s.State.Terminated.Message)
	case s.State.Running != nil && s.Ready:
		return "running"
	case s.State.Running != nil:
		return "running, not ready"
	}
	return "unknown"
}

const lastLines = 12

func (in *Installer) lastWords(ctx context.Context, pod *corev1.Pod, status corev1.ContainerStatus) string {
	lines := int64(lastLines)
	options := &corev1.PodLogOptions{Container: status.Name, TailLines: &lines}
	// A container between two starts has its words in the log before.
	options.Previous = status.State.Waiting != nil && status.RestartCount > 0
	log, err := in.Kube.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, options).DoRaw(ctx)
	if err != nil {
		return fmt.Sprintf("    (no log: %v)\n", err)
	}
	return indent(string(log))
}

func (in *Installer) eventsOf(ctx context.Context, pod *corev1.Pod) string {
	events, err := in.Kube.CoreV1().Events(pod.Namespace).List(ctx, metav1.ListOptions{
		FieldSelector: "involvedObject.uid=" + string(pod.UID),
	})
	if err != nil {
		return fmt.Sprintf("  (no events: %v)\n", err)
	}
	var out strings.Builder
	for i := range events.Items {
		e := &events.Items[i]
		fmt.Fprintf(&out, "  event %s (%d times): %s\n", e.Reason, max(e.Count, 1), e.Message)
	}
	return out.String()
}

func indent(text string) string {
	var out strings.Builder
	for line := range strings.Lines(text) {
		out.WriteString("    | " + strings.TrimRight(line, "\n") + "\n")
	}
	return out.String()
}
