// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"

	"github.com/signet-spiffe/signet/agent/issue"
	"github.com/signet-spiffe/signet/internal/pki"
)

// only is the one volume there is.
func (w *world) only(t *testing.T) Standing {
	t.Helper()
	list := w.List()
	if len(list) != 1 {
		t.Fatalf("%d volumes are listed, want 1: %+v", len(list), list)
	}
	return list[0]
}

// holdFor has the next attempt wait for what, until release is closed.
func (w *world) holdFor(what string) (release chan struct{}) {
	release = make(chan struct{})
	w.issuer.then(func(ctx context.Context, r issue.IssueRequest) (issue.Issued, error) {
		r.Report(what)
		<-release
		return w.issuer.sign(ctx, r)
	})
	return release
}

func (w *world) publish(t *testing.T, v Volume) {
	t.Helper()
	if err := w.Publish(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
}

// What is listed is what is true: from the wait for the first SVID over renewal,
// failure and expiry to the end.
func TestList(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		if list := w.List(); len(list) != 0 {
			t.Errorf("with no volume: %+v", list)
		}
		w.issuer.name = "ca.ClusterIssuer"
		release := w.holdFor("approval")
		go w.Publish(t.Context(), cart("v"))
		synctest.Wait()
		want := Standing{Volume: "v", Pod: cartPod, ID: w.only(t).ID, Phase: Pending, KeyType: pki.P256, InFlight: true, WaitsFor: "approval"}
		if got := w.only(t); got != want || got.ID.String() != "spiffe://example.org/ns/shop/sa/cart" {
			t.Errorf("pending: %+v\nwant %+v", got, want)
		}
		close(release)
		synctest.Wait()
		leaf := w.volumes.stored["v"].SVID.Chain[0]
		s := w.only(t)
		want = Standing{
			Volume: "v", Pod: cartPod, ID: s.ID, Phase: Ready, Serial: leaf.SerialNumber.Text(16), NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter,
			Issuer: "ca.ClusterIssuer", KeyType: pki.P256, Next: s.Next,
		}
		if s != want || !s.Next.After(time.Now()) || !s.Next.Before(s.NotAfter) {
			t.Errorf("ready: %+v\nwant %+v", s, want)
		}

		for range 40 {
			w.issuer.fail(fmt.Errorf("%w: the approver\nsleeps", issue.ErrUnavailable))
		}
		time.Sleep(time.Until(s.Next))
		synctest.Wait()
		failed := w.only(t)
		if failed.Serial != s.Serial || failed.Failures != 1 || failed.LastError != "issuer unavailable: the approver sleeps" || !failed.LastErrorAt.Equal(time.Now()) || failed.InFlight || !failed.Next.After(time.Now()) {
			t.Errorf("after a failed renewal: %+v", failed)
		}
		time.Sleep(time.Until(s.NotAfter))
		synctest.Wait()
		if got := w.only(t); got.Lateness != Expired || got.Serial != s.Serial || got.Failures < 2 {
			t.Errorf("after its expiry: %+v", got)
		}
		w.issuer.mu.Lock()
		w.issuer.answers = nil
		w.issuer.mu.Unlock()
		time.Sleep(urgentWait)
		synctest.Wait()
		if got := w.only(t); got.Lateness != OnTime || got.Serial == s.Serial || got.Failures != 0 || got.LastError != "" || !got.LastErrorAt.IsZero() {
			t.Errorf("after it was renewed at last: %+v", got)
		}
		if err := w.Unpublish(t.Context(), "v"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if list := w.List(); len(list) != 0 {
			t.Errorf("after its end: %+v", list)
		}
	})
}

// withOther is the issuer's bundle with an authority of its own.
func (w *world) withOther(t *testing.T) *x509bundle.Bundle {
	t.Helper()
	b := w.issuer.bundle().Clone()
	b.AddX509Authority(newIssuer(t, time.Minute).ca)
	return b
}

