// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Defaults of Limits. Every pod that a node may have (110, by kubelet's default)
// is mounted at once; renewals, which have a third of a lifetime to succeed, take
// a quarter.
const (
	DefaultIssuances = 256
	DefaultRenewals  = 64
)

// Limits bound how many attempts to obtain an SVID run at the same time, from
// making the key to the issuer's answer.
type Limits struct {
	// Issuances is how many run in all, Renewals how many of them may be
	// renewals. Both are at least 1; 0 means the default.
	Issuances, Renewals int
}

func (l Limits) defaulted() Limits {
	if l.Issuances <= 0 {
		l.Issuances = DefaultIssuances
	}
	if l.Renewals <= 0 {
		l.Renewals = DefaultRenewals
	}
	l.Renewals = min(l.Renewals, l.Issuances)
	return l
}

// mounts is how many mounts may run. One place is never theirs: mounts that wait
// for an answer that does not come cannot keep other pods from being renewed.
func (l Limits) mounts() int { return max(l.Issuances-1, 1) }

// turns lets attempts begin in two priorities: a mount, for which a pod waits,
// before any renewal, for which nobody does. Within a priority the first to come
// is the first to begin.
type turns struct {
	limits Limits

	mu      sync.Mutex // Guards the rest.
	running map[purpose]int
	waiting map[purpose][]*turn
	calm    *time.Timer // Runs while nothing is running; nil without Options.Calm.
}

// calmAfter is how long nothing must be issued for it to be calm.
const calmAfter = 10 * time.Second

// whenCalm has f called, in a goroutine of its own, whenever nothing has been
// issued for calmAfter; the first time counts from now.
func (t *turns) whenCalm(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.calm = time.AfterFunc(calmAfter, f)
}

// turn is one attempt in the queue.
type turn struct{ begin chan struct{} }

func newTurns(l Limits) *turns {
	return &turns{limits: l.defaulted(), running: map[purpose]int{}, waiting: map[purpose][]*turn{}}
}

// take waits for a turn. Every nil needs an end. The error says that ctx ended
// first, and wraps its cause. report is told when there is something to wait for.
func (t *turns) take(ctx context.Context, p purpose, report func(what string)) error {
	mine := &turn{begin: make(chan struct{})}
	t.mu.Lock()
	t.waiting[p] = append(t.waiting[p], mine)
	t.admit()
	t.mu.Unlock()
	select {
	case <-mine.begin:
		return nil
	default:
		report("waiting for other issuances of this node to end (see --max-concurrent-issuances)")
	}
	select {
	case <-mine.begin:
		return nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if i := slices.Index(t.waiting[p], mine); i >= 0 {
		t.waiting[p] = slices.Delete(t.waiting[p], i, i+1)
	} else {
		t.running[p]-- // It had just begun.
		t.admit()
	}
	return fmt.Errorf("withdrawn while waiting for other issuances to end: %w", context.Cause(ctx))
}

// end gives a turn back.
func (t *turns) end(p purpose) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.running[p]--
	t.admit()
	if t.calm != nil && t.running[purposeMount]+t.running[purposeRenewal] == 0 {
		t.calm.Reset(calmAfter)
	}
}

// admit begins all that may begin now. The caller holds mu.
func (t *turns) admit() {
	for t.running[purposeMount]+t.running[purposeRenewal] < t.limits.Issuances {
		switch {
		case len(t.waiting[purposeMount]) > 0 && t.running[purposeMount] < t.limits.mounts():
			t.begin(purposeMount)
		case len(t.waiting[purposeRenewal]) > 0 && t.running[purposeRenewal] < t.limits.Renewals:
			t.begin(purposeRenewal)
		default:
			return
		}
	}
}

func (t *turns) begin(p purpose) {
	first := t.waiting[p][0]
	t.waiting[p] = t.waiting[p][1:]
	t.running[p]++
	if t.calm != nil {
		t.calm.Stop()
	}
	close(first.begin)
}

// count is for metrics.
func (t *turns) count(p purpose) (running, waiting int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.running[p], len(t.waiting[p])
}
