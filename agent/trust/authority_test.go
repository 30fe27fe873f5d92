// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

var (
	domain = spiffeid.RequireTrustDomainFromString("example.org")
	other  = spiffeid.RequireTrustDomainFromString("other.org")
)

var serials atomic.Int64

// newCert makes a self-signed CA that is valid for an hour, edited at will.
func newCert(t testing.TB, name string, edit func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serials.Add(1)), Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-time.Minute), NotAfter: now.Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if edit != nil {
		edit(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func expiredCA(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }

func notCA(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, x509.KeyUsageDigitalSignature }

func noCertSign(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign }

func pemOf(certs ...*x509.Certificate) []byte {
	var out bytes.Buffer
	for _, c := range certs {
		_ = pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
	return out.Bytes()
}

// names of the authorities in a bundle, in order.
func names(b *x509bundle.Bundle) []string {
	if b == nil {
		return nil
	}
	var out []string
	for _, c := range b.X509Authorities() {
		out = append(out, c.Subject.CommonName)
	}
	return out
}

func wantNames(t *testing.T, s Source, want ...string) {
	t.Helper()
	b, _ := s.Bundle()
	if got := names(b); !slices.Equal(got, want) {
		t.Errorf("bundle holds %v, want %v", got, want)
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
