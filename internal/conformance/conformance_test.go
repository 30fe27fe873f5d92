// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestTheTableIsComplete(t *testing.T) {
	levels := []Level{Must, MustNot, Should, ShouldNot, May, Fact}
	want := map[string]int{"E": 18, "W": 31, "X": 13, "I": 7, "B": 7}
	for _, group := range Groups() {
		if len(group.Rules) != want[group.Letter] {
			t.Errorf("%s has %d rules, want %d", group.Letter, len(group.Rules), want[group.Letter])
		}
		for n, rule := range group.Rules {
			if rule.ID != fmt.Sprint(group.Letter, n+1) {
				t.Errorf("rule %d of %s is %s", n+1, group.Letter, rule.ID)
			}
			if !slices.Contains(levels, rule.Level) || rule.Source == "" || !strings.HasSuffix(rule.Text, ".") || strings.ContainsAny(rule.Text, "|\n") {
				t.Errorf("%+v", rule)
			}
			if rule.NotApplicable != "" && rule.DoesNotHold != "" {
				t.Errorf("%s is not applicable and does not hold", rule.ID)
			}
			if found, ok := Find(rule.ID); !ok || found != rule {
				t.Errorf("%s is not found", rule.ID)
			}
		}
	}
}

// recorder is a test that only says what was called.
type recorder struct {
	testing.TB
	said []string
}

func (*recorder) Helper()                  {}
func (r *recorder) Attr(key, value string) { r.said = append(r.said, key+": "+value) }
func (r *recorder) Fatalf(format string, args ...any) {
	panic(fmt.Sprintf(format, args...))
}

func TestProvesSaysWhichTestShowsWhat(t *testing.T) {
	r := &recorder{}
	Proves(r, "E1", "X9")
	func() { Proves(r, "I2") }()
	want := []string{"spiffe-rule: E1 by TestProvesSaysWhichTestShowsWhat", "spiffe-rule: X9 by TestProvesSaysWhichTestShowsWhat",
		"spiffe-rule: I2 by TestProvesSaysWhichTestShowsWhat"}
	if !slices.Equal(r.said, want) {
		t.Errorf("said %q", r.said)
	}
	for rule, reason := range map[string]string{"E99": "no E99", "W1": "does not hold", "W26": "not applicable", "": "no "} {
		func() {
			defer func() {
				if said := fmt.Sprint(recover()); !strings.Contains(said, reason) {
					t.Errorf("%q: %s", rule, said)
				}
			}()
			Proves(&recorder{}, rule)
		}()
	}
}
