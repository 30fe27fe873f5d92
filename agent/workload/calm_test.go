// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Calm comes once, some time after the last attempt has ended, and not while one
// runs, however long that takes.
func TestCalm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns(Limits{})
		var calm atomic.Int64
		turns.whenCalm(func() { calm.Add(1) })
		at := func(d time.Duration, want int64) {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			if calm.Load() != want {
				t.Fatalf("calm %d times, want %d", calm.Load(), want)
			}
		}
		report := func(string) {}
		at(calmAfter-time.Second, 0)
		if turns.take(t.Context(), purposeMount, report) != nil || turns.take(t.Context(), purposeRenewal, report) != nil {
			t.Fatal("no turn")
		}
		at(time.Hour, 0)
		turns.end(purposeMount)
		at(time.Hour, 0)
		turns.end(purposeRenewal)
		at(calmAfter-time.Second, 0)
		at(2*time.Second, 1)
		at(time.Hour, 1)
	})
}
