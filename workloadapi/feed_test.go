// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workloadapi

import "testing"

// TestFeed: the channel that came with an identity is closed when there is another, and not before.
func TestFeed(t *testing.T) {
	f := NewFeed(Identity{Status: Pending})
	first, changed := f.Identity()
	if _, same := f.Identity(); first.Status != Pending || same != changed {
		t.Errorf("first %s; the same identity has the same channel: %t", first.Status, same == changed)
	}
	select {
	case <-changed:
		t.Fatal("superseded by nothing")
	default:
	}
	f.Set(Identity{Status: Entitled})
	<-changed
	if now, next := f.Identity(); now.Status != Entitled || next == changed {
		t.Errorf("then %s; with a channel of its own: %t", now.Status, next != changed)
	}
}
