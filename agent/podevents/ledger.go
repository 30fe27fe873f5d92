// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package podevents

import (
	"maps"
	"time"
)

const (
	// A repeated Event of one volume is patched at once the first time, then no
	// sooner than firstPause after the time before, which doubles up to
	// longestPause.
	firstPause   = 10 * time.Second
	longestPause = 10 * time.Minute
	// forgetAfter is how long after its last occurrence a series ends, and the
	// next occurrence is an Event of its own. The API server keeps Events for an
	// hour by default.
	forgetAfter = time.Hour
	// maxSeries bounds what is remembered: five reasons for more volumes than a
	// node has.
	maxSeries = 8192
)

// series is one Event object: what it was about, how often and since when.
type series struct {
	name  string
	first time.Time
	last  time.Time
	count int32
	// quiet is until when repeats are only counted.
	quiet time.Time
	pause time.Duration
}

// key tells series apart.
type key struct{ volume, reason string }

// ledger decides which occurrences are sent. Pure: time is given. Not safe for
// concurrent use.
type ledger struct {
	series map[key]*series
	swept  time.Time // When ended series were last looked for.
}

func newLedger() *ledger { return &ledger{series: map[key]*series{}} }

// enter takes an occurrence in and says whether to send it now. The series is a
// copy; its count says whether this is the first.
func (l *ledger) enter(k key, now time.Time, name func() string) (series, bool) {
	s := l.series[k]
	if s == nil || now.Sub(s.last) >= forgetAfter {
		l.makeRoom(now)
		s = &series{name: name(), first: now, last: now, count: 1, quiet: now.Add(firstPause), pause: firstPause}
		l.series[k] = s
		return *s, true
	}
	s.count++
	s.last = now
	if now.Before(s.quiet) {
		return *s, false
	}
	s.pause = min(2*s.pause, longestPause)
	s.quiet = now.Add(s.pause)
	return *s, true
}

// makeRoom drops series that have ended, looking for them once a minute at most;
// if there are none, any.
func (l *ledger) makeRoom(now time.Time) {
	if len(l.series) < maxSeries {
		return
	}
	if now.Sub(l.swept) >= time.Minute {
		l.swept = now
		maps.DeleteFunc(l.series, func(_ key, s *series) bool { return now.Sub(s.last) >= forgetAfter })
	}
	for k := range l.series {
		if len(l.series) < maxSeries {
			return
		}
		delete(l.series, k)
	}
}
