// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

// The DaemonSet is updated under fifty pods whose SVIDs live for a minute: every
// socket answers within a second of the new agent's start, every stream comes back,
// nothing is issued for the update's sake, and nothing expires.
func testRollUnderFiftyPods(t *testing.T) {
	ctx := needCluster(t, 5*time.Minute)
	ns := newNamespace(ctx, t)
	k := newKeeper(ctx, t)
	issued := recordIssuances(ctx, t, ns)
	volumes := k.keepAll(ctx, t, runPods(ctx, t, ns, 25)...)
	k.waitStreams(ctx, t, volumes)
	// An attempt that is under way when its agent stops is withdrawn and made again,
	// which is as it should be: each agent may stop in the middle of one, unless there
	// is none.
	spare := 0
	if !k.waitQuiet(ctx, volumes, 10*time.Second) {
		spare = 2
		t.Logf("there is no moment without renewals: %d attempts may be withdrawn", spare)
	}
	had := make([]int, len(volumes))
	k.mu.Lock()
	for i, v := range volumes {
		had[i] = len(v.svids)
	}
	k.mu.Unlock()
	requests := len(issued.seen())

	began := time.Now()
	changeAgents(ctx, t, func(spec *appsv1.DaemonSetSpec) {
		if spec.Template.Annotations == nil {
			spec.Template.Annotations = map[string]string{}
		}
		spec.Template.Annotations["rolled"] = began.Format(time.RFC3339Nano)
	})
	t.Logf("rolled in %s", time.Since(began).Round(time.Millisecond))
	k.waitStreams(ctx, t, volumes)
	checkBackSoon(ctx, t, k, volumes)
	// Until everybody has been renewed in its time.
	k.wait(ctx, t, "the next SVID", volumes, func(v *kept) error {
		if i := slices.Index(volumes, v); len(v.svids) == had[i] {
			return errors.New("it has the one from before")
		}
		return nil
	})
	k.waitStreams(ctx, t, volumes)
	k.check(t, volumes)

	// As many requests as new SVIDs: none was made for nothing. One may be under way.
	k.wait(ctx, t, "the requests to be as many as the new SVIDs", volumes[:1], func(*kept) error {
		renewed := 0
		for i, v := range volumes {
			renewed += len(v.svids) - had[i]
		}
		if got := len(issued.seen()) - requests; got < renewed || got > renewed+spare {
			return fmt.Errorf("%d CertificateRequests since the update began, and %d new SVIDs", got, renewed)
		}
		return nil
	})

	k.mu.Lock()
	defer k.mu.Unlock()
	for _, v := range volumes {
		if v.broken != 1 {
			t.Errorf("%s: the stream broke %d times, want once", v.name(), v.broken)
		}
		for i := 1; i < len(v.svids); i++ {
			// Two thirds of a minute less a tenth, and the second to which certificates
			// are dated.
			if early := v.svids[i].notBefore.Sub(v.svids[i-1].notBefore); early < svidLife*2/3-svidLife/10-time.Second {
				t.Errorf("%s: SVID %s was replaced after %s", v.name(), v.svids[i-1].serial, early)
			}
		}
	}
}

// runPods runs so many pods on each node.
func runPods(ctx context.Context, t *testing.T, ns string, onEach int) []*corev1.Pod {
	t.Helper()
	var pods []*corev1.Pod
	for _, name := range []string{nodeOne, nodeTwo} {
		for i := range onEach {
			pods = append(pods, createPod(ctx, t, ns, podSpec{Name: fmt.Sprintf("%s-%d", name, i), Node: name}))
		}
	}
	began := time.Now()
	for i, pod := range pods {
		pods[i] = waitPod(ctx, t, ns, pod.Name, "to be ready", readyOrNot)
	}
	t.Logf("%d pods ready after %s", len(pods), time.Since(began).Round(time.Millisecond))
	return pods
}

// checkBackSoon compares when the streams were back with when the agents began.
func checkBackSoon(ctx context.Context, t *testing.T, k *keeper, volumes []*kept) {
	t.Helper()
	begun := map[string]time.Time{}
	for _, name := range []string{nodeOne, nodeTwo} {
		m := node(ctx, t, name).metrics(ctx, t, mustAgentOn(ctx, t, name))
		begun[name] = time.UnixMicro(int64(m["process_start_time_seconds"] * 1e6))
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	longest := time.Duration(0)
	for _, v := range volumes {
		took := v.resumedAt.Sub(begun[v.node.Name])
		longest = max(longest, took)
		if took > time.Second || took < 0 {
			t.Errorf("%s: the stream was back %s after the new agent's start", v.name(), took)
		}
	}
	t.Logf("the last of %d streams was back %s after its agent's start", len(volumes), longest.Round(time.Millisecond))
}
