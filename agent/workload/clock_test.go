// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"slices"
	"testing"
	"time"
)

// A clock that is set back wakes every volume, for what it planned has moved away
// with it; one that stands or goes on wakes those whose time has come.
func TestTimersHeedTheClock(t *testing.T) {
	a, b := &entry{}, &entry{}
	for name, tt := range map[string]struct {
		now   time.Duration // Since the first look, by the wall clock.
		want  []*entry
		sleep time.Duration
	}{
		"it goes on":                     {time.Minute, []*entry{a}, longestSleep},
		"it was set forward, or slept":   {time.Hour, []*entry{a, b}, longestSleep},
		"it was corrected by a moment":   {-time.Second, nil, 11 * time.Second},
		"it was set back":                {-time.Hour, []*entry{a, b}, longestSleep},
		"it was set back by two seconds": {-2 * time.Second, []*entry{a, b}, longestSleep},
	} {
		t.Run(name, func(t *testing.T) {
			timers := newTimers()
			timers.due(epoch)
			timers.set(a, epoch.Add(10*time.Second))
			timers.set(b, epoch.Add(5*time.Minute))
			got, sleep := timers.due(epoch.Add(tt.now))
			if !slices.Equal(got, tt.want) {
				t.Errorf("%d entries are due, want %d", len(got), len(tt.want))
			}
			if min(sleep, longestSleep) != tt.sleep {
				t.Errorf("sleeps for %s, want %s", sleep, tt.sleep)
			}
			if again, _ := timers.due(epoch.Add(tt.now)); len(again) != 0 {
				t.Errorf("%d entries are due twice", len(again))
			}
		})
	}
}

// Deadlines are by the wall clock although time.Now has a monotonic reading: that
// one stands still while the machine is suspended.
func TestDeadlinesHaveNoMonotonicReading(t *testing.T) {
	timers, e := newTimers(), &entry{}
	timers.set(e, time.Now().Add(time.Minute))
	if at := timers.index[e].at; at != at.Round(0) {
		t.Errorf("deadline %s has a monotonic reading", at)
	}
	m := Machine{}
	m.Step(time.Now(), Published{})
	m.Step(time.Now(), Prepared{})
	for _, action := range m.Step(time.Now(), Failed{Attempt: 1, Err: ErrPending}) {
		if s, ok := action.(Schedule); ok && s.At == s.At.Round(0) {
			return
		}
	}
	t.Error("the retry is not planned by the wall clock")
}
