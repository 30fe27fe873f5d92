// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/signet-spiffe/signet/agent/issue"
)

func runLimited(t *testing.T, l Limits, test func(t *testing.T, w *world)) {
	t.Helper()
	runWith(t, func(o *Options, w *world) { o.Limits, w.issuer.life = l, time.Hour }, func(t *testing.T, w *world) {
		w.patience = func(time.Duration) time.Duration { return 24 * time.Hour }
		test(t, w)
	})
}

// An issuer that never answers holds its turns for minutes, not for ever: what
// waits behind it gets through, and so does the volume itself once somebody
// answers.
func TestAnIssuerThatNeverAnswersStopsNobody(t *testing.T) {
	runWith(t, func(o *Options, w *world) { o.Limits, w.issuer.life = Limits{Issuances: 3, Renewals: 2}, time.Hour }, func(t *testing.T, w *world) {
		const volumes = 10
		for i := range volumes {
			if err := w.Publish(t.Context(), cart(fmt.Sprint("v", i))); err != nil {
				t.Fatal(err)
			}
		}
		w.hold(4) // Two at a time, never released.
		time.Sleep(59 * time.Minute)
		synctest.Wait()
		if n := testutil.ToFloat64(w.Registry.metrics.issuances.WithLabelValues("renewal", "issued")); n != volumes {
			t.Errorf("%v of %d volumes were renewed", n, volumes)
		}
		if n := testutil.ToFloat64(w.Registry.metrics.issuances.WithLabelValues("renewal", "unavailable")); n != 4 {
			t.Errorf("%v attempts ended for want of an answer, want 4", n)
		}
	})
}

// hold makes the issuer's next n answers wait until the channel is closed.
func (w *world) hold(n int) chan struct{} {
	release := make(chan struct{})
	for range n {
		w.issuer.then(func(ctx context.Context, r issue.IssueRequest) (issue.Issued, error) {
			select {
			case <-release:
				return w.issuer.sign(ctx, r)
			case <-ctx.Done():
				return issue.Issued{}, context.Cause(ctx)
			}
		})
	}
	return release
}

func (w *world) publishAll(t *testing.T, prefix string, n int) <-chan error {
	results := make(chan error, n)
	for i := range n {
		go func() { results <- w.Publish(t.Context(), cart(fmt.Sprint(prefix, i))) }()
	}
	return results
}

// A node that starts all its pods at once is not slowed down.
func TestWholeNodeMountsAtOnce(t *testing.T) {
	runLimited(t, Limits{}, func(t *testing.T, w *world) {
		release := w.hold(110)
		results := w.publishAll(t, "v", 110)
		synctest.Wait()
		if _, _, most := w.issuer.count(); most != 110 {
			t.Errorf("%d issuances at the same time, want 110", most)
		}
		close(release)
		for range 110 {
			if err := <-results; err != nil {
				t.Error(err)
			}
		}
	})
}

// Mounts and renewals keep to their limits, and all get done.
func TestLimitsHold(t *testing.T) {
	runLimited(t, Limits{Issuances: 4, Renewals: 2}, func(t *testing.T, w *world) {
		release := w.hold(10)
		results := w.publishAll(t, "v", 10)
		synctest.Wait()
		if requests, _, most := w.issuer.count(); requests != 3 || most != 3 {
			t.Errorf("%d mounts asked for, %d at the same time; want 3 of the 4 places", requests, most)
		}
		const want = `
# HELP signet_agent_issuances_waiting Attempts to obtain an SVID that wait for others to end, by purpose.
# TYPE signet_agent_issuances_waiting gauge
signet_agent_issuances_waiting{purpose="mount"} 7
signet_agent_issuances_waiting{purpose="renewal"} 0
`
		if err := testutil.GatherAndCompare(w.metrics, strings.NewReader(want), "signet_agent_issuances_waiting"); err != nil {
			t.Error(err)
		}
		close(release)
		for range 10 {
			if err := <-results; err != nil {
				t.Error(err)
			}
		}
		release = w.hold(10)
		time.Sleep(45 * time.Minute) // All are due.
		synctest.Wait()
		if requests, _, _ := w.issuer.count(); requests != 12 {
			t.Errorf("%d renewals asked for, want 2", requests-10)
		}
		close(release)
		time.Sleep(time.Second)
		synctest.Wait()
		if requests, finished, most := w.issuer.count(); requests != 20 || finished != 20 || most != 3 {
			t.Errorf("%d requests, %d finished, %d at the same time; want 20, 20 and never more than 3", requests, finished, most)
		}
	})
}

