// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"slices"
	"testing"
	"time"
)

// A proposal shows what would be and changes nothing.
func TestProposeChangesNothing(t *testing.T) {
	o := NewObserved(domain)
	defer o.Close()
	a, b := newCert(t, "a", nil), newCert(t, "b", nil)
	proposal, err := o.Propose(pemOf(a))
	must(t, err)
	if got := names(proposal); !slices.Equal(got, []string{"a"}) {
		t.Errorf("proposal holds %v", got)
	}
	wantNames(t, o)

	observe(t, o, time.Now().Add(time.Minute), a)
	_, changed := o.Bundle()
	proposal, err = o.Propose(pemOf(b))
	must(t, err)
	if got := names(proposal); len(got) != 2 || !slices.Contains(got, "a") || !slices.Contains(got, "b") {
		t.Errorf("proposal holds %v", got)
	}
	proposal.AddX509Authority(newCert(t, "evil", nil))
	wantNames(t, o, "a")
	if closed(changed) {
		t.Error("the proposal counts as a change")
	}
}

func TestProposeRefuses(t *testing.T) {
	o := NewObserved(domain)
	defer o.Close()
	observe(t, o, time.Now().Add(time.Minute), newCert(t, "a", nil))
	for name, report := range map[string][]byte{
		"empty": nil, "garbage": []byte("garbage"),
		"leaf": pemOf(newCert(t, "x", notCA)), "expired": pemOf(newCert(t, "x", expiredCA)),
	} {
		t.Run(name, func(t *testing.T) {
			if proposal, err := o.Propose(report); err == nil {
				t.Errorf("proposal holds %v", names(proposal))
			}
		})
	}
}
