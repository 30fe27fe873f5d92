// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package certmanager

import "sync"

// tasks counts what is under way, so that stopping can wait for it.
type tasks struct {
	mu      sync.Mutex
	n       int
	closing bool
	idle    chan struct{}
}

func newTasks() *tasks { return &tasks{idle: make(chan struct{})} }

// begin counts one more, or says no when closing. Every yes needs an end.
func (t *tasks) begin() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closing {
		return false
	}
	t.n++
	return true
}

// fork counts one more on behalf of one that has begun and not ended.
func (t *tasks) fork() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n++
}

func (t *tasks) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n--
	if t.closing && t.n == 0 {
		close(t.idle)
	}
}

// close lets no more begin and returns a channel that is closed when all have
// ended. Call it once.
func (t *tasks) close() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closing = true
	if t.n == 0 {
		close(t.idle)
	}
	return t.idle
}
