// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package evaluate

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	apiutil "github.com/cert-manager/cert-manager/pkg/api/util"
	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/signet-spiffe/signet/internal/identity"
	"github.com/signet-spiffe/signet/internal/pki"
	"github.com/signet-spiffe/signet/internal/request"
)

// Rule names one rule. The values appear in condition messages, Events and
// metric labels: they are part of what users see and do not change lightly.
type Rule string

// The rules for requests that carry the identity annotation.
const (
	RuleIssuer      Rule = "issuer"              // spec.issuerRef is one of the policy's
	RuleDuration    Rule = "duration"            // spec.duration is the policy's, or within its range
	RuleCA          Rule = "ca"                  // spec.isCA is false
	RuleUsages      Rule = "usages"              // spec.usages are exactly request.Usages
	RuleOwner       Rule = "owner-reference"     // exactly one owner, a Pod
	RuleEncoding    Rule = "csr-encoding"        // one PEM block holding one DER PKCS#10 request
	RuleSignature   Rule = "csr-signature"       // the requester holds the private key
	RuleSubject     Rule = "csr-subject"         // the subject is empty
	RuleExtensions  Rule = "csr-extensions"      // SAN, key usage and extended key usage only, each once
	RuleKeyUsage    Rule = "csr-key-usage"       // key usages are a subset of the SVID's
	RuleSAN         Rule = "csr-san"             // the SAN holds one URI and, beside it, DNS names alone
	RuleKeyType     Rule = "key-type"            // algorithm and size are allowed
	RuleSPIFFEID    Rule = "spiffe-id"           // the URI is a canonical SPIFFE ID
	RuleTrustDomain Rule = "trust-domain"        // of the policy's trust domain
	RuleAnnotation  Rule = "identity-annotation" // the annotation repeats the URI
	RuleRequester   Rule = "requester"           // who may ask
	RuleToken       Rule = "requester-token"     // what the requester's token must say
	RuleIdentity    Rule = "identity"            // the ID is that of the pod or of the requester
	RuleDNSNames    Rule = "csr-dns-names"       // the DNS names are the policy's for the pod or the requester
	RulePodExists   Rule = "pod-exists"
	RulePodUID      Rule = "pod-uid"
	RulePodNode     Rule = "pod-node"
	RulePodDriver   Rule = "pod-driver"  // the pod mounts this driver
	RulePodRunning  Rule = "pod-running" // the pod has not finished
)

// The rules for other requests, when the approver decides those too.
const (
	RulePlainEncoding Rule = "plain-csr-encoding" // the CSR can be read
	RulePlainURI      Rule = "plain-spiffe-uri"   // it carries no SPIFFE ID
	RulePlainIssuer   Rule = "plain-issuer"       // it does not use the SPIFFE issuer
)

// Decision is what to do with a request.
type Decision int

const (
	// Ignore leaves the request alone: it is not ours, or it is decided already.
	Ignore Decision = iota
	// Approve sets the Approved condition.
	Approve
	// Deny sets the Denied condition.
	Deny
	// NeedPod asks for a second evaluation with Facts.Pod filled in. Every rule
	// that needs no pod has been passed.
	NeedPod
)

// String returns the decision in lower case, as metrics and logs use it.
func (d Decision) String() string {
	switch d {
	case Ignore:
		return "ignored"
	case Approve:
		return "approved"
	case Deny:
		return "denied"
	case NeedPod:
		return "needs pod"
	}
	return fmt.Sprintf("decision %d", int(d))
}

// Request is what is to be decided. Evaluate only reads it.
type Request struct {
	*cmapi.CertificateRequest
}

// Facts are what has been learnt from elsewhere.
type Facts struct {
	// Now is the approver's time.
	Now time.Time
	// Pod is the pod that Verdict.Pod asked for; nil when it was not looked up.
	Pod *Pod
}

// Policy is what the operator allows. It is not changed while in use.
type Policy struct {
	// Driver is the CSI driver name whose requests are decided.
	Driver string
	// Issuers lists the issuers that sign SPIFFE certificates. An empty kind
	// means Issuer, an empty group cert-manager.io, as cert-manager reads them.
	Issuers []cmmeta.IssuerReference
	// TrustDomain and Template give every pod its one SPIFFE ID.
	TrustDomain spiffeid.TrustDomain
	Template    identity.Template
	// Duration is the only lifetime that may be asked for, unless MinDuration or
	// MaxDuration widen that to a range, which holds it. Zero does not widen.
	Duration                 time.Duration
	MinDuration, MaxDuration time.Duration
	// KeyTypes lists the allowed keys.
	KeyTypes []pki.KeyType
	// DNSSuffixes say which DNS names a workload may have beside its SPIFFE ID. The
	// zero value allows none.
	DNSSuffixes DNSSuffixes
	// AgentUsername is the full user name of the agent's service account. With it
	// the agent may ask for the pods of its own node; empty switches that off.
	AgentUsername string
	// AllowPod lets a service account ask for its own identity.
	AllowPod bool
	// ApproveNonSPIFFE also decides requests without the identity annotation.
	ApproveNonSPIFFE bool
}

