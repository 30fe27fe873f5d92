// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"context"
	"fmt"
	"sync"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Bundles is the set of trust bundles in use, one per trust domain: the own and
// those federated with. Safe for concurrent use.
type Bundles struct {
	mu         sync.RWMutex
	byDomain   map[spiffeid.TrustDomain]*x509bundle.Bundle // values never changed
	superseded chan struct{}
}

// NewBundles makes an empty set.
func NewBundles() *Bundles {
	return &Bundles{byDomain: map[spiffeid.TrustDomain]*x509bundle.Bundle{}, superseded: make(chan struct{})}
}

// Set returns the present set and a channel that is closed when it has been
// superseded. The caller owns the set. It holds no empty bundle.
func (b *Bundles) Set() (*x509bundle.Set, <-chan struct{}) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	set := x509bundle.NewSet()
	for _, bundle := range b.byDomain {
		set.Add(bundle.Clone())
	}
	return set, b.superseded
}

// Get returns the bundle of one trust domain, or nil. The caller owns it.
func (b *Bundles) Get(domain spiffeid.TrustDomain) *x509bundle.Bundle {
	b.mu.RLock()
	defer b.mu.RUnlock()
	bundle := b.byDomain[domain]
	if bundle == nil {
		return nil
	}
	return bundle.Clone()
}

// Put replaces the bundle of its trust domain and says whether that changed
// anything. A bundle without authorities is an error and changes nothing.
func (b *Bundles) Put(bundle *x509bundle.Bundle) (changed bool, err error) {
	domain := bundle.TrustDomain()
	if bundle.Empty() {
		return false, fmt.Errorf("bundle of trust domain %s holds no authority", domain)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if old := b.byDomain[domain]; old != nil && sameSet(old.X509Authorities(), bundle.X509Authorities()) {
		return false, nil
	}
	b.byDomain[domain] = bundle.Clone()
	b.supersede()
	return true, nil
}

// Remove takes a trust domain out of the set and says whether it was in it.
func (b *Bundles) Remove(domain spiffeid.TrustDomain) (changed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.byDomain[domain] == nil {
		return false
	}
	delete(b.byDomain, domain)
	b.supersede()
	return true
}

// supersede: the caller holds mu.
func (b *Bundles) supersede() {
	close(b.superseded)
	b.superseded = make(chan struct{})
}

// Follow puts what the source gives into the set, now and whenever it changes,
// until ctx ends. The last bundle stays. It returns at once after ctx has ended;
// run it in a goroutine. What the source has when Follow is called is in the set
// only after Follow has run: call Sync first where that matters.
func (b *Bundles) Follow(ctx context.Context, s Source) {
	for {
		changed := b.Sync(s)
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// Sync puts what the source has now into the set. The channel it returns is
// closed when the source has something else.
func (b *Bundles) Sync(s Source) <-chan struct{} {
	bundle, changed := s.Bundle()
	if bundle != nil && !bundle.Empty() {
		// Put fails on empty bundles only.
		_, _ = b.Put(bundle)
	}
	return changed
}
