// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

var epoch = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)

// authority signs test certificates.
type authority struct {
	cert *x509.Certificate
	key  PrivateKey
}

func newAuthority(t testing.TB, parent *authority, edit func(*x509.Certificate)) *authority {
	t.Helper()
	key := mustKey(t, P256)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: "test authority"},
		NotBefore:    epoch.Add(-time.Hour), NotAfter: epoch.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if edit != nil {
		edit(template)
	}
	signer := &authority{cert: template, key: key}
	if parent != nil {
		signer = parent
	}
	return &authority{cert: sign(t, template, signer, key), key: key}
}

func sign(t testing.TB, template *x509.Certificate, by *authority, key PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, by.cert, key.Public(), by.key.Signer())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func leafTemplate() *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotBefore:    epoch, NotAfter: epoch.Add(time.Hour),
		URIs:        []*url.URL{workloadID.URL()},
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
}

// Every rule has its smallest violation: the template of a good certificate with
// one thing changed.
func TestVerifySVIDRules(t *testing.T) {
	root := newAuthority(t, nil, nil)
	other := newAuthority(t, nil, nil)
	key := mustKey(t, P256)
	uri := func(s string) *url.URL { return &url.URL{Scheme: "spiffe", Host: "example.org", Path: s} }
	rawSAN := func(critical bool, names ...asn1.RawValue) []pkix.Extension {
		b, err := asn1.Marshal(names)
		if err != nil {
			t.Fatal(err)
		}
		return []pkix.Extension{{Id: oidSubjectAltName, Critical: critical, Value: b}}
	}
	uriName := asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tagURI, Bytes: []byte(workloadID.String())}
	registeredID := asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 8, Bytes: []byte{42, 3}}

	tests := []struct {
		name string
		edit func(*x509.Certificate)
		by   *authority
		want Rule
	}{
		{name: "good"},
		{name: "good with a subject and SAN not critical", edit: func(c *x509.Certificate) {
			c.Subject.CommonName = "cart"
			c.ExtraExtensions = rawSAN(false, uriName)
		}},
		{name: "good without extended key usage", edit: func(c *x509.Certificate) { c.ExtKeyUsage = nil }},
		{name: "issuer's clock 30 s ahead", edit: func(c *x509.Certificate) { c.NotBefore = epoch.Add(30 * time.Second) }},
		{name: "two URIs", edit: func(c *x509.Certificate) { c.URIs = append(c.URIs, uri("/second")) }, want: RuleOneURI},
		{name: "no URI", edit: func(c *x509.Certificate) { c.URIs = nil }, want: RuleOneURI},
		{name: "not SPIFFE", edit: func(c *x509.Certificate) { c.URIs[0] = &url.URL{Scheme: "https", Host: "example.org", Path: "/x"} }, want: RuleID},
		{name: "query", edit: func(c *x509.Certificate) { u := workloadID.URL(); u.RawQuery = "a=b"; c.URIs[0] = u }, want: RuleID},
		{name: "no path", edit: func(c *x509.Certificate) { c.URIs[0] = uri("") }, want: RulePath},
		{name: "another identity", edit: func(c *x509.Certificate) { c.URIs[0] = uri("/ns/shop/sa/admin") }, want: RuleIDMatch},
		{name: "DNS name", edit: func(c *x509.Certificate) { c.DNSNames = []string{"cart.shop"} }, want: RuleExtraSAN},
		{name: "IP address", edit: func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(10, 0, 0, 1)} }, want: RuleExtraSAN},
		{name: "e-mail", edit: func(c *x509.Certificate) { c.EmailAddresses = []string{"a@b"} }, want: RuleExtraSAN},
		{name: "name kind that Go does not parse", edit: func(c *x509.Certificate) { c.ExtraExtensions = rawSAN(true, uriName, registeredID) }, want: RuleExtraSAN},
		{name: "SAN not critical, no subject", edit: func(c *x509.Certificate) { c.ExtraExtensions = rawSAN(false, uriName) }, want: RuleSANCritical},
		{name: "CA", edit: func(c *x509.Certificate) { c.IsCA = true; c.BasicConstraintsValid = true }, want: RuleLeafNotCA},
		{name: "no key usage", edit: func(c *x509.Certificate) { c.KeyUsage = 0 }, want: RuleKeyUsage},
		{name: "no digitalSignature", edit: func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }, want: RuleKeyUsage},
		{name: "keyCertSign", edit: func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }, want: RuleKeyUsage},
		{name: "cRLSign", edit: func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign }, want: RuleKeyUsage},
		{name: "key usage not critical", edit: func(c *x509.Certificate) {
			c.KeyUsage = 0
			c.ExtraExtensions = []pkix.Extension{{Id: oidKeyUsage, Value: []byte{3, 2, 7, 128}}}
		}, want: RuleKeyUsage},
		{name: "serverAuth alone", edit: func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }, want: RuleExtKeyUsage},
		{name: "anyExtendedKeyUsage alone", edit: func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }, want: RuleExtKeyUsage},
		{name: "expired", edit: func(c *x509.Certificate) { c.NotBefore = epoch.Add(-time.Hour); c.NotAfter = epoch }, want: RuleValidity},
		{name: "not yet valid", edit: func(c *x509.Certificate) { c.NotBefore = epoch.Add(2 * time.Minute) }, want: RuleValidity},
		{name: "ends before it begins", edit: func(c *x509.Certificate) { c.NotAfter = c.NotBefore }, want: RuleValidity},
		{name: "another authority", by: other, want: RuleBundle},
	}
	bundle := x509bundle.FromX509Authorities(workloadID.TrustDomain(), []*x509.Certificate{root.cert})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			template := leafTemplate()
			if tt.edit != nil {
				tt.edit(template)
			}
			by := root
			if tt.by != nil {
				by = tt.by
			}
			leaf := sign(t, template, by, key)
			err := VerifySVID([]*x509.Certificate{leaf}, Expectation{ID: workloadID, Key: key, Now: epoch, Bundle: bundle})
			checkRule(t, err, tt.want)
		})
	}
}

