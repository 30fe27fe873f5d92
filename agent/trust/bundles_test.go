// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"context"
	"crypto/x509"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"

	"github.com/signet-spiffe/signet/internal/conformance"
)

func TestBundlesAreNeverMerged(t *testing.T) {
	conformance.Proves(t, "B7")
	b := NewBundles()
	for td, name := range map[*x509bundle.Bundle]string{
		x509bundle.FromX509Authorities(domain, []*x509.Certificate{newCert(t, "own", nil)}):    "own",
		x509bundle.FromX509Authorities(other, []*x509.Certificate{newCert(t, "foreign", nil)}): "foreign",
	} {
		if changed, err := b.Put(td); err != nil || !changed {
			t.Fatalf("%s: %t, %v", name, changed, err)
		}
	}
	if got := names(b.Get(domain)); len(got) != 1 || got[0] != "own" {
		t.Errorf("own bundle holds %v", got)
	}
	if got := names(b.Get(other)); len(got) != 1 || got[0] != "foreign" {
		t.Errorf("foreign bundle holds %v", got)
	}
	if set, _ := b.Set(); set.Len() != 2 {
		t.Errorf("%d bundles in the set", set.Len())
	}
}

func TestBundlesChanges(t *testing.T) {
	b := NewBundles()
	a := x509bundle.FromX509Authorities(domain, []*x509.Certificate{newCert(t, "a", nil)})
	if _, err := b.Put(x509bundle.New(domain)); err == nil {
		t.Error("an empty bundle was put")
	}
	_, changed := b.Set()
	if ok, err := b.Put(a); err != nil || !ok || !closed(changed) {
		t.Errorf("put: %t, %v, told: %t", ok, err, closed(changed))
	}
	_, changed = b.Set()
	if ok, err := b.Put(a.Clone()); err != nil || ok || closed(changed) {
		t.Error("the same again is a change")
	}
	if _, err := b.Put(x509bundle.New(domain)); err == nil || b.Get(domain) == nil {
		t.Error("an empty bundle replaced a good one")
	}
	// The set handed out is the caller's, and so is what was put in.
	set, _ := b.Set()
	got, _ := set.Get(domain)
	got.AddX509Authority(newCert(t, "evil", nil))
	a.AddX509Authority(newCert(t, "late", nil))
	if n := names(b.Get(domain)); len(n) != 1 {
		t.Errorf("bundle holds %v", n)
	}
	if !b.Remove(domain) || !closed(changed) || b.Get(domain) != nil || b.Remove(domain) {
		t.Error("remove does not")
	}
}

func TestBundlesFollow(t *testing.T) {
	o := NewObserved(domain)
	defer o.Close()
	b := NewBundles()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { b.Follow(ctx, o) })
	defer running.Wait()
	defer cancel()

	for _, name := range []string{"a", "b", "c"} {
		_, changed := b.Set()
		observe(t, o, time.Now().Add(time.Minute), newCert(t, name, nil))
		select {
		case <-changed:
		case <-time.After(10 * time.Second):
			t.Fatalf("root %s does not arrive", name)
		}
	}
	if n := names(b.Get(domain)); len(n) != 3 {
		t.Errorf("bundle holds %v", n)
	}
}
