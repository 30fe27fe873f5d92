// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package evaluate

import (
	"fmt"
	"slices"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/signet-spiffe/signet/internal/identity"
	"github.com/signet-spiffe/signet/internal/pki"
	"github.com/signet-spiffe/signet/internal/request"
)

// Pod is what the API server said about a pod.
type Pod struct {
	// Found is false when there is no such pod; the rest is empty then.
	Found bool
	UID   string
	// NodeName is empty until the pod is scheduled.
	NodeName string
	// ServiceAccount is spec.serviceAccountName. It is empty for mirror pods,
	// which a node may create for itself: they get no identity.
	ServiceAccount string
	// Drivers lists the CSI drivers of the pod's inline volumes.
	Drivers []string
	// Finished is true once the pod's phase is Succeeded or Failed.
	Finished bool
	// GoneAt is when a deleted pod's grace period ends (metadata.deletionTimestamp);
	// zero while nobody deletes it.
	GoneAt time.Time
}

// PodFrom turns the answer of a pod read into a fact. NotFound is a fact; any
// other error is returned, for then nothing is known and nothing is decided.
func PodFrom(pod *corev1.Pod, err error) (*Pod, error) {
	if apierrors.IsNotFound(err) {
		return &Pod{}, nil
	}
	if err != nil {
		return nil, err
	}
	p := &Pod{
		Found:          true,
		UID:            string(pod.UID),
		NodeName:       pod.Spec.NodeName,
		ServiceAccount: pod.Spec.ServiceAccountName,
		Finished:       pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed,
	}
	for _, v := range pod.Spec.Volumes {
		if v.CSI != nil {
			p.Drivers = append(p.Drivers, v.CSI.Driver)
		}
	}
	if pod.DeletionTimestamp != nil {
		p.GoneAt = pod.DeletionTimestamp.Time
	}
	return p, nil
}

// asked is what a request asks for, once it is known to be well formed.
type asked struct {
	id  spiffeid.ID
	dns pki.DNSNames
}

// String is for the messages of approvals.
func (a asked) String() string {
	if a.dns == "" {
		return a.id.String()
	}
	return a.id.String() + " with DNS names " + quote(string(a.dns))
}

// evaluateRequester asks who made the request. spec.username and spec.extra are
// written by cert-manager's webhook from the API server's own authentication and
// are immutable.
func evaluateRequester(cr *cmapi.CertificateRequest, owner metav1.OwnerReference, a asked, f Facts, p Policy) Verdict {
	if p.AgentUsername != "" && cr.Spec.Username == p.AgentUsername {
		return evaluateAgent(cr, owner, a, f, p)
	}
	if p.AllowPod {
		return evaluatePod(cr, owner, a, p)
	}
	return deny(RuleRequester, "requested by %s, allowed is the agent, %s", quote(cr.Spec.Username), quote(p.AgentUsername)).verdict(a.id)
}

// evaluateAgent lets a node's agent ask for what the node's own pods are, and
// for nothing else.
func evaluateAgent(cr *cmapi.CertificateRequest, owner metav1.OwnerReference, a asked, f Facts, p Policy) Verdict {
	node, d := nodeOf(cr)
	if d != nil {
		return d.verdict(a.id)
	}
	ref := PodRef{Namespace: cr.Namespace, Name: owner.Name}
	if f.Pod == nil {
		return Verdict{Decision: NeedPod, Pod: ref, ID: a.id}
	}
	if d := checkPod(f, ref, string(owner.UID), node, a, p); d != nil {
		return d.verdict(a.id)
	}
	return Verdict{
		Decision: Approve,
		ID:       a.id,
		Message:  fmt.Sprintf("Approved request: %s for pod %s on node %s", a, ref, node),
	}
}

// nodeOf returns the node that the requester's token is bound to (Kubernetes
// 1.32 and later put it there, KEP-4193).
func nodeOf(cr *cmapi.CertificateRequest) (string, *denial) {
	values := cr.Spec.Extra[request.ExtraNodeName]
	if len(values) != 1 || values[0] == "" {
		return "", deny(RuleToken, "the agent's token names %d nodes (%s), it must name exactly one; "+
			"Kubernetes 1.32 or later is needed, or requester \"pod\"", len(values), request.ExtraNodeName)
	}
	return values[0], nil
}

