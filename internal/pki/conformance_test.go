// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"net/url"
	"testing"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/signet-spiffe/signet/internal/conformance"
)

// An issuer may return anything. What breaks a rule of X509-SVID does not become
// an SVID, and is refused for that rule.

// issued is what an issuer returns for a request of the test: a leaf, and how it
// was made wrong. want is the rule that refuses it, "" if it is good.
type issued struct {
	name string
	edit func(*x509.Certificate)
	want Rule
}

func checkIssued(t *testing.T, names DNSNames, cases ...issued) {
	t.Helper()
	root, key := newAuthority(t, nil, nil), mustKey(t, P256)
	want := Expectation{ID: workloadID, DNSNames: names, Key: key, Now: epoch, Bundle: bundleOf(root)}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			template := leafTemplate()
			if c.edit != nil {
				c.edit(template)
			}
			checkRule(t, VerifySVID([]*x509.Certificate{sign(t, template, root, key)}, want), c.want)
		})
	}
}

func bundleOf(roots ...*authority) *x509bundle.Bundle {
	b := x509bundle.New(workloadID.TrustDomain())
	for _, r := range roots {
		b.AddX509Authority(r.cert)
	}
	return b
}

func withURI(s string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		u, err := url.Parse(s)
		if err != nil {
			panic(err)
		}
		c.URIs = []*url.URL{u}
	}
}

func extension(id asn1.ObjectIdentifier, critical bool, value []byte) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: id, Critical: critical, Value: value})
	}
}

func TestX1OneURIAndOtherNamesBesideIt(t *testing.T) {
	conformance.Proves(t, "X1")
	names, err := NewDNSNames("cart.shop")
	if err != nil {
		t.Fatal(err)
	}
	checkIssued(t, "",
		issued{"one", nil, ""},
		issued{"none", func(c *x509.Certificate) { c.URIs = nil }, RuleOneURI},
		issued{"two", func(c *x509.Certificate) { c.URIs = append(c.URIs, workloadID.URL()) }, RuleOneURI},
		issued{"a second that is not SPIFFE", func(c *x509.Certificate) { c.URIs = append(c.URIs, &url.URL{Scheme: "https", Host: "a"}) }, RuleOneURI},
	)
	checkIssued(t, names, issued{"a DNS name beside it", func(c *x509.Certificate) { c.DNSNames = names.Names() }, ""})
}

func TestX2LeavesHaveAPath(t *testing.T) {
	conformance.Proves(t, "X2")
	checkIssued(t, "",
		issued{"none", withURI("spiffe://example.org"), RulePath},
		issued{"root", withURI("spiffe://example.org/"), RuleID},
	)
	if _, err := NewCSR(mustKey(t, P256), spiffeid.RequireFromString("spiffe://example.org"), ""); err == nil {
		t.Error("an SVID without a path is asked for")
	}
}

// The request asks for it, and an issuer that drops the flag is refused.
func TestX3SANIsCriticalWithoutASubject(t *testing.T) {
	conformance.Proves(t, "X3")
	san, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: tagURI, Bytes: []byte(workloadID.String())}})
	if err != nil {
		t.Fatal(err)
	}
	checkIssued(t, "",
		issued{"critical", extension(oidSubjectAltName, true, san), ""},
		issued{"not critical", extension(oidSubjectAltName, false, san), RuleSANCritical},
		issued{"not critical, with a subject", func(c *x509.Certificate) {
			c.Subject = pkix.Name{CommonName: "cart"}
			extension(oidSubjectAltName, false, san)(c)
		}, ""},
	)
	request, err := NewCSR(mustKey(t, P256), workloadID, "")
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(request)
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if len(csr.Subject.Names) != 0 || len(csr.Extensions) != 1 || !csr.Extensions[0].Critical {
		t.Errorf("the request has subject %v and extensions %v", csr.Subject, csr.Extensions)
	}
}

// through is a chain whose leaf an intermediate signed, which edit made wrong.
func through(t *testing.T, edit func(*x509.Certificate)) error {
	t.Helper()
	root, key := newAuthority(t, nil, nil), mustKey(t, P256)
	ca := newAuthority(t, root, edit)
	chain := []*x509.Certificate{sign(t, leafTemplate(), ca, key), ca.cert}
	return VerifySVID(chain, Expectation{ID: workloadID, Key: key, Now: epoch, Bundle: bundleOf(root)})
}

func TestX4IDsOfSigningCertificates(t *testing.T) {
	conformance.Proves(t, "X4")
	for uri, want := range map[string]Rule{
		"spiffe://example.org":       "",
		"https://ca.example.org/crl": "", // no SPIFFE ID
		"spiffe://example.org/ca":    RuleSigningID,
		"spiffe://other.org":         RuleSigningID,
	} {
		t.Run(uri, func(t *testing.T) { checkRule(t, through(t, withURI(uri)), want) })
	}
}

// A signing certificate that holds the workload's ID and key and is in the bundle
// is no SVID for all that.
func TestX5SigningCertificatesAuthenticateNobody(t *testing.T) {
	conformance.Proves(t, "X5")
	ca := newAuthority(t, nil, func(c *x509.Certificate) {
		c.Subject, c.URIs = pkix.Name{}, []*url.URL{workloadID.URL()}
		c.KeyUsage |= x509.KeyUsageDigitalSignature
		c.ExtKeyUsage = leafTemplate().ExtKeyUsage
	})
	err := VerifySVID([]*x509.Certificate{ca.cert}, Expectation{ID: workloadID, Key: ca.key, Now: epoch, Bundle: bundleOf(ca)})
	checkRule(t, err, RuleLeafNotCA)
}

