// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// maxObserved bounds the roots gathered from issuers. A trust domain has one or
// two, during a rotation perhaps three.
const maxObserved = 64

// Observed is a Source fed with what issuers report as their CA. The bundle is
// the union of the roots reported last and of those under which an SVID is still
// alive. It has none until the first report, and never becomes empty again.
//
// It trusts the issuer's word: whoever may write the status of this agent's
// CertificateRequests may add a root. Where that is too much, configure a File.
type Observed struct {
	*present

	mu     sync.Mutex // taken before present's
	roots  map[string]*observation
	order  int
	last   map[string]bool // reported last: kept in any case
	expire *time.Timer     // fires when the next root may go; nil if none will
	closed bool
}

type observation struct {
	cert  *x509.Certificate
	until time.Time
	order int // of first sight, for a bundle that does not reshuffle
}

var _ Source = (*Observed)(nil)

// NewObserved makes an empty Observed.
func NewObserved(domain spiffeid.TrustDomain, opts ...Option) *Observed {
	return &Observed{
		present: newPresent(domain, collect(opts)),
		roots:   map[string]*observation{},
	}
}

// Observe takes in what an issuer reported beside an SVID that is valid until
// the given time. It says whether the bundle changed. Certificates that are no
// CA, or have expired, are left out and named in the error; the others count
// all the same. PEM that does not parse counts for nothing. An empty report is
// ErrNoCA.
func (o *Observed) Observe(caPEM []byte, until time.Time) (changed bool, err error) {
	certs, err := parse(caPEM)
	if err != nil {
		o.metrics.refused(o.domain)
		return false, fmt.Errorf("CA reported by the issuer for trust domain %s: %w", o.domain, err)
	}
	now := time.Now()
	good, refusals := usable(certs, now)

	o.mu.Lock()
	defer o.mu.Unlock()
	if len(good) > 0 {
		if err := o.take(good, until); err != nil {
			refusals = append(refusals, err)
		} else {
			changed = o.settle(now)
		}
	}
	if len(refusals) > 0 {
		o.metrics.refused(o.domain)
		err = fmt.Errorf("CA reported by the issuer for trust domain %s: %w", o.domain, errors.Join(refusals...))
	}
	return changed, err
}

func usable(certs []*x509.Certificate, now time.Time) (good []*x509.Certificate, refusals []error) {
	for _, c := range certs {
		err := checkAuthority(c)
		if err == nil {
			err = checkAlive(c, now)
		}
		if err != nil {
			refusals = append(refusals, err)
			continue
		}
		good = append(good, c)
	}
	return good, refusals
}

// take records roots as reported last. The caller holds mu.
func (o *Observed) take(roots []*x509.Certificate, until time.Time) error {
	fresh := 0
	for _, c := range roots {
		if o.roots[string(c.Raw)] == nil {
			fresh++
		}
	}
	if len(o.roots)+fresh > maxObserved {
		return fmt.Errorf("more than %d different roots within the life of their SVIDs; configure the bundle instead", maxObserved)
	}
	o.last = make(map[string]bool, len(roots))
	for _, c := range roots {
		key := string(c.Raw)
		o.last[key] = true
		seen := o.roots[key]
		if seen == nil {
			o.order++
			seen = &observation{cert: c, order: o.order}
			o.roots[key] = seen
		}
		if until.After(seen.until) {
			seen.until = until
		}
	}
	return nil
}

// settle lets go of roots whose time is over, publishes what is left and sets
// the timer for the next to go. The caller holds mu.
func (o *Observed) settle(now time.Time) (changed bool) {
	var next time.Time
	for key, seen := range o.roots {
		if o.last[key] {
			continue
		}
		end := seen.end()
		if !now.Before(end) {
			delete(o.roots, key)
		} else if next.IsZero() || end.Before(next) {
			next = end
		}
	}
	o.schedule(now, next)
	return o.set(o.sorted())
}

// end is when nothing valid can depend on the root any more.
func (s *observation) end() time.Time {
	if s.cert.NotAfter.Before(s.until) {
		return s.cert.NotAfter
	}
	return s.until
}

func (o *Observed) sorted() []*x509.Certificate {
	all := slices.SortedFunc(maps.Values(o.roots), func(a, b *observation) int { return a.order - b.order })
	certs := make([]*x509.Certificate, 0, len(all))
	for _, seen := range all {
		certs = append(certs, seen.cert)
	}
	return certs
}

func (o *Observed) schedule(now, next time.Time) {
	if o.expire != nil {
		o.expire.Stop()
		o.expire = nil
	}
	if next.IsZero() || o.closed {
		return
	}
	o.expire = time.AfterFunc(next.Sub(now), func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.settle(time.Now())
	})
}

// Close stops the timer that lets go of roots. The bundle stays as it is until
// the next report.
func (o *Observed) Close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	if o.expire != nil {
		o.expire.Stop()
		o.expire = nil
	}
}
