// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/signet-spiffe/signet/agent/issue"
	"github.com/signet-spiffe/signet/internal/pki"
)

// lasting is an issuer whose requests outlive the agent: it remembers what was sent,
// and answers what is resumed as the test says.
type lasting struct {
	*scriptedIssuer
	sent      []string // Names.
	abandoned []string
	unkept    int
	// resume answers resumed requests.
	resume func(ctx context.Context, r issue.IssueRequest) (issue.Issued, error)
}

func (l *lasting) Issue(ctx context.Context, r issue.IssueRequest) (issue.Issued, error) {
	if r.Resume != "" {
		l.note(&l.sent, "resumed "+r.Resume)
		return l.resume(ctx, r)
	}
	l.mu.Lock()
	name := fmt.Sprintf("shop/r-%d", len(l.requests))
	l.mu.Unlock()
	if !r.Sending(issue.Sent{Request: name, Issuer: "new"}) {
		l.unkept++
	}
	if ctx.Err() != nil {
		return issue.Issued{}, context.Cause(ctx)
	}
	l.note(&l.sent, name)
	return l.scriptedIssuer.Issue(ctx, r)
}

func (l *lasting) note(list *[]string, name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	*list = append(*list, name)
}

func (l *lasting) Expect(_, request string) bool { return request != "shop/nobody's" }

func (l *lasting) Abandon(request string) { l.note(&l.abandoned, request) }

// keeper is Attempts that remembers, in the order of its recorder's calls.
type keeper struct {
	*recorder
	kept map[string]Attempt
	full bool
}

func (k *keeper) Keep(v Volume, a Attempt) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.note("keep", v.ID)
	if k.full {
		return errors.New("no space left")
	}
	k.kept[v.ID] = a
	return nil
}

func (k *keeper) Drop(id string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.note("drop", id)
	delete(k.kept, id)
	return nil
}

// attempts is a world in which attempts outlive the agent.
type attempts struct {
	*world
	issuer *lasting
	keeper *keeper
	log    *bytes.Buffer
	told   *notices
}

// notices counts what pods' owners hear.
type notices struct {
	mu  sync.Mutex
	all []Notice
}

func (n *notices) Notify(told Notification) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.all = append(n.all, told.Notice)
}

