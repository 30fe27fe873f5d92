// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"container/heap"
	"context"
	"sync"
	"time"
)

// longestSleep bounds how long the timer goroutine trusts its own sleep. Expiry
// is wall-clock time, and a sleep does not see the clock being set or the machine
// being suspended.
const longestSleep = 30 * time.Second

// setBack is how far the wall clock must go backwards to count as set. Corrections
// below that put nothing off that matters.
const setBack = time.Second

// timers holds the next deadline of every volume in one heap, served by one
// goroutine. Deadlines are by the wall clock.
type timers struct {
	mu    sync.Mutex
	queue timerQueue
	index map[*entry]*timer
	last  time.Time     // When due was asked last, by the wall clock.
	wake  chan struct{} // Buffered; says that the first deadline changed.
}

type timer struct {
	entry    *entry
	at       time.Time
	position int
}

func newTimers() *timers {
	return &timers{index: map[*entry]*timer{}, wake: make(chan struct{}, 1)}
}

// set replaces e's deadline.
func (t *timers) set(e *entry, at time.Time) {
	at = at.Round(0)
	t.mu.Lock()
	defer t.mu.Unlock()
	if present, ok := t.index[e]; ok {
		present.at = at
		heap.Fix(&t.queue, present.position)
	} else {
		added := &timer{entry: e, at: at}
		t.index[e] = added
		heap.Push(&t.queue, added)
	}
	if t.queue[0].entry == e {
		select {
		case t.wake <- struct{}{}:
		default:
		}
	}
}

// unset drops e's deadline, if it has one.
func (t *timers) unset(e *entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if present, ok := t.index[e]; ok {
		heap.Remove(&t.queue, present.position)
		delete(t.index, e)
	}
}

// run calls fire for every deadline that has come, until ctx ends. fire must not
// block.
func (t *timers) run(ctx context.Context, fire func(*entry)) {
	clock := time.NewTimer(longestSleep)
	defer clock.Stop()
	for {
		due, sleep := t.due(time.Now())
		for _, e := range due {
			fire(e)
		}
		clock.Reset(min(sleep, longestSleep))
		select {
		case <-ctx.Done():
			return
		case <-t.wake:
		case <-clock.C:
		}
	}
}

// due takes every entry whose deadline is not after now out of the heap, and
// tells how long it is until the next. If the clock was set back since the last
// call, all entries are due: what they planned may have moved away with it.
func (t *timers) due(now time.Time) (entries []*entry, sleep time.Duration) {
	now = now.Round(0)
	t.mu.Lock()
	defer t.mu.Unlock()
	back := now.Before(t.last.Add(-setBack))
	t.last = now
	for len(t.queue) > 0 {
		first := t.queue[0]
		if wait := first.at.Sub(now); wait > 0 && !back {
			return entries, wait
		}
		heap.Pop(&t.queue)
		delete(t.index, first.entry)
		entries = append(entries, first.entry)
	}
	return entries, longestSleep
}

// timerQueue is a container/heap by deadline.
type timerQueue []*timer

func (q timerQueue) Len() int           { return len(q) }
func (q timerQueue) Less(i, j int) bool { return q[i].at.Before(q[j].at) }
func (q timerQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].position, q[j].position = i, j
}

func (q *timerQueue) Push(x any) {
	added := x.(*timer)
	added.position = len(*q)
	*q = append(*q, added)
}

func (q *timerQueue) Pop() any {
	last := (*q)[len(*q)-1]
	(*q)[len(*q)-1] = nil
	*q = (*q)[:len(*q)-1]
	return last
}
