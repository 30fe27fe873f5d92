// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/signet-spiffe/signet/internal/pki"
)

const (
	// maxBundleBytes bounds what is read as one bundle. The public web's whole
	// root store is a quarter of it.
	maxBundleBytes = 1 << 20
	// maxAuthorities bounds the roots of one trust domain.
	maxAuthorities = 1000
)

// Source is the bundle of one trust domain over time. Safe for concurrent use.
type Source interface {
	// Bundle returns the present bundle, nil if there is none yet, and a
	// channel that is closed when it has been superseded. The caller owns the
	// bundle.
	Bundle() (*x509bundle.Bundle, <-chan struct{})
}

// present holds a Source's state. The zero value is not ready: see newPresent.
type present struct {
	domain  spiffeid.TrustDomain
	metrics *Metrics

	mu         sync.RWMutex
	bundle     *x509bundle.Bundle // never changed once here
	superseded chan struct{}
}

func newPresent(domain spiffeid.TrustDomain, o options) *present {
	return &present{domain: domain, metrics: o.metrics, superseded: make(chan struct{})}
}

// Bundle implements Source.
func (p *present) Bundle() (*x509bundle.Bundle, <-chan struct{}) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.bundle == nil {
		return nil, p.superseded
	}
	return p.bundle.Clone(), p.superseded
}

// set makes roots the present bundle, unless they are already. Order does not
// make a difference.
func (p *present) set(roots []*x509.Certificate) (changed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bundle != nil && sameSet(p.bundle.X509Authorities(), roots) {
		return false
	}
	p.bundle = x509bundle.FromX509Authorities(p.domain, roots)
	close(p.superseded)
	p.superseded = make(chan struct{})
	p.metrics.changed(p.domain, roots)
	return true
}

// sameSet compares two lists without duplicates.
func sameSet(a, b []*x509.Certificate) bool {
	if len(a) != len(b) {
		return false
	}
	in := make(map[string]bool, len(a))
	for _, c := range a {
		in[string(c.Raw)] = true
	}
	for _, c := range b {
		if !in[string(c.Raw)] {
			return false
		}
	}
	return true
}

// ErrNoCA says that there was nothing to read a CA from.
var ErrNoCA = errors.New("no CA certificate")

// parse reads PEM into certificates, in order and each once.
func parse(pemBytes []byte) ([]*x509.Certificate, error) {
	if len(pemBytes) == 0 {
		return nil, ErrNoCA
	}
	if len(pemBytes) > maxBundleBytes {
		return nil, fmt.Errorf("more than %d bytes", maxBundleBytes)
	}
	certs, err := pki.ParseCertificates(pemBytes)
	if err != nil {
		return nil, err
	}
	certs = unique(certs)
	if len(certs) > maxAuthorities {
		return nil, fmt.Errorf("%d certificates, more than %d", len(certs), maxAuthorities)
	}
	return certs, nil
}

func unique(certs []*x509.Certificate) []*x509.Certificate {
	seen := make(map[string]bool, len(certs))
	kept := certs[:0:0]
	for _, c := range certs {
		if !seen[string(c.Raw)] {
			seen[string(c.Raw)] = true
			kept = append(kept, c)
		}
	}
	return kept
}

// checkAuthority says why a certificate cannot be a root of trust: it must be a
// CA (X509-SVID section 4.1) that may sign certificates (RFC 5280 4.2.1.3; no
// key usage at all allows everything).
func checkAuthority(c *x509.Certificate) error {
	switch {
	case !c.BasicConstraintsValid || !c.IsCA:
		return fmt.Errorf("certificate with subject %q and serial %x is not a CA", c.Subject, c.SerialNumber)
	case c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0:
		return fmt.Errorf("CA with subject %q and serial %x may not sign certificates (key usage)", c.Subject, c.SerialNumber)
	}
	return nil
}

// checkAlive says that a certificate has expired.
func checkAlive(c *x509.Certificate, now time.Time) error {
	if now.After(c.NotAfter) {
		return fmt.Errorf("CA with subject %q and serial %x expired at %s", c.Subject, c.SerialNumber, c.NotAfter.UTC().Format(time.RFC3339))
	}
	return nil
}