// A certificate holds the DNS names that were asked for, in any order, and no
// others.
func TestVerifySVIDDNSNames(t *testing.T) {
	root := newAuthority(t, nil, nil)
	key := mustKey(t, P256)
	bundle := x509bundle.FromX509Authorities(workloadID.TrustDomain(), []*x509.Certificate{root.cert})
	for name, c := range map[string]struct {
		asked DNSNames
		holds []string
		want  Rule
		says  string
	}{
		"one":               {"a.shop", []string{"a.shop"}, "", ""},
		"another order":     {"a.shop,b.shop", []string{"b.shop", "a.shop"}, "", ""},
		"missing":           {"a.shop", nil, RuleDNSNames, `DNS name "a.shop"`},
		"one of two":        {"a.shop,b.shop", []string{"b.shop"}, RuleDNSNames, `DNS name "a.shop"`},
		"another":           {"a.shop", []string{"b.shop"}, RuleDNSNames, ""},
		"in upper case":     {"a.shop", []string{"A.shop"}, RuleDNSNames, ""},
		"wildcard for it":   {"a.shop", []string{"*.shop"}, RuleDNSNames, ""},
		"one more":          {"a.shop", []string{"a.shop", "b.shop"}, RuleExtraSAN, `DNS ["b.shop"]`},
		"not asked for":     {"", []string{"a.shop"}, RuleExtraSAN, `DNS ["a.shop"]`},
		"twice":             {"a.shop", []string{"a.shop", "a.shop"}, RuleExtraSAN, "3 subject alternative names"},
		"twice for another": {"a.shop,b.shop", []string{"a.shop", "a.shop"}, RuleDNSNames, ""},
	} {
		t.Run(name, func(t *testing.T) {
			template := leafTemplate()
			template.DNSNames = c.holds
			leaf := sign(t, template, root, key)
			err := VerifySVID([]*x509.Certificate{leaf}, Expectation{ID: workloadID, DNSNames: c.asked, Key: key, Now: epoch, Bundle: bundle})
			checkRule(t, err, c.want)
			if len(c.says) > 0 && (err == nil || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("%v does not say %q", err, c.says)
			}
		})
	}
}

func checkRule(t *testing.T, err error, want Rule) {
	t.Helper()
	if want == "" {
		if err != nil {
			t.Errorf("refused: %v", err)
		}
		return
	}
	var broken *RuleError
	if !errors.As(err, &broken) {
		t.Fatalf("error %v, want rule %s", err, want)
	}
	if broken.Rule != want {
		t.Errorf("refused by %v, want rule %s", err, want)
	}
}

