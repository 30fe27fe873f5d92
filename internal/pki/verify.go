// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Rule names a reason for which a certificate is refused.
type Rule string

// The rules of VerifySVID. Each constant's comment gives its source.
const (
	RuleChain       Rule = "chain-present"          // X509-SVID §5.2: there is a leaf
	RuleKeyMatch    Rule = "key-match"              // the certificate is for the key we made
	RuleOneURI      Rule = "one-uri-san"            // X509-SVID §2: exactly one URI SAN
	RuleID          Rule = "spiffe-id"              // X509-SVID §2, SPIFFE-ID §2: a legal ID
	RuleIDMatch     Rule = "spiffe-id-match"        // the ID is the one we asked for
	RuleDNSNames    Rule = "dns-names"              // the DNS names that we asked for are there
	RuleExtraSAN    Rule = "no-other-san"           // we asked for one URI, these DNS names and nothing else
	RulePath        Rule = "leaf-has-path"          // X509-SVID §3.1: a leaf's ID has a non-root path
	RuleSANCritical Rule = "san-critical"           // X509-SVID §3.1, RFC 5280 4.1.2.6
	RuleLeafNotCA   Rule = "leaf-not-ca"            // X509-SVID §4.1, §5.2
	RuleKeyUsage    Rule = "key-usage"              // X509-SVID §4.3
	RuleExtKeyUsage Rule = "extended-key-usage"     // X509-SVID §4.4
	RuleSigningCA   Rule = "signing-certificate-ca" // X509-SVID §4.1, §4.3
	RuleSigningID   Rule = "signing-certificate-id" // X509-SVID §3.2
	RuleValidity    Rule = "validity"               // RFC 5280 6.1.3 (a)(2)
	RuleBundle      Rule = "chain-to-bundle"        // X509-SVID §5.1
	RuleNoBundle    Rule = "trust-bundle-present"   // there is something to verify against
)

// RuleError says which rule a certificate broke, and how.
type RuleError struct {
	Rule   Rule
	Detail string
}

// Error implements error.
func (e *RuleError) Error() string {
	return fmt.Sprintf("issued certificate refused by rule %s: %s", e.Rule, e.Detail)
}

func refuse(rule Rule, format string, args ...any) error {
	return &RuleError{Rule: rule, Detail: fmt.Sprintf(format, args...)}
}

// Expectation is what an issued chain must fulfil.
type Expectation struct {
	// ID is the SPIFFE ID that was asked for.
	ID spiffeid.ID
	// DNSNames are the DNS names that were asked for; the certificate must have
	// these and no others.
	DNSNames DNSNames
	// Key is the key that the certificate must be for.
	Key PrivateKey
	// Now is the present time.
	Now time.Time
	// Bundle is the trust bundle of ID's trust domain.
	Bundle *x509bundle.Bundle
}

// clockSkew is how far in the future a certificate's NotBefore may lie: issuers
// have clocks of their own.
const clockSkew = time.Minute

// VerifySVID decides whether chain (leaf first) may be used as the X509-SVID that
// want describes. The error is a *RuleError that names the first rule broken.
func VerifySVID(chain []*x509.Certificate, want Expectation) error {
	if len(chain) == 0 {
		return refuse(RuleChain, "the issuer returned no certificate")
	}
	leaf := chain[0]
	for _, check := range []func(*x509.Certificate, Expectation) error{
		checkKey, checkNames, checkLeafConstraints, checkKeyUsage, checkExtKeyUsage, checkValidity,
	} {
		if err := check(leaf, want); err != nil {
			return err
		}
	}
	for i, ca := range chain[1:] {
		if err := checkSigner(i+1, ca, want); err != nil {
			return err
		}
	}
	return checkPath(chain, want)
}

func checkKey(leaf *x509.Certificate, want Expectation) error {
	pub, ok := want.Key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(leaf.PublicKey) {
		return refuse(RuleKeyMatch, "the certificate is for another public key than the one in the request")
	}
	return nil
}

func checkNames(leaf *x509.Certificate, want Expectation) error {
	if n := len(leaf.URIs); n != 1 {
		return refuse(RuleOneURI, "%d URI names, want exactly one", n)
	}
	id, err := spiffeid.FromURI(leaf.URIs[0])
	if err != nil {
		return refuse(RuleID, "URI name %q: %v", leaf.URIs[0], err)
	}
	if id.Path() == "" {
		return refuse(RulePath, "%q has no path", id)
	}
	if id != want.ID {
		return refuse(RuleIDMatch, "certificate is for %q, asked for %q", id, want.ID)
	}
	asked := want.DNSNames.Names()
	for _, name := range asked {
		if !slices.Contains(leaf.DNSNames, name) {
			return refuse(RuleDNSNames, "DNS name %q was asked for and is not there: the issuer left it out", name)
		}
	}
	extra := slices.DeleteFunc(slices.Clone(leaf.DNSNames), func(name string) bool { return slices.Contains(asked, name) })
	if len(extra)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) != 0 {
		return refuse(RuleExtraSAN, "names that were not asked for: DNS %q, IP %v, e-mail %q", extra, leaf.IPAddresses, leaf.EmailAddresses)
	}
	return checkSANExtension(leaf, 1+len(asked))
}

