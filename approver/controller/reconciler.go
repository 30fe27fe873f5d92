// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/signet-spiffe/signet/approver/evaluate"
)

const (
	// Reason is the reason of every condition written, whatever the driver's
	// name: csi-driver-spiffe's, so that what watches for it goes on working.
	Reason = "spiffe.csi.cert-manager.io"
	// FieldOwner owns the conditions in managedFields.
	FieldOwner = "signet-approver"
)

// refusedRetry is when to look again at a request that the approver wants to
// deny but may not: only a change of its rights can help, and no change of the
// request announces that.
const refusedRetry = 5 * time.Minute

// reconciler decides one request at a time; it is called concurrently.
type reconciler struct {
	// requests reads from the cache.
	requests client.Reader
	// status writes the conditions.
	status client.SubResourceWriter
	// pods reads from the API server.
	pods    client.Reader
	issuers *issuers
	policy  evaluate.Policy // but for Issuers
	// writing holds one token for each decision that is being written.
	writing  chan struct{}
	recorder events.EventRecorder
	metrics  *metrics
	log      *slog.Logger
	now      func() time.Time
}

// Reconcile implements reconcile.Reconciler.
func (r *reconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var cr cmapi.CertificateRequest
	if err := r.requests.Get(ctx, req.NamespacedName, &cr); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	verdict, err := r.evaluate(ctx, &cr)
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("decide CertificateRequest %s: %w", req, err)
	}
	if verdict.Decision == evaluate.Ignore {
		return reconcile.Result{}, nil
	}
	return r.decide(ctx, &cr, verdict)
}

// evaluate gathers the facts that the verdict needs. Any doubt is an error.
func (r *reconciler) evaluate(ctx context.Context, cr *cmapi.CertificateRequest) (evaluate.Verdict, error) {
	policy := r.policy
	var err error
	if policy.Issuers, err = r.issuers.allowed(ctx); err != nil {
		return evaluate.Verdict{}, err
	}
	facts := evaluate.Facts{Now: r.now()}
	verdict := evaluate.Evaluate(evaluate.Request{CertificateRequest: cr}, facts, policy)
	if verdict.Decision != evaluate.NeedPod {
		return verdict, nil
	}
	if facts.Pod, err = r.pod(ctx, verdict.Pod); err != nil {
		return evaluate.Verdict{}, err
	}
	verdict = evaluate.Evaluate(evaluate.Request{CertificateRequest: cr}, facts, policy)
	if verdict.Decision == evaluate.NeedPod {
		return evaluate.Verdict{}, fmt.Errorf("pod %s is asked for again", verdict.Pod)
	}
	return verdict, nil
}

func (r *reconciler) pod(ctx context.Context, ref evaluate.PodRef) (*evaluate.Pod, error) {
	var pod corev1.Pod
	err := r.pods.Get(ctx, client.ObjectKey{Namespace: ref.Namespace, Name: ref.Name}, &pod)
	fact, err := evaluate.PodFrom(&pod, err)
	if err != nil {
		r.metrics.podReads.WithLabelValues("error").Inc()
		return nil, fmt.Errorf("read pod %s: %w", ref, err)
	}
	if !fact.Found {
		r.metrics.podReads.WithLabelValues("missing").Inc()
		return fact, nil
	}
	r.metrics.podReads.WithLabelValues("found").Inc()
	return fact, nil
}

