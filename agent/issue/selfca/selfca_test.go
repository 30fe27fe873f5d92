// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package selfca

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/signet-spiffe/signet/agent/issue"
	"github.com/signet-spiffe/signet/internal/pki"
)

var (
	domain = spiffeid.RequireTrustDomainFromString("example.org")
	web    = spiffeid.RequireFromString("spiffe://example.org/ns/shop/sa/web")
	api    = spiffeid.RequireFromString("spiffe://example.org/ns/shop/sa/api")
)

func newIssuer(t testing.TB, o Options) *Issuer {
	t.Helper()
	o.TrustDomain = domain
	i, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func keyAndCSR(t testing.TB, kt pki.KeyType, id spiffeid.ID) (pki.PrivateKey, []byte) {
	t.Helper()
	key, err := pki.GenerateKey(kt)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.NewCSR(key, id, "")
	if err != nil {
		t.Fatal(err)
	}
	return key, csr
}

// The issuer's SVIDs pass the same verification as cert-manager's have to.
func TestIssuedSVIDVerifies(t *testing.T) {
	for _, root := range []pki.KeyType{pki.P256, pki.Ed25519} {
		for _, leaf := range []pki.KeyType{pki.P256, pki.P384, pki.Ed25519, pki.RSA2048} {
			t.Run(string(root)+"/"+string(leaf), func(t *testing.T) {
				i := newIssuer(t, Options{KeyType: root})
				key, csr := keyAndCSR(t, leaf, web)
				got, err := i.Issue(t.Context(), issue.IssueRequest{ID: web, CSR: csr, Duration: time.Hour})
				if err != nil {
					t.Fatal(err)
				}
				chain, err := pki.ParseCertificates(got.Chain)
				if err != nil {
					t.Fatal(err)
				}
				want := pki.Expectation{ID: web, Key: key, Now: time.Now(), Bundle: i.Bundle()}
				if err := pki.VerifySVID(chain, want); err != nil {
					t.Error(err)
				}
				if ca := pki.MarshalCertificates(i.Bundle().X509Authorities()); !bytes.Equal(got.CA, ca) {
					t.Error("the CA returned is not the bundle's")
				}
				if d := chain[0].NotAfter.Sub(chain[0].NotBefore); d < time.Hour || d > time.Hour+time.Minute {
					t.Errorf("lifetime %s, want an hour and a little", d)
				}
			})
		}
	}
}

func TestDNSNamesAreSigned(t *testing.T) {
	i := newIssuer(t, Options{})
	key, err := pki.GenerateKey(pki.P256)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.NewCSR(key, web, "a.shop,b.shop")
	if err != nil {
		t.Fatal(err)
	}
	got, err := i.Issue(t.Context(), issue.IssueRequest{ID: web, CSR: csr, Duration: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	chain, err := pki.ParseCertificates(got.Chain)
	if err != nil {
		t.Fatal(err)
	}
	want := pki.Expectation{ID: web, DNSNames: "a.shop,b.shop", Key: key, Now: time.Now(), Bundle: i.Bundle()}
	if err := pki.VerifySVID(chain, want); err != nil {
		t.Error(err)
	}
}

func TestIssueRefuses(t *testing.T) {
	i := newIssuer(t, Options{})
	_, good := keyAndCSR(t, pki.P256, web)
	foreign := spiffeid.RequireFromString("spiffe://other.org/ns/shop/sa/web")
	_, foreignCSR := keyAndCSR(t, pki.P256, foreign)
	block, _ := pem.Decode(good)
	block.Bytes[len(block.Bytes)-1] ^= 1 // The end of the signature.
	tampered := pem.EncodeToMemory(block)
	for name, r := range map[string]issue.IssueRequest{
		"another ID":        {ID: api, CSR: good, Duration: time.Hour},
		"foreign domain":    {ID: foreign, CSR: foreignCSR, Duration: time.Hour},
		"no CSR":            {ID: web, Duration: time.Hour},
		"garbage":           {ID: web, CSR: []byte("garbage"), Duration: time.Hour},
		"two blocks":        {ID: web, CSR: append(bytes.Clone(good), good...), Duration: time.Hour},
		"tampered":          {ID: web, CSR: tampered, Duration: time.Hour},
		"no duration":       {ID: web, CSR: good},
		"negative duration": {ID: web, CSR: good, Duration: -time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := i.Issue(t.Context(), r); !errors.Is(err, issue.ErrDenied) {
				t.Errorf("got %v with %d bytes of chain, want ErrDenied", err, len(got.Chain))
			}
		})
	}
}

func TestIssueHonoursContext(t *testing.T) {
	i := newIssuer(t, Options{})
	_, csr := keyAndCSR(t, pki.P256, web)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := i.Issue(ctx, issue.IssueRequest{ID: web, CSR: csr, Duration: time.Hour})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

func TestRotateChangesRoot(t *testing.T) {
	i := newIssuer(t, Options{})
	before := i.Bundle()
	key, csr := keyAndCSR(t, pki.P256, web)
	if err := i.Rotate(); err != nil {
		t.Fatal(err)
	}
	got, err := i.Issue(t.Context(), issue.IssueRequest{ID: web, CSR: csr, Duration: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	chain, err := pki.ParseCertificates(got.Chain)
	if err != nil {
		t.Fatal(err)
	}
	want := pki.Expectation{ID: web, Key: key, Now: time.Now(), Bundle: before}
	if err := pki.VerifySVID(chain, want); err == nil {
		t.Error("SVID of the new root verifies under the old one")
	}
	want.Bundle = i.Bundle()
	if err := pki.VerifySVID(chain, want); err != nil {
		t.Error(err)
	}
}

func TestRootIsAnnouncedBeforeItSigns(t *testing.T) {
	i := newIssuer(t, Options{})
	before := i.Bundle()
	var announced []byte
	announce := func(root []byte) error {
		announced = root
		if !i.Bundle().Equal(before) {
			t.Error("the root signs while it is announced")
		}
		return nil
	}
	if err := i.RotateAfter(announce); err != nil {
		t.Fatal(err)
	}
	if after := i.Bundle(); after.Equal(before) || !bytes.Equal(announced, pki.MarshalCertificates(after.X509Authorities())) {
		t.Error("the root announced is not the one that signs")
	}
	present, broken := i.Bundle(), errors.New("broken")
	if err := i.RotateAfter(func([]byte) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if !i.Bundle().Equal(present) {
		t.Error("a root that nobody was told of signs")
	}
}

func TestLeafDoesNotOutliveRoot(t *testing.T) {
	i := newIssuer(t, Options{Lifetime: time.Minute})
	_, csr := keyAndCSR(t, pki.P256, web)
	got, err := i.Issue(t.Context(), issue.IssueRequest{ID: web, CSR: csr, Duration: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	chain, err := pki.ParseCertificates(got.Chain)
	if err != nil {
		t.Fatal(err)
	}
	if root := i.Bundle().X509Authorities()[0]; chain[0].NotAfter.After(root.NotAfter) {
		t.Errorf("leaf until %s, root until %s", chain[0].NotAfter, root.NotAfter)
	}
}
