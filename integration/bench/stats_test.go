// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// upTo is 1 ms, 2 ms, … n ms, the longest first.
func upTo(n int) Latencies {
	var l Latencies
	for i := n; i > 0; i-- {
		l = append(l, time.Duration(i)*time.Millisecond)
	}
	return l
}

func TestPercentileIsNearestRank(t *testing.T) {
	for _, test := range []struct {
		of   Latencies
		p    float64
		want time.Duration
	}{
		{nil, 50, 0},
		{upTo(1), 0, time.Millisecond},
		{upTo(1), 99, time.Millisecond},
		{upTo(2), 50, time.Millisecond},
		{upTo(3), 50, 2 * time.Millisecond},
		{upTo(100), 50, 50 * time.Millisecond},
		{upTo(100), 90, 90 * time.Millisecond},
		{upTo(100), 99, 99 * time.Millisecond},
		{upTo(100), 99.1, 100 * time.Millisecond},
		{upTo(110), 99, 109 * time.Millisecond},
		{upTo(100), 100, 100 * time.Millisecond},
	} {
		if got := test.of.Percentile(test.p); got != test.want {
			t.Errorf("p%v of %d values: %s, want %s", test.p, len(test.of), got, test.want)
		}
	}
}

func TestPercentileLeavesTheOrderAlone(t *testing.T) {
	l := upTo(3)
	l.Percentile(50)
	if diff := cmp.Diff(upTo(3), l); diff != "" {
		t.Error(diff)
	}
}

func TestSplitKeepsOrderAndLosesNothing(t *testing.T) {
	for n, want := range map[int][]int{1: {7}, 2: {3, 4}, 3: {2, 2, 3}, 7: {1, 1, 1, 1, 1, 1, 1}, 20: {1, 1, 1, 1, 1, 1, 1}} {
		var sizes []int
		var joined Latencies
		for _, part := range upTo(7).Split(n) {
			sizes, joined = append(sizes, len(part)), append(joined, part...)
		}
		if diff := cmp.Diff(want, sizes); diff != "" {
			t.Errorf("in %d: %s", n, diff)
		}
		if diff := cmp.Diff(upTo(7), joined); diff != "" {
			t.Errorf("in %d: %s", n, diff)
		}
	}
}

// at is a round of the given rate.
func at(perSecond int) Round {
	return Round{Wall: 2 * time.Second, Latencies: upTo(2 * perSecond)}
}

func TestRounds(t *testing.T) {
	rounds := Rounds{at(30), at(10), at(40), at(20)}
	rounds[1].Failed = 3
	if got := rounds.Median().PerSecond(); got != 20 {
		t.Errorf("median %v/s, want the lower one in the middle, 20/s", got)
	}
	if slowest, fastest := rounds.Spread(); slowest != 10 || fastest != 40 {
		t.Errorf("from %v to %v, want 10 to 40", slowest, fastest)
	}
	total := rounds.Total()
	if total.Failed != 3 || total.Wall != 8*time.Second || total.PerSecond() != 25 {
		t.Errorf("total: %d failed in %s at %v/s", total.Failed, total.Wall, total.PerSecond())
	}
	if none := (Rounds)(nil).Median(); none.PerSecond() != 0 {
		t.Errorf("nothing has a rate of %v", none.PerSecond())
	}
}

// What fails is not counted as done.
func TestRateIsOfSuccess(t *testing.T) {
	var collected tally
	collected.add(time.Millisecond, nil)
	collected.add(time.Second, errFailed)
	round, err := collected.end(time.Now().Add(-time.Second))
	if err == nil || round.Failed != 1 || len(round.Latencies) != 1 {
		t.Errorf("%+v, %v", round, err)
	}
	if rate := round.PerSecond(); rate > 1 || rate < 0.1 {
		t.Errorf("%v/s, want about 1/s", rate)
	}
}
