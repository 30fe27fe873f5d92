// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"time"

	"github.com/signet-spiffe/signet/internal/pki"
)

// DefaultReissueWindow spreads re-issuance so that a cluster of 10,000 volumes
// asks for some 30 SVIDs per second.
const DefaultReissueWindow = 5 * time.Minute

// Basis is what an SVID was issued with, as far as configuration decides it. It
// is kept with the volume, so that an agent that was restarted with other flags
// notices. Empty parts are not known and differ from nothing.
type Basis struct {
	// Issuer names who was asked, in issue.Issued's words.
	Issuer   string
	KeyType  pki.KeyType
	Duration time.Duration
}

// Signer tells which issuer a request made now would go to. It is what makes
// SVIDs of another one be issued again.
type Signer interface {
	// Issuer names it as issue.Issued.Issuer does, "" while it is not known, and
	// returns a channel that is closed when it has become another one.
	Issuer() (name string, superseded <-chan struct{})
}

// Reasons for re-issuance, as labels of the metric.
const (
	reasonIssuer    = "issuer"
	reasonKeyType   = "key_type"
	reasonDuration  = "duration"
	reasonAuthority = "authority"
)

var reasons = []string{reasonIssuer, reasonKeyType, reasonDuration, reasonAuthority}

// wanted is what an SVID for v would be issued with now.
func (r *Registry) wanted(v Volume) Basis {
	b := Basis{KeyType: r.keyType(v.Attributes), Duration: r.duration(v.Attributes)}
	if r.Signer != nil {
		b.Issuer, _ = r.Signer.Issuer()
	}
	return b
}

// outdated says why svid is not what v would get now; "" if it is.
func (r *Registry) outdated(v Volume, svid *SVID) string {
	was, wanted := svid.Basis, r.wanted(v)
	switch {
	case differ(was.Issuer, wanted.Issuer):
		return reasonIssuer
	case differ(was.KeyType, wanted.KeyType):
		return reasonKeyType
	case differ(was.Duration, wanted.Duration):
		return reasonDuration
	}
	// An authority that was taken out of the bundle is trusted by nobody any
	// more, and so are the SVIDs that it signed.
	bundle, _ := r.Trust.Bundle()
	if bundle != nil && !pki.LeadsTo(svid.Chain, bundle, time.Now()) {
		return reasonAuthority
	}
	return ""
}

// differ says that both are known and not the same.
func differ[T comparable](a, b T) bool {
	var unknown T
	return a != b && a != unknown && b != unknown
}

// followSigner has every volume looked at whenever the issuer is another one.
func (r *Registry) followSigner(ctx context.Context) {
	for {
		_, superseded := r.Signer.Issuer()
		// After the channel was fetched, so that a change between two rounds is
		// not missed. Entries whose SVID is what is wanted do nothing.
		for _, e := range r.all() {
			e.post(message{event: Reissue{}})
		}
		select {
		case <-ctx.Done():
			return
		case <-superseded:
		}
	}
}

// reconsider has the SVID issued again, within the window, if it is not what the
// volume would get now.
func (e *entry) reconsider() {
	if e.machine.Phase() != Ready || e.current == nil {
		return
	}
	reason := e.registry.outdated(e.volume, e.current)
	if reason == "" {
		return
	}
	before := e.machine.early
	e.step(Reissue{Window: e.registry.ReissueWindow, Jitter: jitter()})
	if e.machine.early && !before {
		e.registry.metrics.reissues.WithLabelValues(reason).Inc()
		e.log.Info("SVID is not what would be issued now and will be replaced", "reason", reason, "at", e.machine.renew)
	}
}