// checkSANExtension looks at the raw extension, which must hold so many names:
// x509.Certificate drops name kinds that it has no field for (otherName,
// directoryName, registeredID), and a name that is there twice was asked for once.
func checkSANExtension(leaf *x509.Certificate, count int) error {
	emptySubject := len(leaf.Subject.Names) == 0
	for _, ext := range leaf.Extensions {
		if !ext.Id.Equal(oidSubjectAltName) {
			continue
		}
		if emptySubject && !ext.Critical {
			return refuse(RuleSANCritical, "the subject is empty and the SAN extension is not critical")
		}
		var names []asn1.RawValue
		if rest, err := asn1.Unmarshal(ext.Value, &names); err != nil || len(rest) != 0 {
			return refuse(RuleExtraSAN, "the SAN extension does not decode")
		}
		if len(names) != count {
			return refuse(RuleExtraSAN, "%d subject alternative names, asked for %d", len(names), count)
		}
	}
	return nil
}

func checkLeafConstraints(leaf *x509.Certificate, _ Expectation) error {
	if leaf.IsCA {
		return refuse(RuleLeafNotCA, "the certificate is a CA certificate")
	}
	return nil
}

var oidKeyUsage = asn1.ObjectIdentifier{2, 5, 29, 15}

func checkKeyUsage(leaf *x509.Certificate, _ Expectation) error {
	present := false
	for _, ext := range leaf.Extensions {
		if !ext.Id.Equal(oidKeyUsage) {
			continue
		}
		present = true
		if !ext.Critical {
			return refuse(RuleKeyUsage, "the key usage extension is not critical")
		}
	}
	switch {
	case !present:
		return refuse(RuleKeyUsage, "there is no key usage extension")
	case leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return refuse(RuleKeyUsage, "digitalSignature is not set")
	case leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return refuse(RuleKeyUsage, "keyCertSign or cRLSign is set on a leaf")
	}
	return nil
}

func checkExtKeyUsage(leaf *x509.Certificate, _ Expectation) error {
	if len(leaf.ExtKeyUsage) == 0 && len(leaf.UnknownExtKeyUsage) == 0 {
		return nil // §4.4 says SHOULD be present, MUST be both if it is.
	}
	var server, client bool
	for _, usage := range leaf.ExtKeyUsage {
		server = server || usage == x509.ExtKeyUsageServerAuth
		client = client || usage == x509.ExtKeyUsageClientAuth
	}
	if !server || !client {
		return refuse(RuleExtKeyUsage, "serverAuth set: %t, clientAuth set: %t; an SVID needs both", server, client)
	}
	return nil
}

func checkValidity(leaf *x509.Certificate, want Expectation) error {
	switch {
	case !leaf.NotAfter.After(leaf.NotBefore):
		return refuse(RuleValidity, "notAfter %s is not after notBefore %s", stamp(leaf.NotAfter), stamp(leaf.NotBefore))
	case !want.Now.Before(leaf.NotAfter):
		return refuse(RuleValidity, "expired at %s, it is %s", stamp(leaf.NotAfter), stamp(want.Now))
	case leaf.NotBefore.After(want.Now.Add(clockSkew)):
		return refuse(RuleValidity, "not valid before %s, it is %s", stamp(leaf.NotBefore), stamp(want.Now))
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func checkSigner(position int, ca *x509.Certificate, want Expectation) error {
	if !ca.BasicConstraintsValid || !ca.IsCA {
		return refuse(RuleSigningCA, "certificate %d of the chain is not a CA certificate", position+1)
	}
	if ca.KeyUsage&x509.KeyUsageCertSign == 0 {
		return refuse(RuleSigningCA, "certificate %d of the chain may not sign certificates", position+1)
	}
	for _, uri := range ca.URIs {
		id, err := spiffeid.FromURI(uri)
		if err != nil {
			continue // Not a SPIFFE ID: X509-SVID §3.2 speaks of SPIFFE IDs only.
		}
		if id.Path() != "" || id.TrustDomain() != want.ID.TrustDomain() {
			return refuse(RuleSigningID, "certificate %d of the chain has the SPIFFE ID %q", position+1, id)
		}
	}
	return nil
}

func checkPath(chain []*x509.Certificate, want Expectation) error {
	if want.Bundle == nil || want.Bundle.Empty() {
		return refuse(RuleNoBundle, "there is no trust bundle for %q to verify against", want.ID.TrustDomain())
	}
	if want.Bundle.TrustDomain() != want.ID.TrustDomain() {
		return refuse(RuleBundle, "the bundle is of trust domain %q, the SVID of %q", want.Bundle.TrustDomain(), want.ID.TrustDomain())
	}
	// A leaf of an issuer whose clock runs ahead is judged at its own notBefore;
	// checkValidity bounded how far that may be.
	at := want.Now
	if chain[0].NotBefore.After(at) {
		at = chain[0].NotBefore
	}
	if err := findPath(chain, want.Bundle, at); err != nil {
		return refuse(RuleBundle, "no path to the trust bundle of %q: %v", want.ID.TrustDomain(), err)
	}
	return nil
}

func findPath(chain []*x509.Certificate, bundle *x509bundle.Bundle, at time.Time) error {
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	for _, root := range bundle.X509Authorities() {
		roots.AddCert(root)
	}
	for _, ca := range chain[1:] {
		intermediates.AddCert(ca)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: at,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	return err
}

// LeadsTo says whether a chain that VerifySVID accepted once still leads to an
// authority of bundle at the given time. That the leaf is not valid yet or any
// more does not count: it is judged at the nearest moment at which it is.
func LeadsTo(chain []*x509.Certificate, bundle *x509bundle.Bundle, at time.Time) bool {
	if len(chain) == 0 {
		return false
	}
	if chain[0].NotBefore.After(at) {
		at = chain[0].NotBefore
	}
	if at.After(chain[0].NotAfter) {
		at = chain[0].NotAfter
	}
	return findPath(chain, bundle, at) == nil
}
