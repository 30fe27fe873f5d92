// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/signet-spiffe/signet/integration/install"
)

// waitTold waits for an Event on the pod with the reason, and with the texts in
// its message.
func waitTold(ctx context.Context, t *testing.T, pod *corev1.Pod, reason string, texts ...string) *corev1.Event {
	t.Helper()
	event, err := install.Await(ctx, install.Selection{
		Client: env.Kube.CoreV1().RESTClient(), Resource: "events", Namespace: pod.Namespace,
		What: fmt.Sprintf("an Event %s on pod %s/%s with %q", reason, pod.Namespace, pod.Name, texts),
	}, func(e *corev1.Event, _ bool) error {
		if e.InvolvedObject.UID != pod.UID || e.Reason != reason {
			return errors.New("other Events")
		}
		for _, text := range texts {
			if !strings.Contains(e.Message, text) {
				return fmt.Errorf("%s: %s", e.Reason, e.Message)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, describePod(ctx, pod.Namespace, pod.Name))
	}
	if len(event.Message) > 1024 || event.Source.Component != install.AgentName {
		t.Errorf("Event from %s with %d bytes: %s", event.Source.Component, len(event.Message), event.Message)
	}
	return event
}

// told counts the agent's Events on a pod by reason.
func told(ctx context.Context, t *testing.T, pod *corev1.Pod) map[string]int {
	t.Helper()
	list, err := env.Kube.CoreV1().Events(pod.Namespace).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.uid=" + string(pod.UID)})
	if err != nil {
		t.Fatal(err)
	}
	events := map[string]int{}
	for _, e := range list.Items {
		if e.Source.Component == install.AgentName {
			events[e.Reason]++
		}
	}
	return events
}

// Nobody approves a renewal: the pod's owner is told before the SVID expires and
// when it does, once each, also when the agent is killed afterwards; that it was
// issued is told once and not for renewals. When the approver is back, so are the
// renewals.
func testAnExpiryIsToldInTime(t *testing.T) {
	ctx := needCluster(t, rotationTimeout)
	ns := newNamespace(ctx, t)
	pod := runPod(ctx, t, ns, podSpec{Name: "app", Node: nodeOne})
	waitTold(ctx, t, pod, "SVIDIssued", spiffeID(ns, "default"))
	first := fetch(ctx, t, pod)
	checkRotatesOn(ctx, t, pod, first.Serial)

	scale := scaleApprover(ctx, t, 0)
	defer scaleApprover(context.WithoutCancel(ctx), t, scale)
	overdue := waitTold(ctx, t, pod, "SVIDRenewalOverdue", spiffeID(ns, "default"), "approval")
	expired := waitTold(ctx, t, pod, "SVIDExpired", "approval")
	if !overdue.FirstTimestamp.Time.Before(expired.FirstTimestamp.Time) {
		t.Errorf("overdue was told at %s, the expiry at %s", overdue.FirstTimestamp, expired.FirstTimestamp)
	}
	restartAgent(ctx, t, func(process *os.Process, _ *corev1.Pod) error { return process.Signal(syscall.SIGKILL) })
	scaleApprover(ctx, t, scale)
	checkRotatesOn(ctx, t, pod, first.Serial)
	events := told(ctx, t, pod)
	for reason, n := range map[string]int{"SVIDIssued": 1, "SVIDRenewalOverdue": 1, "SVIDExpired": 1} {
		if events[reason] != n {
			t.Errorf("%d Events %s, want %d", events[reason], reason, n)
		}
	}
	if err := env.WaitReady(ctx); err != nil {
		t.Error(err)
	}
}

// An approver that wants another duration than the agent asks for: a pod that
// starts and one that runs are told with its own words, in one Event each however
// often it is tried.
func testADenialIsToldInItsOwnWords(t *testing.T) {
	ctx := needCluster(t, rotationTimeout)
	ns := newNamespace(ctx, t)
	running := runPod(ctx, t, ns, podSpec{Name: "running", Node: nodeOne})
	other := standardOptions()
	other.ApproverFlags["--certificate-request-duration"] = "1h"
	if err := env.Signet(ctx, other); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := env.Signet(context.WithoutCancel(ctx), standardOptions()); err != nil {
			t.Errorf("install the approver as it was: %v", err)
		}
	}()
	starting := createPod(ctx, t, ns, podSpec{Name: "starting", Node: nodeOne})
	const words = `rule "duration": asked for 1m0s, allowed is exactly 1h0m0s`
	waitTold(ctx, t, starting, "SVIDDenied", "no SVID "+spiffeID(ns, "default"), words)
	waitTold(ctx, t, running, "SVIDDenied", "could not be renewed", words)
	// The next Event of the same reason is the same object.
	for _, pod := range []*corev1.Pod{starting, running} {
		if events := told(ctx, t, pod); events["SVIDDenied"] != 1 {
			t.Errorf("%s has %d Events SVIDDenied, want 1", pod.Name, events["SVIDDenied"])
		}
	}
}
