// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// testCA signs SVIDs of the trust domain test.example.
type testCA struct {
	t      *testing.T
	key    crypto.Signer
	root   *x509.Certificate
	mu     sync.Mutex
	serial int64
}

func newTestCA(t *testing.T) *testCA {
	t.Helper()
	ca := &testCA{t: t, key: newKey(t)}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test root"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		URIs: []*url.URL{{Scheme: "spiffe", Host: "test.example"}},
	}
	ca.root = ca.sign(template, ca.key.Public(), template)
	return ca
}

func newKey(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (ca *testCA) sign(template *x509.Certificate, key crypto.PublicKey, parent *x509.Certificate) *x509.Certificate {
	ca.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, ca.key)
	if err != nil {
		ca.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		ca.t.Fatal(err)
	}
	return cert
}

// issue makes an SVID with the next serial number.
func (ca *testCA) issue(path string, notAfter time.Time) *x509svid.SVID {
	ca.t.Helper()
	ca.mu.Lock()
	ca.serial++
	serial := 0x1000 + ca.serial
	ca.mu.Unlock()
	id := spiffeid.RequireFromPath(spiffeid.RequireTrustDomainFromString("test.example"), path)
	key := newKey(ca.t)
	cert := ca.sign(&x509.Certificate{
		SerialNumber: big.NewInt(serial), NotBefore: time.Now().Add(-time.Minute), NotAfter: notAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{id.URL()},
	}, key.Public(), ca.root)
	return &x509svid.SVID{ID: id, Certificates: []*x509.Certificate{cert}, PrivateKey: key}
}

func (ca *testCA) bundle() *x509bundle.Bundle {
	return x509bundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString("test.example"), []*x509.Certificate{ca.root})
}

func (ca *testCA) files(svid *x509svid.SVID) map[string][]byte {
	ca.t.Helper()
	cert, key, err := svid.Marshal()
	if err != nil {
		ca.t.Fatal(err)
	}
	return map[string][]byte{
		certFile: cert, keyFile: key,
		bundleFile: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.root.Raw}),
	}
}

// static is a source that is rotated by hand.
type static struct {
	*x509bundle.Bundle
	mu   sync.Mutex
	svid *x509svid.SVID
}

func (ca *testCA) source(path string) *static {
	return &static{Bundle: ca.bundle(), svid: ca.issue(path, time.Now().Add(time.Hour))}
}

func (s *static) GetX509SVID() (*x509svid.SVID, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.svid, nil
}

func (s *static) rotate(to *x509svid.SVID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.svid = to
}

func (*static) Close() error { return nil }