// decide writes the verdict, once.
func (r *reconciler) decide(ctx context.Context, cr *cmapi.CertificateRequest, v evaluate.Verdict) (reconcile.Result, error) {
	log := r.log.With("namespace", cr.Namespace, "request", cr.Name, "uid", string(cr.UID),
		"username", cr.Spec.Username, "spiffe_id", v.ID.String(), "rule", string(v.Rule))
	err := r.write(ctx, cr, v)
	switch {
	case apierrors.IsConflict(err) || apierrors.IsNotFound(err):
		// Decided by another replica, changed or gone: its next event, if any,
		// brings it back.
		log.Debug("request has changed since it was evaluated", "err", err)
		return reconcile.Result{}, nil
	case err != nil && v.Decision == evaluate.Deny && refused(err):
		// It stays undecided, and so is never signed.
		r.metrics.decisions.WithLabelValues("refused", string(v.Rule)).Inc()
		log.Warn("request cannot be denied: grant the approver verb approve on the signer", "message", v.Message, "err", err)
		r.event(cr, v)
		return reconcile.Result{RequeueAfter: refusedRetry}, nil
	case err != nil:
		return reconcile.Result{}, fmt.Errorf("set CertificateRequest %s/%s to %s: %w", cr.Namespace, cr.Name, v.Decision, err)
	}
	r.metrics.decisions.WithLabelValues(v.Decision.String(), string(v.Rule)).Inc()
	r.metrics.age.Observe(max(0, r.now().Sub(cr.CreationTimestamp.Time).Seconds()))
	if v.Decision == evaluate.Deny {
		log.Warn("request denied", "message", v.Message)
		r.event(cr, v)
		return reconcile.Result{}, nil
	}
	log.Info("request approved")
	return reconcile.Result{}, nil
}

// refused tells the API server's or cert-manager's webhook's "no", which trying
// again soon does not change, from a failure. The webhook says NotAcceptable, or
// nothing more than a message; see CertificateRequest approval in its docs.
func refused(err error) bool {
	return apierrors.IsForbidden(err) || apierrors.IsNotAcceptable(err) || apierrors.IsInvalid(err) || apierrors.IsBadRequest(err)
}

func (r *reconciler) event(cr *cmapi.CertificateRequest, v evaluate.Verdict) {
	r.recorder.Eventf(cr, nil, corev1.EventTypeWarning, "Denied", "Evaluate", "%s", note(v.Message))
}

// note fits a message into an Event, whose note the API limits to 1 KiB.
func note(message string) string {
	const limit = 1000
	if len(message) <= limit {
		return message
	}
	cut := limit
	for cut > 0 && message[cut]&0xC0 == 0x80 { // not inside a UTF-8 sequence
		cut--
	}
	return message[:cut] + "…"
}

// write waits for its turn, which is over in the time of a few writes: what was
// read about the pod is hardly older for it.
func (r *reconciler) write(ctx context.Context, cr *cmapi.CertificateRequest, v evaluate.Verdict) error {
	patch, err := statusPatch(cr, v, r.now())
	if err != nil {
		return err
	}
	select {
	case r.writing <- struct{}{}:
		defer func() { <-r.writing }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	target := &cmapi.CertificateRequest{ObjectMeta: metav1.ObjectMeta{Namespace: cr.Namespace, Name: cr.Name}}
	return r.status.Patch(ctx, target, client.RawPatch(types.MergePatchType, patch), client.FieldOwner(FieldOwner))
}

// statusPatch is a JSON merge patch that appends the verdict's condition to those
// that cr had. UID and resource version are preconditions: the patch succeeds
// only on the object, in the version, that was judged.
func statusPatch(cr *cmapi.CertificateRequest, v evaluate.Verdict, now time.Time) ([]byte, error) {
	kind := cmapi.CertificateRequestConditionApproved
	if v.Decision == evaluate.Deny {
		kind = cmapi.CertificateRequestConditionDenied
	}
	if cr.UID == "" || cr.ResourceVersion == "" {
		return nil, fmt.Errorf("CertificateRequest %s/%s has no UID or resource version", cr.Namespace, cr.Name)
	}
	transition := metav1.NewTime(now)
	type metadata struct {
		UID             types.UID `json:"uid"`
		ResourceVersion string    `json:"resourceVersion"`
	}
	type status struct {
		Conditions []cmapi.CertificateRequestCondition `json:"conditions"`
	}
	patch, err := json.Marshal(struct {
		Metadata metadata `json:"metadata"`
		Status   status   `json:"status"`
	}{
		Metadata: metadata{UID: cr.UID, ResourceVersion: cr.ResourceVersion},
		Status: status{Conditions: append(slices.Clone(cr.Status.Conditions), cmapi.CertificateRequestCondition{
			Type: kind, Status: cmmeta.ConditionTrue, LastTransitionTime: &transition, Reason: Reason, Message: v.Message,
		})},
	})
	if err != nil {
		return nil, fmt.Errorf("encode status patch for CertificateRequest %s/%s: %w", cr.Namespace, cr.Name, err)
	}
	return patch, nil
}