func TestVerifySVIDChain(t *testing.T) {
	root := newAuthority(t, nil, nil)
	intermediate := newAuthority(t, root, nil)
	weak := newAuthority(t, root, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign })
	pathID := newAuthority(t, root, func(c *x509.Certificate) { c.URIs = []*url.URL{workloadID.URL()} })
	foreignID := newAuthority(t, root, func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "spiffe", Host: "other.org"}} })
	key, otherKey := mustKey(t, P256), mustKey(t, P256)
	bundle := x509bundle.FromX509Authorities(workloadID.TrustDomain(), []*x509.Certificate{root.cert})
	foreign := x509bundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString("other.org"), []*x509.Certificate{root.cert})
	by := func(a *authority) *x509.Certificate { return sign(t, leafTemplate(), a, key) }
	good := Expectation{ID: workloadID, Key: key, Now: epoch, Bundle: bundle}
	with := func(edit func(*Expectation)) Expectation { e := good; edit(&e); return e }

	tests := []struct {
		name  string
		chain []*x509.Certificate
		want  Expectation
		rule  Rule
	}{
		{"through an intermediate", []*x509.Certificate{by(intermediate), intermediate.cert}, good, ""},
		{"with the root in the chain", []*x509.Certificate{by(root), root.cert}, good, ""},
		{"intermediate missing", []*x509.Certificate{by(intermediate)}, good, RuleBundle},
		{"empty", nil, good, RuleChain},
		{"wrong key", []*x509.Certificate{by(root)}, with(func(e *Expectation) { e.Key = otherKey }), RuleKeyMatch},
		{"no key", []*x509.Certificate{by(root)}, with(func(e *Expectation) { e.Key = PrivateKey{} }), RuleKeyMatch},
		{"no bundle", []*x509.Certificate{by(root)}, with(func(e *Expectation) { e.Bundle = nil }), RuleNoBundle},
		{"empty bundle", []*x509.Certificate{by(root)}, with(func(e *Expectation) { e.Bundle = x509bundle.New(workloadID.TrustDomain()) }), RuleNoBundle},
		{"bundle of another trust domain", []*x509.Certificate{by(root)}, with(func(e *Expectation) { e.Bundle = foreign }), RuleBundle},
		{"leaf as intermediate", []*x509.Certificate{by(root), by(root)}, good, RuleSigningCA},
		{"intermediate may not sign", []*x509.Certificate{by(root), weak.cert}, good, RuleSigningCA},
		{"intermediate with a workload's ID", []*x509.Certificate{by(root), pathID.cert}, good, RuleSigningID},
		{"intermediate of another trust domain", []*x509.Certificate{by(root), foreignID.cert}, good, RuleSigningID},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			checkRule(t, VerifySVID(tt.chain, tt.want), tt.rule)
		})
	}
}

func BenchmarkVerifySVID(b *testing.B) {
	root := newAuthority(b, nil, nil)
	key := mustKey(b, P256)
	leaf := sign(b, leafTemplate(), root, key)
	want := Expectation{ID: workloadID, Key: key, Now: epoch, Bundle: x509bundle.FromX509Authorities(workloadID.TrustDomain(), []*x509.Certificate{root.cert})}
	for b.Loop() {
		if err := VerifySVID([]*x509.Certificate{leaf}, want); err != nil {
			b.Fatal(err)
		}
	}
}

func TestLeadsTo(t *testing.T) {
	root, other := newAuthority(t, nil, nil), newAuthority(t, nil, nil)
	middle := newAuthority(t, root, nil)
	leaf := sign(t, leafTemplate(), middle, mustKey(t, P256))
	chain := []*x509.Certificate{leaf, middle.cert}
	bundle := func(roots ...*authority) *x509bundle.Bundle {
		b := x509bundle.New(workloadID.TrustDomain())
		for _, r := range roots {
			b.AddX509Authority(r.cert)
		}
		return b
	}
	for name, tt := range map[string]struct {
		chain  []*x509.Certificate
		bundle *x509bundle.Bundle
		at     time.Time
		want   bool
	}{
		"its root":                       {chain, bundle(other, root), epoch, true},
		"another root":                   {chain, bundle(other), epoch, false},
		"no root":                        {chain, bundle(), epoch, false},
		"intermediate missing":           {chain[:1], bundle(root), epoch, false},
		"leaf not valid yet":             {chain, bundle(root), epoch.Add(-time.Minute), true},
		"leaf expired":                   {chain, bundle(root), epoch.Add(2 * time.Hour), true},
		"leaf expired, its root is gone": {chain, bundle(other), epoch.Add(2 * time.Hour), false},
		"nothing":                        {nil, bundle(root), epoch, false},
	} {
		if got := LeadsTo(tt.chain, tt.bundle, tt.at); got != tt.want {
			t.Errorf("%s: %t, want %t", name, got, tt.want)
		}
	}
}
