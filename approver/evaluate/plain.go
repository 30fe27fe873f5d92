// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package evaluate

import (
	"bytes"
	"net/url"
	"slices"
	"strings"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	certpki "github.com/cert-manager/cert-manager/pkg/util/pki"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// evaluatePlain stands in for cert-manager's own approver, which has to be off:
// everything is approved that does not reach for SPIFFE. A SPIFFE URI is denied
// from any issuer, because any issuer's CA may be in somebody's trust bundle.
func evaluatePlain(cr *cmapi.CertificateRequest, p Policy) Verdict {
	if allowedIssuer(cr.Spec.IssuerRef, p.Issuers) {
		return deny(RulePlainIssuer, "asked issuer %s for a certificate without SPIFFE identity; that issuer signs SPIFFE identities alone",
			issuerString(cr.Spec.IssuerRef)).verdict(spiffeid.ID{})
	}
	// Which of several blocks an issuer would read is not ours to guess.
	if bytes.Count(cr.Spec.Request, []byte("-----BEGIN")) > 1 {
		return deny(RulePlainEncoding, "spec.request holds more than one PEM block, allowed is one").verdict(spiffeid.ID{})
	}
	csr, err := certpki.DecodeX509CertificateRequestBytes(cr.Spec.Request)
	if err != nil {
		return deny(RulePlainEncoding, "the CSR cannot be parsed: %s", quote(err.Error())).verdict(spiffeid.ID{})
	}
	// The bytes are searched as well as the parsed names, for issuers that read
	// more of a CSR than crypto/x509 does.
	if slices.ContainsFunc(csr.URIs, isSPIFFE) || bytes.Contains(bytes.ToLower(csr.Raw), []byte("spiffe://")) {
		return deny(RulePlainURI, "the CSR carries a SPIFFE URI, allowed only to requests of the CSI driver").verdict(spiffeid.ID{})
	}
	return Verdict{Decision: Approve, Message: "Approved request: it carries no SPIFFE identity"}
}

func isSPIFFE(u *url.URL) bool { return strings.EqualFold(u.Scheme, "spiffe") }