// A store of a bundle that failed is an error that the next one makes good.
func TestListShowsStorage(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.publish(t, cart("v"))
		w.volumes.mu.Lock()
		w.volumes.storeErr = errors.New("no space: " + strings.Repeat("ü", 2000))
		w.volumes.mu.Unlock()
		w.trust.replace(w.withOther(t))
		synctest.Wait()
		if got := w.only(t); !strings.HasPrefix(got.LastError, "no space: ü") || len(got.LastError) > maxTrouble {
			t.Errorf("after a store that failed, the error of %d bytes is %q", len(got.LastError), got.LastError)
		}
		w.volumes.mu.Lock()
		w.volumes.storeErr = nil
		w.volumes.mu.Unlock()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := w.only(t); got.LastError != "" {
			t.Errorf("after one that did not: %q", got.LastError)
		}
	})
}

// Whoever lists holds nobody up and waits for nobody, not even for a volume whose
// storage hangs.
func TestListWaitsForNoVolume(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.publish(t, cart("a"))
		w.volumes.block = make(chan struct{})
		go w.Publish(t.Context(), cart("slow"))
		synctest.Wait()
		list := w.List()
		if len(list) != 2 || list[0].Volume != "a" || list[1].Volume != "slow" || list[1].Phase != Pending {
			t.Errorf("listed while one hangs: %+v", list)
		}
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, errors.New("enough"))
		defer cancel()
		if _, err := w.Renew(ctx, "slow"); err == nil || !strings.Contains(err.Error(), "enough") {
			t.Errorf("renewing the one that hangs: %v", err)
		}
		if _, err := w.Renew(t.Context(), "a"); err != nil {
			t.Errorf("renewing the other one: %v", err)
		}
		close(w.volumes.block)
	})
}

// A renewal by hand brings another key and serial while the old SVID stays in use;
// a second one joins it.
func TestRenew(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.publish(t, cart("v"))
		before := w.only(t)
		release := w.holdFor("approval")
		first, err := w.Renew(t.Context(), "v")
		if err != nil || first != (Renewal{Serial: before.Serial}) {
			t.Fatalf("renew: %+v, %v", first, err)
		}
		second, err := w.Renew(t.Context(), "v")
		if err != nil || second != (Renewal{Joined: true, Serial: before.Serial}) {
			t.Errorf("renew again: %+v, %v", second, err)
		}
		synctest.Wait()
		if got := w.only(t); got.Serial != before.Serial || !got.InFlight || got.WaitsFor != "approval" || got.Phase != Ready || !got.Next.IsZero() {
			t.Errorf("while it is under way: %+v", got)
		}
		close(release)
		synctest.Wait()
		if got := w.only(t); got.Serial == before.Serial || got.InFlight {
			t.Errorf("afterwards: %+v", got)
		}
		if requests, finished, most := w.issuer.count(); requests != 2 || finished != 2 || most != 1 {
			t.Errorf("%d requests, %d cleaned up, %d at once; want 2, 2, 1", requests, finished, most)
		}
	})
}

// One that fails leaves the SVID in use alone and is tried again; what it tells lets
// the caller know a later failure from an earlier one.
func TestRenewFails(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.publish(t, cart("v"))
		before := w.only(t)
		w.issuer.fail(fmt.Errorf("%w: not today", issue.ErrDenied))
		if _, err := w.Renew(t.Context(), "v"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		failed := w.only(t)
		if failed.Serial != before.Serial || !strings.Contains(failed.LastError, "not today") || w.volumes.serial("v") == "" {
			t.Errorf("after a renewal that was denied: %+v", failed)
		}
		release := w.holdFor("approval")
		again, err := w.Renew(t.Context(), "v")
		if err != nil || !again.LastErrorAt.Equal(failed.LastErrorAt) || again.LastErrorAt.IsZero() {
			t.Errorf("renewed again: %+v, %v", again, err)
		}
		close(release)
		synctest.Wait()
		if got := w.only(t); got.Serial == before.Serial || got.LastError != "" {
			t.Errorf("after another try: %+v", got)
		}
	})
}