// runAttempts plays test; before is called before the Registry runs, as a start after
// a restart is.
func runAttempts(t *testing.T, before, test func(t *testing.T, a *attempts)) {
	t.Helper()
	a := &attempts{log: &bytes.Buffer{}, told: &notices{}}
	runWith(t, func(o *Options, w *world) {
		a.world = w
		a.issuer = &lasting{scriptedIssuer: w.issuer}
		w.issuer.name = "new"
		a.keeper = &keeper{recorder: w.volumes, kept: map[string]Attempt{}}
		o.Issuer, o.Attempts, o.Notifier = a.issuer, a.keeper, a.told
		o.Log = slog.New(slog.NewTextHandler(a.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		o.Signer = newChoice("new")
	}, func(t *testing.T, _ *world) {
		if before != nil {
			before(t, a)
		}
		test(t, a)
	})
}

// left is an attempt as an agent before has kept it.
func left(t *testing.T) Attempt {
	t.Helper()
	key, err := pki.GenerateKey(pki.P256)
	if err != nil {
		t.Fatal(err)
	}
	return Attempt{Request: "shop/old", ID: cartSVID, Key: key, Basis: Basis{"new", pki.P256, time.Minute}}
}

// signs has the issuer sign, once released, for a kept key.
func (a *attempts) signs(t *testing.T, attempt Attempt, release <-chan struct{}) {
	t.Helper()
	csr, err := pki.NewCSR(attempt.Key, attempt.ID, "")
	if err != nil {
		t.Fatal(err)
	}
	a.issuer.resume = func(ctx context.Context, r issue.IssueRequest) (issue.Issued, error) {
		if r.CSR != nil || !r.Token.IsZero() {
			t.Error("a resumed request was made with a CSR or a token")
		}
		select {
		case <-release:
		case <-ctx.Done():
			return issue.Issued{}, context.Cause(ctx)
		}
		r.CSR = csr
		issued, err := a.issuer.sign(ctx, r)
		issued.Issuer = "" // Nobody remembers.
		return issued, err
	}
}

func closed() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

func (a *attempts) wantSent(t *testing.T, want ...string) {
	t.Helper()
	a.issuer.mu.Lock()
	defer a.issuer.mu.Unlock()
	if !slices.Equal(a.issuer.sent, want) {
		t.Errorf("requests %q, want %q", a.issuer.sent, want)
	}
}

func (a *attempts) wantKept(t *testing.T, want int) {
	t.Helper()
	a.keeper.mu.Lock()
	defer a.keeper.mu.Unlock()
	if len(a.keeper.kept) != want {
		t.Errorf("%d attempts are kept, want %d", len(a.keeper.kept), want)
	}
}

func (a *attempts) wantTold(t *testing.T, want ...Notice) {
	t.Helper()
	a.told.mu.Lock()
	defer a.told.mu.Unlock()
	if !slices.Equal(a.told.all, want) {
		t.Errorf("pods' owners heard %v, want %v", a.told.all, want)
	}
}

// An attempt is kept before it is sent, with all that its answer needs, and dropped
// when the SVID is stored.
func TestAttemptIsKept(t *testing.T) {
	runAttempts(t, nil, func(t *testing.T, a *attempts) {
		a.world.issuer.then(func(ctx context.Context, r issue.IssueRequest) (issue.Issued, error) {
			a.keeper.mu.Lock()
			kept := a.keeper.kept["v"]
			a.keeper.mu.Unlock()
			if kept.Request != "shop/r-0" || kept.ID != cartSVID || kept.Basis != (Basis{"new", pki.P256, time.Minute}) {
				t.Errorf("kept %+v", kept)
			}
			issued, err := a.issuer.sign(ctx, r)
			if _, broken := a.accept(issued, &ask{volume: cart("v"), id: cartSVID}, kept.Key); broken != nil {
				t.Errorf("the kept key is not that of the request: %v", broken)
			}
			return issued, err
		})
		if err := a.Publish(t.Context(), cart("v")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got, want := a.volumes.log(), "prepare v, keep v, store v, push v, drop v"; got != want {
			t.Errorf("did %q, want %q", got, want)
		}
		a.wantKept(t, 0)
	})
}

// A tmpfs that is full costs nothing but the resumption, and is said once.
func TestAttemptThatCannotBeKeptGoesOn(t *testing.T) {
	runAttempts(t, nil, func(t *testing.T, a *attempts) {
		a.keeper.full = true
		for _, id := range []string{"v", "w"} {
			if err := a.Publish(t.Context(), cart(id)); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if a.issuer.unkept != 2 {
			t.Errorf("the issuer takes %d of 2 attempts for kept", 2-a.issuer.unkept)
		}
		if n := strings.Count(a.log.String(), "level=WARN msg=\"could not keep"); n != 1 {
			t.Errorf("warned %d times, want once:\n%s", n, a.log)
		}
	})
}

// When the agent stops, an attempt that was kept is left as it is, and so is its
// volume; a publish that waits ends. One that was not kept is withdrawn.
func TestStopLeavesWhatWasKept(t *testing.T) {
	for _, full := range []bool{false, true} {
		t.Run(fmt.Sprintf("full=%t", full), func(t *testing.T) {
			var a *attempts
			published := make(chan error, 1)
			runAttempts(t, nil, func(t *testing.T, now *attempts) {
				a = now
				a.keeper.full = full
				a.world.issuer.then(func(ctx context.Context, _ issue.IssueRequest) (issue.Issued, error) {
					<-ctx.Done()
					return issue.Issued{}, fmt.Errorf("withdrawn: %w", context.Cause(ctx))
				})
				go func() { published <- a.Publish(context.WithoutCancel(t.Context()), cart("v")) }()
				synctest.Wait()
			})
			if err := <-published; !errors.Is(err, issue.ErrUnavailable) && !errors.Is(err, issue.ErrStopping) {
				t.Errorf("the publish ended with %v", err)
			}
			want, kept := "prepare v, keep v", 1
			if full {
				want, kept = "prepare v, keep v, remove v", 0
			}
			if got := a.volumes.log(); got != want {
				t.Errorf("did %q, want %q", got, want)
			}
			a.wantKept(t, kept)
			a.wantTold(t)
		})
	}
}

// A mount that an agent before has begun: kubelet's next publish joins the attempt,
// and no request is made for it.
func TestAwaitedMountIsJoined(t *testing.T) {
	var release chan struct{}
	runAttempts(t, func(t *testing.T, a *attempts) {
		attempt := left(t)
		release = make(chan struct{})
		a.signs(t, attempt, release)
		if err := a.Await(cart("v"), attempt); err != nil {
			t.Fatal(err)
		}
	}, func(t *testing.T, a *attempts) {
		synctest.Wait()
		published := make(chan error, 1)
		go func() { published <- a.Publish(t.Context(), cart("v")) }()
		synctest.Wait()
		close(release)
		if err := <-published; err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := a.volumes.svid("v"); got.Basis != (Basis{"new", pki.P256, time.Minute}) {
			t.Errorf("basis %+v, want the attempt's", got.Basis)
		}
		a.wantSent(t, "resumed shop/old")
		a.wantTold(t, NoticeIssued)
		a.wantKept(t, 0)
		if n := testutil.CollectAndCount(a.Registry.metrics.duration); n != 0 {
			t.Error("how long a resumed attempt took is counted, and nobody knows")
		}
	})
}

// Kubelet does not come back: after ten minutes nothing is left of it.
func TestAwaitedMountIsGivenUp(t *testing.T) {
	runAttempts(t, func(t *testing.T, a *attempts) {
		attempt := left(t)
		a.signs(t, attempt, closed())
		if err := a.Await(cart("v"), attempt); err != nil {
			t.Fatal(err)
		}
	}, func(t *testing.T, a *attempts) {
		synctest.Wait()
		if a.volumes.serial("v") == "" {
			t.Fatal("the answer was not stored")
		}
		time.Sleep(unclaimedFor + time.Second)
		synctest.Wait()
		if a.volumes.serial("v") != "" || len(a.all()) != 0 {
			t.Error("something is left of a mount that nobody asks for")
		}
	})
}

// What the attempt asked for is not what would be asked now: its request is deleted,
// and another made at once. Nobody hears of it.
func TestOutdatedAttemptIsReplaced(t *testing.T) {
	for name, edit := range map[string]func(*Attempt){
		"issuer":   func(a *Attempt) { a.Basis.Issuer = "old" },
		"key type": func(a *Attempt) { a.Basis.KeyType = pki.P384 },
		"duration": func(a *Attempt) { a.Basis.Duration = time.Hour },
		"identity": func(a *Attempt) { a.ID = spiffeid.RequireFromString("spiffe://example.org/ns/shop/sa/other") },
	} {
		t.Run(name, func(t *testing.T) {
			runAttempts(t, func(t *testing.T, a *attempts) {
				v, attempt := cart("v"), left(t)
				v.Attributes.NoWait = true
				edit(&attempt)
				if err := a.Resume(v, &attempt); err != nil {
					t.Fatal(err)
				}
			}, func(t *testing.T, a *attempts) {
				synctest.Wait()
				a.wantSent(t, "shop/r-0")
				if !slices.Equal(a.issuer.abandoned, []string{"shop/old"}) {
					t.Errorf("abandoned %q, want the old request", a.issuer.abandoned)
				}
				a.wantTold(t, NoticeIssued)
			})
		})
	}
}

// The request is gone. A volume that is served asks anew at once; a mount that
// kubelet has not asked for again does not.
func TestLostAttempt(t *testing.T) {
	gone := func(context.Context, issue.IssueRequest) (issue.Issued, error) {
		return issue.Issued{}, fmt.Errorf("%w: shop/old", issue.ErrGone)
	}
	runAttempts(t, func(t *testing.T, a *attempts) {
		a.issuer.resume = gone
		v, attempt := cart("v"), left(t)
		v.Attributes.NoWait = true
		if err := errors.Join(a.Resume(v, &attempt), a.Await(cart("w"), left(t))); err != nil {
			t.Fatal(err)
		}
	}, func(t *testing.T, a *attempts) {
		synctest.Wait() // No time passes.
		a.wantTold(t, NoticeIssued)
		if a.volumes.serial("v") == "" || !strings.Contains(a.volumes.log(), "remove w") || strings.Contains(a.volumes.log(), "remove v") {
			t.Errorf("did %q", a.volumes.log())
		}
		if n := testutil.ToFloat64(a.Registry.metrics.issuances.WithLabelValues("mount", "gone")); n != 2 {
			t.Errorf("%v lost attempts counted, want 2", n)
		}
	})
}

// Whatever comes under the name of a resumed request is held to the kept key.
func TestAnswerForAnotherKeyIsRefused(t *testing.T) {
	runAttempts(t, func(t *testing.T, a *attempts) {
		attempt := left(t)
		a.signs(t, left(t), closed())
		if err := a.Await(cart("v"), attempt); err != nil {
			t.Fatal(err)
		}
	}, func(t *testing.T, a *attempts) {
		synctest.Wait()
		if got, want := a.volumes.log(), "prepare v, remove v"; got != want {
			t.Errorf("did %q, want %q", got, want)
		}
		if n := testutil.ToFloat64(a.Registry.metrics.issuances.WithLabelValues("mount", "refused")); n != 1 {
			t.Errorf("%v refusals counted, want 1", n)
		}
	})
}

// A renewal that was under way goes on, and nothing is asked beside it.
func TestRenewalIsResumed(t *testing.T) {
	var release chan struct{}
	runAttempts(t, func(t *testing.T, a *attempts) {
		if err := a.Publish(t.Context(), cart("v")); err != nil {
			t.Fatal(err)
		}
		svid := a.volumes.svid("v")
		if err := a.Unpublish(t.Context(), "v"); err != nil {
			t.Fatal(err)
		}
		attempt := left(t)
		release = make(chan struct{})
		a.signs(t, attempt, release)
		a.Restore(cart("v"), svid, &attempt)
	}, func(t *testing.T, a *attempts) {
		time.Sleep(50 * time.Second) // Past its renewal.
		synctest.Wait()
		first := a.volumes.serial("v")
		a.wantSent(t, "shop/r-0", "resumed shop/old")
		close(release)
		synctest.Wait()
		if got := a.volumes.serial("v"); got == first || got == "" {
			t.Errorf("serial %q after %q", got, first)
		}
	})
}

// A volume that goes before its attempt had its turn leaves no request that is
// spoken for.
func TestUnclaimedRequestIsAbandoned(t *testing.T) {
	runAttempts(t, func(t *testing.T, a *attempts) {
		a.turns.limits.Issuances = 0 // Nobody's turn comes.
		if err := a.Await(cart("v"), left(t)); err != nil {
			t.Fatal(err)
		}
	}, func(t *testing.T, a *attempts) {
		synctest.Wait()
		if err := a.Unpublish(t.Context(), "v"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if !slices.Equal(a.issuer.abandoned, []string{"shop/old"}) || len(a.all()) != 0 {
			t.Errorf("abandoned %q, %d entries", a.issuer.abandoned, len(a.all()))
		}
	})
}

// What the issuer does not know cannot be resumed, and is asked for as if nothing had
// been.
func TestAttemptThatNobodyExpects(t *testing.T) {
	runAttempts(t, func(t *testing.T, a *attempts) {
		v, attempt := cart("v"), left(t)
		v.Attributes.NoWait = true
		attempt.Request = "shop/nobody's"
		if err := a.Resume(v, &attempt); err != nil {
			t.Fatal(err)
		}
	}, func(t *testing.T, a *attempts) {
		synctest.Wait()
		a.wantSent(t, "shop/r-0")
		a.wantTold(t, NoticeIssued)
	})
}

func TestAttemptDoesNotPrint(t *testing.T) {
	attempt := left(t)
	pem, err := attempt.Key.MarshalPEM()
	if err != nil {
		t.Fatal(err)
	}
	secret := strings.Split(string(pem), "\n")[1]
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		fmt.Fprintf(&out, verb, attempt)
		fmt.Fprintf(&out, verb, &attempt)
		fmt.Fprintf(&out, verb, message{attempt: &attempt})
	}
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "attempt", attempt)
	if out.Len() == 0 || strings.Contains(out.String(), secret) {
		t.Error("the key is printed")
	}
}