// clockSkew is how far the approver's clock may be ahead of the API server's.
const clockSkew = 30 * time.Second

func checkPod(f Facts, ref PodRef, uid, node string, a asked, p Policy) *denial {
	pod := f.Pod
	if !pod.Found {
		return deny(RulePodExists, "pod %s does not exist", quote(ref.String()))
	}
	if pod.UID != uid {
		return deny(RulePodUID, "asked for pod %s with UID %s, that pod has UID %s", quote(ref.String()), quote(uid), quote(pod.UID))
	}
	if pod.NodeName != node {
		return deny(RulePodNode, "asked from node %s, but pod %s is on node %s", quote(node), quote(ref.String()), quote(pod.NodeName))
	}
	if !slices.Contains(pod.Drivers, p.Driver) {
		return deny(RulePodDriver, "pod %s has no inline volume of CSI driver %s", quote(ref.String()), quote(p.Driver))
	}
	if pod.Finished {
		return deny(RulePodRunning, "pod %s has finished", quote(ref.String()))
	}
	// A pod that is being deleted keeps its identity for its whole grace period.
	if !pod.GoneAt.IsZero() && f.Now.After(pod.GoneAt.Add(clockSkew)) {
		return deny(RulePodRunning, "pod %s was to be gone at %s", quote(ref.String()), pod.GoneAt.UTC().Format(time.RFC3339))
	}
	return checkWorkload(a, identity.Workload{Namespace: ref.Namespace, ServiceAccount: pod.ServiceAccount}, p)
}

// checkWorkload holds all that is asked for against what w may have.
func checkWorkload(a asked, w identity.Workload, p Policy) *denial {
	if d := checkIdentity(a.id, w, p); d != nil {
		return d
	}
	return checkDNSNames(a.dns, w, p)
}

// checkIdentity is the heart of it: the ID must be the one that p gives w.
func checkIdentity(id spiffeid.ID, w identity.Workload, p Policy) *denial {
	want, err := p.Template.ID(p.TrustDomain, w)
	if err != nil {
		return deny(RuleIdentity, "asked for %s, but service account %s has no identity: %s",
			quote(id.String()), quote(w.Namespace+"/"+w.ServiceAccount), quote(err.Error()))
	}
	if id != want {
		return deny(RuleIdentity, "asked for %s, allowed for service account %s is %s",
			quote(id.String()), quote(w.Namespace+"/"+w.ServiceAccount), quote(want.String()))
	}
	return nil
}

// evaluatePod lets a service account ask for its own identity.
func evaluatePod(cr *cmapi.CertificateRequest, owner metav1.OwnerReference, a asked, p Policy) Verdict {
	namespace, name, err := identity.ParseServiceAccountUsername(cr.Spec.Username)
	if err != nil {
		return deny(RuleRequester, "requested by %s, allowed is a service account", quote(cr.Spec.Username)).verdict(a.id)
	}
	if namespace != cr.Namespace {
		return deny(RuleRequester, "requested in namespace %s by a service account of namespace %s, allowed is its own namespace",
			quote(cr.Namespace), quote(namespace)).verdict(a.id)
	}
	if d := checkBoundPod(cr, owner); d != nil {
		return d.verdict(a.id)
	}
	if d := checkWorkload(a, identity.Workload{Namespace: namespace, ServiceAccount: name}, p); d != nil {
		return d.verdict(a.id)
	}
	return Verdict{
		Decision: Approve,
		ID:       a.id,
		Message:  fmt.Sprintf("Approved request: %s for service account %s/%s", a, namespace, name),
	}
}

// checkBoundPod: a token that names its pod speaks for that pod alone. Tokens
// that name none (made by hand) are still good for the service account.
func checkBoundPod(cr *cmapi.CertificateRequest, owner metav1.OwnerReference) *denial {
	for _, bound := range []struct{ key, owner string }{
		{request.ExtraPodName, owner.Name},
		{request.ExtraPodUID, string(owner.UID)},
	} {
		values := cr.Spec.Extra[bound.key]
		if len(values) == 0 {
			continue
		}
		if len(values) != 1 || values[0] != bound.owner {
			return deny(RuleToken, "the requester's token is bound to another pod than the owner reference names (%s is %s, not %s)",
				bound.key, quote(values[0]), quote(bound.owner))
		}
	}
	return nil
}