// There is nothing to renew where there is no volume, and asking makes none.
func TestRenewUnknown(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		if _, err := w.Renew(t.Context(), "v"); !errors.Is(err, ErrUnknown) {
			t.Errorf("renewing what is not there: %v", err)
		}
		if len(w.all()) != 0 {
			t.Error("asking has made an entry")
		}
		// Removed while the renewal waited in the mailbox.
		w.publish(t, cart("slow"))
		w.volumes.block = make(chan struct{})
		w.trust.replace(w.withOther(t))
		synctest.Wait()
		gone, late := make(chan error, 1), make(chan error, 1)
		go func() { gone <- w.Unpublish(t.Context(), "slow") }()
		synctest.Wait()
		go func() { _, err := w.Renew(t.Context(), "slow"); late <- err }()
		synctest.Wait()
		close(w.volumes.block)
		if err := <-gone; err != nil {
			t.Error(err)
		}
		if err := <-late; !errors.Is(err, ErrUnknown) {
			t.Errorf("renewing what was removed meanwhile: %v", err)
		}
		if _, err := w.Renew(t.Context(), "slow"); !errors.Is(err, ErrUnknown) || len(w.all()) != 0 {
			t.Errorf("renewing what is gone: %v", err)
		}
	})
}

// An agent that stops tells whoever renews or watches so.
func TestStopEndsRenewAndWatch(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.publish(t, cart("slow"))
		w.volumes.block = make(chan struct{})
		w.trust.replace(w.withOther(t))
		synctest.Wait()
		watcher := w.Watch()
		defer watcher.Close()
		watcher.mustNext(t)
		results := make(chan error, 2)
		go func() { _, err := w.Renew(t.Context(), "slow"); results <- err }()
		go func() { _, _, err := watcher.Next(t.Context()); results <- err }()
		synctest.Wait()
		w.end(issue.ErrStopping)
		for range 2 {
			var err error
			select {
			case err = <-results:
			case <-time.After(time.Hour):
				close(w.volumes.block)
				t.Fatal("still waiting an hour later")
			}
			if !errors.Is(err, issue.ErrUnavailable) || !errors.Is(err, issue.ErrStopping) {
				t.Errorf("ended with %v", err)
			}
		}
		close(w.volumes.block)
	})
}

func (w *Watcher) mustNext(t *testing.T) (changed []Standing, gone []string) {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Hour, errors.New("nothing was told"))
	defer cancel()
	changed, gone, err := w.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return changed, gone
}

// wantNothing fails if something is told within a second.
func (w *Watcher) wantNothing(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if changed, gone, err := w.Next(ctx); err == nil && len(changed)+len(gone) != 0 {
		t.Errorf("told of %+v and %v, which nobody changed", changed, gone)
	}
}

