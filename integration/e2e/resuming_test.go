// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/signet-spiffe/signet/integration/install"
)

// An approver who is away for a while, and an agent that is killed, or replaced,
// meanwhile: a mount that waits, a pod that does not wait and a renewal all get their
// SVIDs by the requests that the agent before has made, and no others are made.
func testAttemptsSurviveAKilledAgent(t *testing.T) {
	attemptsSurvive(t, func(ctx context.Context, t *testing.T) {
		restartAgent(ctx, t, func(process *os.Process, _ *corev1.Pod) error { return process.Signal(syscall.SIGKILL) })
	})
}

func testAttemptsSurviveAReplacedAgent(t *testing.T) {
	attemptsSurvive(t, func(ctx context.Context, t *testing.T) {
		before := mustAgentOn(ctx, t, nodeOne)
		deletePod(ctx, t, before)
		waitAgentOther(ctx, t, before.UID)
	})
}

func attemptsSurvive(t *testing.T, restart func(context.Context, *testing.T)) {
	ctx := needCluster(t, rotationTimeout)
	ns := newNamespace(ctx, t)
	// Due ten seconds after each SVID, and good for almost two minutes more.
	running := runPod(ctx, t, ns, podSpec{Name: "running", Node: nodeOne, Args: []string{"hold"}, Attributes: chosen(map[string]string{
		"duration": "2m", "renew-before": "108s",
	})})
	scale := scaleApprover(ctx, t, 0)
	defer scaleApprover(context.WithoutCancel(ctx), t, scale)
	waitNoApprover(ctx, t)
	before := fetch(ctx, t, running)
	issued := recordIssuances(ctx, t, ns)
	createPod(ctx, t, ns, podSpec{Name: "waits", Node: nodeOne})
	createPod(ctx, t, ns, podSpec{Name: "does-not", Node: nodeOne, Attributes: chosen(map[string]string{"wait": "false"})})
	pending := waitPending(ctx, t, ns, "running", "waits", "does-not")

	restart(ctx, t)
	again := waitPending(ctx, t, ns, "running", "waits", "does-not")
	for pod, uid := range pending {
		if again[pod] != uid {
			t.Errorf("pod %s: the request was %s and is %s", pod, uid, again[pod])
		}
	}
	scaleApprover(ctx, t, scale)
	for _, name := range []string{"waits", "does-not"} {
		pod := waitPod(ctx, t, ns, name, "to be ready", readyOrNot)
		if got := fetch(ctx, t, pod); got.ID != spiffeID(ns, "default") {
			t.Errorf("pod %s is %s", name, got.ID)
		}
	}
	awaitOtherSerial(ctx, t, running, before.Serial)
	if left := time.Until(before.NotAfter); left <= 0 {
		t.Errorf("the SVID that was to be renewed expired %s ago", -left)
	}
	seen := issued.uids()
	for uid, name := range seen {
		if !slices.Contains([]types.UID{pending["running"], pending["waits"], pending["does-not"]}, uid) {
			t.Errorf("request %s was made beside those that were pending", name)
		}
	}
	if len(seen) < 3 {
		t.Errorf("%d requests were seen, want 3: the test proves nothing", len(seen))
	}
	if err := env.WaitReady(ctx); err != nil {
		t.Error(err)
	}
}

func waitNoApprover(ctx context.Context, t *testing.T) {
	t.Helper()
	err := install.AwaitNone(ctx, install.Selection{
		Client: env.Kube.CoreV1().RESTClient(), Resource: "pods", Namespace: install.Namespace, What: "the approvers to be gone",
	}, func(pod *corev1.Pod) bool { return strings.HasPrefix(pod.Name, install.ApproverName) })
	if err != nil {
		t.Fatal(err)
	}
}

// uids are the requests seen so far, with their names.
func (r *issuances) uids() map[types.UID]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[types.UID]string{}
	for uid, name := range r.names {
		out[uid] = name
	}
	return out
}

// waitPending waits until each of the pods has one request that nobody has decided,
// and returns their UIDs.
func waitPending(ctx context.Context, t *testing.T, ns string, pods ...string) map[string]types.UID {
	t.Helper()
	pending := map[string]types.UID{}
	_, err := install.Await(ctx, install.Selection{
		Client: env.CertManager.CertmanagerV1().RESTClient(), Resource: "certificaterequests", Namespace: ns,
		What: fmt.Sprintf("pending CertificateRequests of %q", pods),
	}, func(cr *cmapi.CertificateRequest, deleted bool) error {
		owner := cr.OwnerReferences[0].Name
		if deleted {
			if pending[owner] == cr.UID {
				delete(pending, owner)
			}
		} else if len(cr.Status.Conditions) == 0 {
			pending[owner] = cr.UID
		}
		for _, pod := range pods {
			if pending[pod] == "" {
				return fmt.Errorf("pod %s has none", pod)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return pending
}

// awaitOtherSerial waits until a pod's stream has had another SVID than the given
// one.
func awaitOtherSerial(ctx context.Context, t *testing.T, pod *corev1.Pod, serial string) {
	t.Helper()
	follow(ctx, t, pod, func(line said) bool {
		return line.OwnSerial != "" && !strings.EqualFold(line.OwnSerial, serial)
	})
}
