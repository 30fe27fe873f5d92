// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package selfca

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/signet-spiffe/signet/agent/issue"
	"github.com/signet-spiffe/signet/internal/pki"
)

// Defaults of Options.
const (
	DefaultLifetime = 24 * time.Hour
	// backdate makes certificates valid for peers whose clock is a little slow.
	backdate = 10 * time.Second
)

// Options configure an Issuer.
type Options struct {
	TrustDomain spiffeid.TrustDomain
	// KeyType of the authority; P-256 if empty.
	KeyType pki.KeyType
	// Lifetime of the authority's certificate; DefaultLifetime if zero. No SVID
	// outlives it.
	Lifetime time.Duration
}

// Issuer signs with a certificate authority in memory. Safe for concurrent use.
type Issuer struct {
	options Options

	mu   sync.RWMutex
	root authority
}

// authority is one root: its certificate and key. Immutable.
type authority struct {
	cert *x509.Certificate
	key  pki.PrivateKey
}

var _ issue.Issuer = (*Issuer)(nil)

// New makes an Issuer and its first root.
func New(o Options) (*Issuer, error) {
	if o.TrustDomain.IsZero() {
		return nil, errors.New("self-made certificate authority: no trust domain")
	}
	if o.KeyType == "" {
		o.KeyType = pki.P256
	}
	if o.Lifetime <= 0 {
		o.Lifetime = DefaultLifetime
	}
	i := &Issuer{options: o}
	if err := i.Rotate(); err != nil {
		return nil, err
	}
	return i, nil
}

// Rotate replaces the root by a new one with a new key. SVIDs already signed
// stay valid under the old root, which is forgotten here.
func (i *Issuer) Rotate() error {
	return i.RotateAfter(func([]byte) error { return nil })
}

// RotateAfter is Rotate with a word before: announce gets the new root (PEM) and may
// take its time. Nothing is signed by the root before announce has returned, so that
// whoever meets an SVID under it can know it. If announce fails the root stays what
// it was, and its error is returned. One call at a time.
func (i *Issuer) RotateAfter(announce func(root []byte) error) error {
	root, err := newAuthority(i.options, time.Now())
	if err != nil {
		return fmt.Errorf("make root of trust domain %s: %w", i.options.TrustDomain, err)
	}
	if err := announce(pki.MarshalCertificates([]*x509.Certificate{root.cert})); err != nil {
		return fmt.Errorf("announce root of trust domain %s: %w", i.options.TrustDomain, err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.root = root
	return nil
}

func newAuthority(o Options, now time.Time) (authority, error) {
	key, err := pki.GenerateKey(o.KeyType)
	if err != nil {
		return authority{}, err
	}
	serial, err := newSerial()
	if err != nil {
		return authority{}, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "Signet in-memory CA", SerialNumber: serial.Text(16)},
		NotBefore:    now.Add(-backdate),
		NotAfter:     now.Add(o.Lifetime),
		// A signing certificate names its trust domain (X509-SVID section 2).
		URIs:                  []*url.URL{o.TrustDomain.ID().URL()},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	cert, err := create(template, template, key.Public(), key)
	if err != nil {
		return authority{}, err
	}
	return authority{cert: cert, key: key}, nil
}

// Bundle returns the present root as a trust bundle. The caller owns it.
func (i *Issuer) Bundle() *x509bundle.Bundle {
	return x509bundle.FromX509Authorities(i.options.TrustDomain, []*x509.Certificate{i.present().cert})
}

func (i *Issuer) present() authority {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.root
}

// Issue implements issue.Issuer. It refuses with issue.ErrDenied what is not a
// proper request for r.ID in this trust domain.
func (i *Issuer) Issue(ctx context.Context, r issue.IssueRequest) (issue.Issued, error) {
	if err := ctx.Err(); err != nil {
		return issue.Issued{}, fmt.Errorf("sign %s: %w", r.ID, context.Cause(ctx))
	}
	if r.Resume != "" { // Nothing here outlives the process.
		return issue.Issued{}, fmt.Errorf("sign %s: %w", r.ID, issue.ErrGone)
	}
	csr, err := i.check(r)
	if err != nil {
		return issue.Issued{}, fmt.Errorf("sign %s: %w: %w", r.ID, issue.ErrDenied, err)
	}
	root := i.present()
	leaf, err := root.sign(csr, r.ID, r.Duration, time.Now())
	if err != nil {
		return issue.Issued{}, fmt.Errorf("sign %s: %w: %w", r.ID, issue.ErrFailed, err)
	}
	return issue.Issued{
		Chain: pki.MarshalCertificates([]*x509.Certificate{leaf}),
		CA:    pki.MarshalCertificates([]*x509.Certificate{root.cert}),
	}, nil
}

// check parses the CSR and holds it against the request.
func (i *Issuer) check(r issue.IssueRequest) (*x509.CertificateRequest, error) {
	if !r.ID.MemberOf(i.options.TrustDomain) {
		return nil, fmt.Errorf("SPIFFE ID is not of trust domain %s", i.options.TrustDomain)
	}
	if r.Duration <= 0 {
		return nil, fmt.Errorf("duration %s is not positive", r.Duration)
	}
	block, rest := pem.Decode(r.CSR)
	if block == nil || block.Type != "CERTIFICATE REQUEST" || len(rest) != 0 {
		return nil, errors.New("CSR is not exactly one PEM block of type CERTIFICATE REQUEST")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse CSR: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("check signature of CSR: %w", err)
	}
	if _, err := pki.KeyTypeOf(csr.PublicKey); err != nil {
		return nil, err
	}
	if len(csr.IPAddresses)+len(csr.EmailAddresses) > 0 || len(csr.URIs) != 1 {
		return nil, errors.New("CSR must name exactly one URI, and beside it DNS names alone")
	}
	if _, err := pki.NewDNSNames(csr.DNSNames...); err != nil {
		return nil, err
	}
	if got := csr.URIs[0].String(); got != r.ID.String() {
		return nil, fmt.Errorf("CSR asks for %q", got)
	}
	return csr, nil
}

// sign makes a leaf for a request that was checked (X509-SVID section 4).
func (a authority) sign(csr *x509.CertificateRequest, id spiffeid.ID, lifetime time.Duration, now time.Time) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	notAfter := now.Add(lifetime)
	if notAfter.After(a.cert.NotAfter) {
		notAfter = a.cert.NotAfter
	}
	if !notAfter.After(now) {
		return nil, fmt.Errorf("the root expired at %s", a.cert.NotAfter.UTC().Format(time.RFC3339))
	}
	usage := x509.KeyUsageDigitalSignature
	if _, ok := csr.PublicKey.(*rsa.PublicKey); ok {
		usage |= x509.KeyUsageKeyEncipherment
	}
	return create(&x509.Certificate{
		SerialNumber:          serial,
		NotBefore:             now.Add(-backdate),
		NotAfter:              notAfter,
		URIs:                  []*url.URL{id.URL()},
		DNSNames:              csr.DNSNames,
		BasicConstraintsValid: true,
		KeyUsage:              usage,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, csr.PublicKey, a.key)
}

func create(template, parent *x509.Certificate, pub crypto.PublicKey, key pki.PrivateKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, key.Signer())
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// newSerial draws 127 random bits: positive, and at most 20 octets (RFC 5280
// 4.1.2.2).
func newSerial() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
}