func TestWatch(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		early := w.Watch()
		defer early.Close()
		if changed, gone := early.mustNext(t); len(changed) != 0 || len(gone) != 0 {
			t.Errorf("with no volume: %+v, %v", changed, gone)
		}
		early.wantNothing(t)

		w.publish(t, cart("b"))
		w.publish(t, cart("a"))
		watcher := w.Watch()
		changed, gone := watcher.mustNext(t)
		if len(changed) != 2 || changed[0].Volume != "a" || changed[1].Volume != "b" || len(gone) != 0 {
			t.Errorf("the present state: %+v, %v", changed, gone)
		}
		// Whoever does not read is told the last state, once.
		if changed, _ := early.mustNext(t); len(changed) != 2 || changed[0].Phase != Ready {
			t.Errorf("told to one that was not reading: %+v", changed)
		}
		for _, other := range []*Watcher{watcher, early} {
			other.wantNothing(t)
		}

		approve, sign := make(chan struct{}), make(chan struct{})
		w.issuer.then(func(ctx context.Context, r issue.IssueRequest) (issue.Issued, error) {
			r.Report("approval")
			<-approve
			r.Report("signature")
			<-sign
			return w.issuer.sign(ctx, r)
		})
		renewal, err := w.Renew(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if changed, _ = watcher.mustNext(t); len(changed) != 1 || changed[0].Volume != "a" || !changed[0].InFlight || changed[0].WaitsFor != "approval" {
			t.Errorf("a renewal that was begun: %+v", changed)
		}
		close(approve)
		synctest.Wait()
		if changed, _ = watcher.mustNext(t); len(changed) != 1 || changed[0].WaitsFor != "signature" {
			t.Errorf("one that has come further: %+v", changed)
		}
		close(sign)
		synctest.Wait()
		if changed, _ = watcher.mustNext(t); len(changed) != 1 || changed[0].InFlight || changed[0].Serial == renewal.Serial {
			t.Errorf("a renewal that has ended: %+v", changed)
		}

		// A volume that came and went between two looks was never there.
		w.publish(t, cart("c"))
		for _, id := range []string{"c", "b"} {
			if err := w.Unpublish(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if changed, gone = watcher.mustNext(t); len(changed) != 0 || !slices.Equal(gone, []string{"b"}) {
			t.Errorf("after the end of b and c: %+v, %v", changed, gone)
		}
		watcher.Close()
		w.publish(t, cart("d"))
		watcher.wantNothing(t)
		if n := w.watchers.n.Load(); n != 1 {
			t.Errorf("%d watchers are told, want 1", n)
		}
	})
}

// Volumes come, are renewed and go while somebody follows: what is followed ends up
// as what is listed.
func TestWatchConverges(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		followed := map[string]Standing{}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		watcher := w.Watch()
		defer watcher.Close()
		go func() {
			defer close(ended)
			for {
				changed, gone, err := watcher.Next(ctx)
				if err != nil {
					return
				}
				for _, s := range changed {
					followed[s.Volume] = s
				}
				for _, id := range gone {
					if _, ok := followed[id]; !ok {
						t.Errorf("%s is gone and was never there", id)
					}
					delete(followed, id)
				}
			}
		}()
		for i := range 60 {
			go func() {
				id := fmt.Sprintf("v%d", i%20)
				switch i % 3 {
				case 0:
					_ = w.Publish(t.Context(), cart(id))
				case 1:
					_ = w.Unpublish(t.Context(), id)
				default:
					_, _ = w.Renew(t.Context(), id)
				}
			}()
		}
		synctest.Wait()
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		stop()
		<-ended
		list := w.List()
		if len(list) == 0 || len(list) != len(followed) {
			t.Fatalf("%d volumes are listed, %d were followed", len(list), len(followed))
		}
		for _, s := range list {
			if followed[s.Volume] != s {
				t.Errorf("followed: %+v\nlisted: %+v", followed[s.Volume], s)
			}
		}
	})
}

// BenchmarkList lists a node full of volumes, 1,350.
func BenchmarkList(b *testing.B) {
	r := &Registry{entries: map[string]*entry{}}
	leaf := newIssuer(b, time.Hour).ca
	for i := range 1350 {
		e := &entry{registry: r, name: fmt.Sprintf("csi-%064d", i)}
		e.standing.Store(&standing{phase: Ready, subject: &subject{pod: cartPod, keyType: pki.P256}, leaf: leaf})
		r.entries[e.name] = e
	}
	b.ReportAllocs()
	for b.Loop() {
		if n := len(r.List()); n != 1350 {
			b.Fatal(n)
		}
	}
}

// BenchmarkUnwatchedChange is what a change costs while nobody watches.
func BenchmarkUnwatchedChange(b *testing.B) {
	var w watchers
	b.ReportAllocs()
	for b.Loop() {
		w.changed("csi-1")
	}
}
