// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"math"
	"slices"
	"time"
)

// Latencies are how long operations of one kind took.
type Latencies []time.Duration

// Percentile is the nearest-rank percentile: the smallest of the values that at
// least p percent of them do not exceed. Zero if there are none.
func (l Latencies) Percentile(p float64) time.Duration {
	if len(l) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(l))
	rank := int(math.Ceil(p / 100 * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// Split cuts the values, in their order, into n parts of nearly equal length;
// into fewer if there are fewer values.
func (l Latencies) Split(n int) []Latencies {
	n = min(n, len(l))
	parts := make([]Latencies, 0, n)
	for i := range n {
		parts = append(parts, l[i*len(l)/n:(i+1)*len(l)/n])
	}
	return parts
}

// Round is a number of issuances that were measured together: a burst, or a
// window of sustained load.
type Round struct {
	// Wall is from the first begin to the last end; of a window, its length.
	Wall time.Duration
	// Latencies are those of the issuances that succeeded.
	Latencies Latencies
	Failed    int
}

// PerSecond is the rate of success.
func (r Round) PerSecond() float64 {
	if r.Wall <= 0 {
		return 0
	}
	return float64(len(r.Latencies)) / r.Wall.Seconds()
}

// Rounds are repetitions of one measurement.
type Rounds []Round

// Median is the round of the median rate, the lower one of an even number; the
// zero Round if there is none.
func (r Rounds) Median() Round {
	if len(r) == 0 {
		return Round{}
	}
	sorted := slices.SortedStableFunc(slices.Values(r), func(a, b Round) int {
		return compare(a.PerSecond(), b.PerSecond())
	})
	return sorted[(len(sorted)-1)/2]
}

// Total joins all rounds into one.
func (r Rounds) Total() Round {
	var total Round
	for _, round := range r {
		total.Wall += round.Wall
		total.Latencies = append(total.Latencies, round.Latencies...)
		total.Failed += round.Failed
	}
	return total
}

// Spread is the slowest and the fastest round's rate.
func (r Rounds) Spread() (slowest, fastest float64) {
	for i, round := range r {
		rate := round.PerSecond()
		if i == 0 || rate < slowest {
			slowest = rate
		}
		fastest = max(fastest, rate)
	}
	return slowest, fastest
}

func compare(a, b float64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// Pair holds what belongs to Signet and to the floor.
type Pair[T any] struct{ Signet, Floor T }