// Validate reports the first part of the policy that is missing. Evaluate denies
// everything under an incomplete policy; this says so at the start.
func (p Policy) Validate() error {
	switch {
	case p.Driver == "":
		return errors.New("the CSI driver name is empty")
	case p.TrustDomain.IsZero():
		return errors.New("the trust domain is empty")
	case p.Duration <= 0:
		return fmt.Errorf("the certificate duration is %s, it must be positive", p.Duration)
	case !p.rangeHoldsDuration():
		shortest, longest := p.durations()
		return fmt.Errorf("the certificate duration %s is not within the allowed range, from %s to %s", p.Duration, shortest, longest)
	case len(p.KeyTypes) == 0:
		return errors.New("no key type is allowed")
	case p.AgentUsername == "" && !p.AllowPod:
		return errors.New("nobody may request: neither the agent's service account nor pods")
	}
	return nil
}

// durations are the shortest and the longest lifetime that may be asked for.
func (p Policy) durations() (shortest, longest time.Duration) {
	return cmp.Or(p.MinDuration, p.Duration), cmp.Or(p.MaxDuration, p.Duration)
}

func (p Policy) rangeHoldsDuration() bool {
	shortest, longest := p.durations()
	return 0 < shortest && shortest <= p.Duration && p.Duration <= longest
}

// PodRef names a pod.
type PodRef struct {
	Namespace, Name string
}

// String returns namespace/name.
func (r PodRef) String() string { return r.Namespace + "/" + r.Name }

// Verdict is the outcome of Evaluate.
type Verdict struct {
	Decision Decision
	// Rule is the rule that failed; empty unless Decision is Deny.
	Rule Rule
	// Message is for the condition: one line, bounded in length, and free of
	// control characters whatever the request holds. Empty for Ignore and NeedPod.
	Message string
	// Pod is the pod to look up; set when Decision is NeedPod.
	Pod PodRef
	// ID is the SPIFFE ID that was asked for, once it is known to be canonical.
	ID spiffeid.ID
}

// Evaluate decides r under p. It is pure and safe for concurrent use.
func Evaluate(r Request, f Facts, p Policy) Verdict {
	if r.CertificateRequest == nil || Decided(r.CertificateRequest) || r.DeletionTimestamp != nil {
		return Verdict{Decision: Ignore}
	}
	switch KindOf(r.CertificateRequest, p.Driver) {
	case Ours:
		return evaluateSPIFFE(r.CertificateRequest, f, p)
	case Plain:
		if p.ApproveNonSPIFFE {
			return evaluatePlain(r.CertificateRequest, p)
		}
	}
	return Verdict{Decision: Ignore}
}

// Kind says whose request it is.
type Kind int

const (
	// Plain requests have no identity annotation.
	Plain Kind = iota
	// Ours carry the identity annotation and are not marked as another driver's.
	Ours
	// Foreign requests carry the identity annotation for another driver, whose
	// approver decides them.
	Foreign
)

// KindOf tells whose request cr is. The annotations are the requester's to
// choose: they select who decides, and prove nothing.
func KindOf(cr *cmapi.CertificateRequest, driver string) Kind {
	if _, ok := cr.Annotations[request.AnnotationIdentity]; !ok {
		return Plain
	}
	if d, ok := cr.Annotations[request.AnnotationDriver]; ok && d != driver {
		return Foreign
	}
	return Ours
}

// Decided reports whether cr is approved or denied. cert-manager lets neither
// condition change afterwards.
func Decided(cr *cmapi.CertificateRequest) bool {
	return apiutil.GetCertificateRequestCondition(cr, cmapi.CertificateRequestConditionApproved) != nil ||
		apiutil.GetCertificateRequestCondition(cr, cmapi.CertificateRequestConditionDenied) != nil
}

// denial is the failure of one rule.
type denial struct {
	rule Rule
	text string
}

func deny(rule Rule, format string, args ...any) *denial {
	return &denial{rule: rule, text: fmt.Sprintf(format, args...)}
}

func (d *denial) verdict(id spiffeid.ID) Verdict {
	return Verdict{
		Decision: Deny,
		Rule:     d.rule,
		Message:  fmt.Sprintf("Denied request: rule %q: %s", d.rule, d.text),
		ID:       id,
	}
}

func evaluateSPIFFE(cr *cmapi.CertificateRequest, f Facts, p Policy) Verdict {
	owner, d := checkSpec(cr, p)
	if d != nil {
		return d.verdict(spiffeid.ID{})
	}
	names, d := checkCSR(cr.Spec.Request, p.KeyTypes)
	if d != nil {
		return d.verdict(spiffeid.ID{})
	}
	id, d := checkID(names.uri, cr.Annotations[request.AnnotationIdentity], p.TrustDomain)
	if d != nil {
		return d.verdict(spiffeid.ID{})
	}
	if d := checkDNSNamesOn(names.dns, p); d != nil {
		return d.verdict(id)
	}
	return evaluateRequester(cr, owner, asked{id, names.dns}, f, p)
}