func TestX6WhoIsACA(t *testing.T) {
	conformance.Proves(t, "X6")
	checkIssued(t, "",
		issued{"a leaf that is", func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }, RuleLeafNotCA},
		issued{"a leaf that says it is not", func(c *x509.Certificate) { c.BasicConstraintsValid = true }, ""},
	)
	checkRule(t, through(t, nil), "")
	checkRule(t, through(t, func(c *x509.Certificate) { c.IsCA = false }), RuleSigningCA)
	checkRule(t, through(t, func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = false, false }), RuleSigningCA)
}

func TestX8KeyUsageIsThereAndCritical(t *testing.T) {
	conformance.Proves(t, "X8")
	digitalSignature := []byte{3, 2, 7, 0x80}
	none := func(c *x509.Certificate) { c.KeyUsage = 0 }
	checkIssued(t, "",
		issued{"none", none, RuleKeyUsage},
		issued{"critical", func(c *x509.Certificate) { none(c); extension(oidKeyUsage, true, digitalSignature)(c) }, ""},
		issued{"not critical", func(c *x509.Certificate) { none(c); extension(oidKeyUsage, false, digitalSignature)(c) }, RuleKeyUsage},
	)
}

func TestX9KeyUsages(t *testing.T) {
	conformance.Proves(t, "X9")
	with := func(usage x509.KeyUsage) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.KeyUsage = usage }
	}
	checkIssued(t, "",
		issued{"digitalSignature", with(x509.KeyUsageDigitalSignature), ""},
		issued{"all that a leaf may have", with(x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageKeyAgreement), ""},
		issued{"no digitalSignature", with(x509.KeyUsageKeyAgreement), RuleKeyUsage},
		issued{"keyCertSign", with(x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign), RuleKeyUsage},
		issued{"cRLSign", with(x509.KeyUsageDigitalSignature | x509.KeyUsageCRLSign), RuleKeyUsage},
	)
	checkRule(t, through(t, with(x509.KeyUsageCertSign|x509.KeyUsageCRLSign)), "")
	checkRule(t, through(t, with(x509.KeyUsageCRLSign)), RuleSigningCA)
}

func TestX10ExtendedKeyUsages(t *testing.T) {
	conformance.Proves(t, "X10")
	with := func(usages ...x509.ExtKeyUsage) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.ExtKeyUsage = usages }
	}
	checkIssued(t, "",
		issued{"both", with(x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth), ""},
		issued{"both and another", with(x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageOCSPSigning), ""},
		issued{"none, as only SHOULD is said", with(), ""},
		issued{"client alone, as public CAs issue now", with(x509.ExtKeyUsageClientAuth), RuleExtKeyUsage},
		issued{"server alone", with(x509.ExtKeyUsageServerAuth), RuleExtKeyUsage},
		issued{"one of its own", func(c *x509.Certificate) {
			c.ExtKeyUsage, c.UnknownExtKeyUsage = nil, []asn1.ObjectIdentifier{{1, 3, 6, 1, 4, 1, 1}}
		}, RuleExtKeyUsage},
	)
}

// RFC 5280's path validation: signatures, validity, path lengths, name
// constraints, and the bundle of the leaf's own trust domain and no other.
func TestX11PathsToTheBundle(t *testing.T) {
	conformance.Proves(t, "X11")
	root, other := newAuthority(t, nil, nil), newAuthority(t, nil, nil)
	key := mustKey(t, P256)
	short := newAuthority(t, root, func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = 0, true })
	tooDeep := newAuthority(t, short, nil)
	expired := newAuthority(t, root, func(c *x509.Certificate) { c.NotAfter = epoch.Add(-1) })
	elsewhere := newAuthority(t, root, func(c *x509.Certificate) {
		c.PermittedURIDomains, c.PermittedDNSDomainsCritical = []string{"other.org"}, true
	})
	here := newAuthority(t, root, func(c *x509.Certificate) {
		c.PermittedURIDomains, c.PermittedDNSDomainsCritical = []string{workloadID.TrustDomain().Name()}, true
	})
	by := func(cas ...*authority) []*x509.Certificate {
		template := leafTemplate()
		template.SerialNumber = big.NewInt(7)
		chain := []*x509.Certificate{sign(t, template, cas[0], key)}
		for _, ca := range cas {
			if ca != root && ca != other {
				chain = append(chain, ca.cert)
			}
		}
		return chain
	}
	foreign := x509bundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString("other.org"), []*x509.Certificate{root.cert})
	for name, c := range map[string]struct {
		chain  []*x509.Certificate
		bundle *x509bundle.Bundle
		want   Rule
	}{
		"a root":                               {by(root), bundleOf(other, root), ""},
		"an intermediate":                      {by(short), bundleOf(root), ""},
		"constrained to the trust domain":      {by(here), bundleOf(root), ""},
		"constrained to another trust domain":  {by(elsewhere), bundleOf(root), RuleBundle},
		"longer than the path may be":          {by(tooDeep, short), bundleOf(root), RuleBundle},
		"an expired intermediate":              {by(expired), bundleOf(root), RuleBundle},
		"a root that is not in the bundle":     {by(root), bundleOf(other), RuleBundle},
		"the bundle of another trust domain":   {by(root), foreign, RuleBundle},
		"no bundle":                            {by(root), nil, RuleNoBundle},
		"a leaf that somebody else has signed": {by(other), bundleOf(root), RuleBundle},
	} {
		t.Run(name, func(t *testing.T) {
			checkRule(t, VerifySVID(c.chain, Expectation{ID: workloadID, Key: key, Now: epoch, Bundle: c.bundle}), c.want)
		})
	}
}
