// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workloadapi

import "sync"

// Feed is a Workload whose identity is set from outside. Embed it to give it a name for the log (slog.LogValuer). Safe for
// concurrent use.
type Feed struct {
	mu         sync.Mutex // guards what follows; nothing waits while holding it
	identity   Identity
	superseded chan struct{}
}

// NewFeed makes a Feed with its first identity.
func NewFeed(first Identity) *Feed { return &Feed{identity: first, superseded: make(chan struct{})} }

// Identity implements Workload.
func (f *Feed) Identity() (Identity, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.identity, f.superseded
}

// Set puts i in the place of the identity before.
func (f *Feed) Set(i Identity) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.identity = i
	close(f.superseded)
	f.superseded = make(chan struct{})
}
