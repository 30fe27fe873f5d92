// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package evaluate

import (
	"slices"
	"strconv"
	"strings"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/signet-spiffe/signet/internal/request"
)

// checkSpec holds the rules that need neither the CSR nor a pod, and returns the
// reference to the pod that owns cr.
func checkSpec(cr *cmapi.CertificateRequest, p Policy) (metav1.OwnerReference, *denial) {
	if d := checkAsked(cr, p); d != nil {
		return metav1.OwnerReference{}, d
	}
	return ownerPod(cr)
}

func checkAsked(cr *cmapi.CertificateRequest, p Policy) *denial {
	if !allowedIssuer(cr.Spec.IssuerRef, p.Issuers) {
		return deny(RuleIssuer, "asked for %s, allowed is %s", issuerString(cr.Spec.IssuerRef), issuersString(p.Issuers))
	}
	if d := checkDuration(cr.Spec.Duration, p); d != nil {
		return d
	}
	if cr.Spec.IsCA {
		return deny(RuleCA, "asked for a CA certificate (spec.isCA), an SVID is never one (X509-SVID §4.1)")
	}
	if !sameUsages(cr.Spec.Usages, request.Usages()) {
		return deny(RuleUsages, "asked for %s, allowed is exactly %s", usagesString(cr.Spec.Usages), usagesString(request.Usages()))
	}
	return nil
}

// checkDuration: what is asked for, not what the issuer would make of nothing,
// lies within the policy's range.
func checkDuration(asked *metav1.Duration, p Policy) *denial {
	shortest, longest := p.durations()
	switch {
	case asked != nil && asked.Duration > 0 && shortest <= asked.Duration && asked.Duration <= longest:
		return nil
	case shortest == longest:
		return deny(RuleDuration, "asked for %s, allowed is exactly %s", durationString(asked), shortest)
	}
	return deny(RuleDuration, "asked for %s, allowed is from %s to %s", durationString(asked), shortest, longest)
}

// ownerPod returns the one owner of cr, which must be a pod. Its namespace is
// that of cr: owner references do not cross namespaces.
func ownerPod(cr *cmapi.CertificateRequest) (metav1.OwnerReference, *denial) {
	if n := len(cr.OwnerReferences); n != 1 {
		return metav1.OwnerReference{}, deny(RuleOwner, "has %d owner references, allowed is exactly one, to the pod", n)
	}
	o := cr.OwnerReferences[0]
	if o.APIVersion != "v1" || o.Kind != "Pod" {
		return o, deny(RuleOwner, "is owned by %s of %s, allowed is a Pod of \"v1\"", quote(o.Kind), quote(o.APIVersion))
	}
	if o.Name == "" || o.UID == "" {
		return o, deny(RuleOwner, "the owner reference has no name or no UID, allowed is a complete reference to the pod")
	}
	return o, nil
}

// checkID holds the rules on the SPIFFE ID itself (SPIFFE-ID §2). uri is the
// name in the CSR, byte for byte.
func checkID(uri, annotation string, td spiffeid.TrustDomain) (spiffeid.ID, *denial) {
	// SPIFFE-ID §2.3: implementations must support 2048 bytes and must not make longer ones.
	const maxID = 2048
	if len(uri) > maxID {
		return spiffeid.ID{}, deny(RuleSPIFFEID, "the URI has %d bytes, allowed are %d (SPIFFE-ID §2.3)", len(uri), maxID)
	}
	id, err := spiffeid.FromString(uri)
	if err != nil {
		return spiffeid.ID{}, deny(RuleSPIFFEID, "URI %s is not a SPIFFE ID: %v", quote(uri), err)
	}
	if id.String() != uri {
		return spiffeid.ID{}, deny(RuleSPIFFEID, "URI %s is not in canonical form, allowed is %s", quote(uri), quote(id.String()))
	}
	if id.Path() == "" {
		return spiffeid.ID{}, deny(RuleSPIFFEID, "%s names a trust domain, allowed is the ID of a workload, with a path", quote(uri))
	}
	if td.IsZero() || !id.MemberOf(td) {
		return spiffeid.ID{}, deny(RuleTrustDomain, "asked for %s, allowed is trust domain %s", quote(uri), quote(td.Name()))
	}
	if annotation != uri {
		return spiffeid.ID{}, deny(RuleAnnotation, "annotation %s says %s, the CSR asks for %s; they must be equal",
			request.AnnotationIdentity, quote(annotation), quote(uri))
	}
	return id, nil
}

// SameIssuer compares two references as cert-manager reads them: an empty kind
// is Issuer, an empty group is cert-manager.io.
func SameIssuer(a, b cmmeta.IssuerReference) bool {
	return defaulted(a) == defaulted(b)
}

func defaulted(r cmmeta.IssuerReference) cmmeta.IssuerReference {
	if r.Kind == "" {
		r.Kind = cmapi.IssuerKind
	}
	if r.Group == "" {
		r.Group = cmapi.SchemeGroupVersion.Group
	}
	return r
}

func allowedIssuer(ref cmmeta.IssuerReference, allowed []cmmeta.IssuerReference) bool {
	return ref.Name != "" && slices.ContainsFunc(allowed, func(a cmmeta.IssuerReference) bool { return SameIssuer(a, ref) })
}

func issuerString(r cmmeta.IssuerReference) string {
	r = defaulted(r)
	return quote(r.Kind + "." + r.Group + "/" + r.Name)
}

func issuersString(rs []cmmeta.IssuerReference) string {
	if len(rs) == 0 {
		return "none: no issuer is configured"
	}
	names := make([]string, len(rs))
	for i, r := range rs {
		names[i] = issuerString(r)
	}
	return strings.Join(names, " or ")
}

func durationString(d *metav1.Duration) string {
	if d == nil {
		return "no duration"
	}
	return d.Duration.String()
}

// sameUsages compares as sets; neither side may repeat a usage.
func sameUsages(got, want []cmapi.KeyUsage) bool {
	got, want = slices.Clone(got), slices.Clone(want)
	slices.Sort(got)
	slices.Sort(want)
	return slices.Equal(got, want)
}

func usagesString(us []cmapi.KeyUsage) string {
	names := make([]string, len(us))
	for i, u := range us {
		names[i] = string(u)
	}
	return quote(strings.Join(names, ", "))
}

// quote makes foreign text safe for a message: quoted, printable ASCII, bounded.
func quote(s string) string {
	const limit = 256
	if len(s) > limit {
		return strconv.QuoteToASCII(s[:limit]) + "…"
	}
	return strconv.QuoteToASCII(s)
}