// A mount begins before renewals that have waited longer.
func TestMountsGoBeforeRenewals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns(Limits{Issuances: 3, Renewals: 2})
		var began []string
		start := func(p purpose, name string) {
			go func() {
				if err := turns.take(t.Context(), p, func(string) {}); err != nil {
					t.Error(err)
				}
				began = append(began, name)
			}()
			synctest.Wait()
		}
		for i := range 4 {
			start(purposeRenewal, fmt.Sprint("renewal-", i))
		}
		for i := range 3 {
			start(purposeMount, fmt.Sprint("mount-", i))
		}
		for _, p := range []purpose{purposeRenewal, purposeRenewal, purposeMount, purposeMount, purposeMount} {
			turns.end(p)
			synctest.Wait()
		}
		want := "renewal-0 renewal-1 mount-0 mount-1 renewal-2 mount-2 renewal-3"
		if got := strings.Join(began, " "); got != want {
			t.Errorf("began %s, want %s", got, want)
		}
	})
}

// Mounts for which no answer comes leave a place for renewals.
func TestStuckMountsDoNotStopRenewals(t *testing.T) {
	runLimited(t, Limits{Issuances: 3, Renewals: 3}, func(t *testing.T, w *world) {
		for i := range 5 {
			if err := w.Publish(t.Context(), cart(fmt.Sprint("old", i))); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Minute)
		release := w.hold(2)
		w.publishAll(t, "stuck", 10)
		time.Sleep(45 * time.Minute)
		synctest.Wait()
		if n := testutil.ToFloat64(w.Registry.metrics.issuances.WithLabelValues("renewal", "issued")); n != 5 {
			t.Errorf("%v renewals while mounts are stuck, want 5", n)
		}
		close(release)
	})
}

// A volume that goes while it waits gives its place in the queue up.
func TestUnpublishedWhileWaiting(t *testing.T) {
	runLimited(t, Limits{Issuances: 2, Renewals: 1}, func(t *testing.T, w *world) {
		release := w.hold(1)
		first := w.publishAll(t, "first", 1)
		synctest.Wait()
		waiting := make(chan error, 1)
		go func() { waiting <- w.Publish(t.Context(), cart("waiting")) }()
		time.Sleep(time.Second)
		if err := w.Unpublish(t.Context(), "waiting"); err != nil {
			t.Fatal(err)
		}
		if err := <-waiting; !errors.Is(err, ErrUnpublished) {
			t.Errorf("%v, want ErrUnpublished", err)
		}
		synctest.Wait()
		if running, queued := w.turns.count(purposeMount); running != 1 || queued != 0 {
			t.Errorf("%d running and %d waiting, want 1 and 0", running, queued)
		}
		// kubelet hears what a mount waits for.
		err := w.Publish(t.Context(), cart("late"))
		if !errors.Is(err, ErrPending) || !strings.Contains(err.Error(), "waiting for other issuances of this node") {
			t.Errorf("%v, want ErrPending and what it waits for", err)
		}
		close(release)
		if err := <-first; err != nil && !errors.Is(err, ErrPending) {
			t.Error(err)
		}
		if err := w.Publish(t.Context(), cart("late")); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if running, queued := w.turns.count(purposeMount); running != 0 || queued != 0 {
			t.Errorf("%d running and %d waiting in the end", running, queued)
		}
	})
}

// ctx may end in the moment in which the turn comes.
func TestTurnThatIsNotTaken(t *testing.T) {
	for range 200 {
		turns := newTurns(Limits{Issuances: 1, Renewals: 1})
		if err := turns.take(t.Context(), purposeRenewal, nil); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		waits, result := make(chan struct{}), make(chan error, 1)
		go func() { result <- turns.take(ctx, purposeMount, func(string) { close(waits) }) }()
		<-waits
		go cancel()
		turns.end(purposeRenewal)
		if <-result == nil {
			turns.end(purposeMount)
		}
		if running, queued := turns.count(purposeMount); running != 0 || queued != 0 {
			t.Fatalf("%d running and %d waiting in the end", running, queued)
		}
	}
}

func TestLimitsDefaults(t *testing.T) {
	for given, want := range map[Limits]Limits{
		{}:                            {DefaultIssuances, DefaultRenewals},
		{Issuances: 10, Renewals: 50}: {10, 10},
		{Issuances: 10}:               {10, 10},
	} {
		if got := given.defaulted(); got != want {
			t.Errorf("%+v means %+v, want %+v", given, got, want)
		}
	}
}
