// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package certmanager

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/prometheus/client_golang/prometheus/testutil"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/signet-spiffe/signet/agent/issue"
	"github.com/signet-spiffe/signet/internal/request"
)

// keep issues in the background, has the request kept, and waits until its create has
// been answered.
func (f *fixture) keep(t *testing.T, ctx context.Context) (got <-chan result, sent issue.Sent) {
	t.Helper()
	kept, said := make(chan issue.Sent, 1), make(chan string, 10)
	r := wish("v1")
	r.Sending = func(s issue.Sent) bool { kept <- s; return true }
	r.Progress = func(what string) { said <- what }
	got = f.ask(ctx, r)
	wantSaid(t, said, "creating")
	wantSaid(t, said, "waiting for approval")
	return got, await(t, "the kept name", kept)
}

// resuming is a wish for the answer to an earlier request.
func resuming(volume, name string) issue.IssueRequest {
	r := wish(volume)
	r.CSR, r.Duration, r.Resume = nil, 0, name
	return r
}

// leftPending has an agent create a request and keep it, and stops the agent.
func leftPending(t *testing.T, s *apiServer) string {
	t.Helper()
	f := start(t, s, nil)
	got, kept := f.keep(t, context.Background())
	f.stop()
	wantError(t, await(t, "the end of the attempt", got).err, issue.ErrStopping)
	s.await(t, "the end of its watch", func() bool { return s.open == 0 })
	if name := s.one(t).String(); kept.Request != name || kept.Issuer != "ClusterIssuer.cert-manager.io/spiffe-ca" {
		t.Errorf("kept %+v, want the request %s", kept, name)
	}
	return kept.Request
}

// startExpecting starts an agent that has found an attempt of the one before.
func startExpecting(t *testing.T, s *apiServer, volume, name string, edits ...func(*Options)) *fixture {
	t.Helper()
	return startWith(t, s, func(o *Options) {
		for _, edit := range edits {
			edit(o)
		}
	}, func(i *Issuer) {
		if !i.Expect(volume, name) {
			t.Errorf("request %s is not expected", name)
		}
	})
}

// An agent that stops leaves a request that was kept, and the next one takes the
// answer: one create and one delete in all.
func TestRequestOutlivesTheAgent(t *testing.T) {
	for _, streaming := range []bool{false, true} {
		t.Run(fmt.Sprintf("streaming=%t", streaming), func(t *testing.T) {
			s := newAPIServer(t)
			s.streaming = streaming
			name := leftPending(t, s)
			f := startExpecting(t, s, "v1", name)
			said := make(chan string, 10)
			r := resuming("v1", name)
			r.Progress = func(what string) { said <- what }
			got := f.ask(t.Context(), r)
			wantSaid(t, said, "waiting for approval of CertificateRequest "+name)
			s.update(s.one(t), approve)
			wantSaid(t, said, "waiting for the issuer to sign CertificateRequest "+name)
			s.update(s.one(t), sign)
			res := await(t, "the result", got)
			if res.err != nil || string(res.Chain) != "chain of "+strings.TrimPrefix(name, "shop/") || res.Request != name {
				t.Fatalf("got %q, %q, %v", res.Chain, res.Request, res.err)
			}
			res.Done(t.Context())
			s.awaitEmpty(t)
			f.stop()
			if posts, deletes := s.count(http.MethodPost), s.count(http.MethodDelete); posts != 1 || deletes != 1 {
				t.Errorf("%d POST and %d DELETE, want one each", posts, deletes)
			}
			if len(f.board.waiting)+len(f.board.kept) != 0 {
				t.Errorf("the board is not clean: %d waiting, %d kept", len(f.board.waiting), len(f.board.kept))
			}
		})
	}
}

// What became of the request while no agent was there.
func TestResumed(t *testing.T) {
	for name, tc := range map[string]struct {
		meanwhile func(*apiServer, types.NamespacedName)
		kind      error
		words     string
		outcome   string
	}{
		"issued":     {func(s *apiServer, n types.NamespacedName) { s.update(n, sign) }, nil, "", "issued"},
		"denied":     {func(s *apiServer, n types.NamespacedName) { s.update(n, deny) }, issue.ErrDenied, "wrong duration", "denied"},
		"failed":     {func(s *apiServer, n types.NamespacedName) { s.update(n, breakIt) }, issue.ErrFailed, "on fire", "failed"},
		"deleted":    {(*apiServer).remove, issue.ErrGone, "deleted meanwhile", "gone"},
		"relabelled": {func(s *apiServer, n types.NamespacedName) { s.update(n, unlabel) }, issue.ErrGone, "", "gone"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newAPIServer(t)
			kept := leftPending(t, s)
			tc.meanwhile(s, s.one(t))
			f := startExpecting(t, s, "v1", kept)
			_, err := f.Issue(t.Context(), resuming("v1", kept))
			if tc.kind == nil && err != nil {
				t.Fatal(err)
			} else if tc.kind != nil {
				wantError(t, err, tc.kind, kept, tc.words)
			}
			if n := testutil.ToFloat64(f.metrics.results.WithLabelValues(tc.outcome)); n != 1 {
				t.Errorf("%v counted as %s", n, tc.outcome)
			}
			if n := s.count(http.MethodPost); n != 1 {
				t.Errorf("%d POST, want none but the first", n)
			}
		})
	}
}

func unlabel(cr *cmapi.CertificateRequest) { cr.Labels = nil }

// A request that is expected is not stale, however often it is listed before
// somebody claims it. When nobody will, it goes.
func TestAbandoned(t *testing.T) {
	t.Run("after a list", func(t *testing.T) {
		s := newAPIServer(t)
		name := leftPending(t, s)
		f := startExpecting(t, s, "v1", name)
		s.compact()
		s.dropWatches()
		s.await(t, "another list", func() bool { return s.listed() > 1 && s.open > 0 })
		if s.count(http.MethodDelete) != 0 || s.one(t).String() != name {
			t.Fatal("the request was taken for stale")
		}
		f.Abandon(name)
		f.Abandon(name)
		s.awaitEmpty(t)
		f.stop()
		if n := s.count(http.MethodDelete); n != 1 {
			t.Errorf("%d DELETE, want 1", n)
		}
	})
	t.Run("before the list", func(t *testing.T) {
		s := newAPIServer(t)
		name := leftPending(t, s)
		s.with(func() { s.down = true })
		f := startExpecting(t, s, "v1", name)
		f.Abandon(name)
		s.setDown(false)
		s.awaitEmpty(t)
	})
	t.Run("it was issued meanwhile, and is retained", func(t *testing.T) {
		s := newAPIServer(t)
		name := leftPending(t, s)
		s.update(s.one(t), sign)
		f := startExpecting(t, s, "v1", name, retaining(1))
		f.Abandon(name)
		f.board.mu.Lock()
		if n := len(f.board.retained[request.Hash("v1")]); n != 1 {
			t.Errorf("%d requests are retained, want 1", n)
		}
		f.board.mu.Unlock()
		next := f.obtain(t, "v1", sign) // Displaces it.
		s.awaitOnly(t, next)
	})
	t.Run("nobody expects it", func(t *testing.T) {
		f := start(t, newAPIServer(t), nil)
		f.Abandon("shop/x")
		f.Abandon("junk")
	})
}

// listed counts lists. The caller holds mu.
func (s *apiServer) listed() int {
	n := 0
	for _, r := range s.requests {
		if r.method == http.MethodGet && !r.watch {
			n++
		}
	}
	return n
}

// A volume that goes takes its request with it, be it listed already or not.
func TestResumedAttemptIsWithdrawn(t *testing.T) {
	for _, down := range []bool{false, true} {
		t.Run(fmt.Sprintf("down=%t", down), func(t *testing.T) {
			s := newAPIServer(t)
			name := leftPending(t, s)
			s.with(func() { s.down = down })
			f := startExpecting(t, s, "v1", name)
			ctx, cancel := context.WithCancelCause(t.Context())
			said := make(chan string, 10)
			r := resuming("v1", name)
			r.Progress = func(what string) { said <- what }
			got := f.ask(ctx, r)
			wantSaid(t, said, "waiting for approval")
			unpublished := errors.New("volume unpublished")
			cancel(unpublished)
			wantError(t, await(t, "the result", got).err, unpublished, "withdrawn", name)
			s.setDown(false)
			s.awaitEmpty(t)
		})
	}
}

// Nothing is deleted by its name alone: an object that this agent's lists do not show
// is not its own, whatever was kept.
func TestOnlyWhatWasSeenIsDeleted(t *testing.T) {
	for name, end := range map[string]func(*testing.T, *fixture, string){
		"abandoned": func(_ *testing.T, f *fixture, name string) { f.Abandon(name) },
		"withdrawn": func(t *testing.T, f *fixture, name string) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if _, err := f.Issue(ctx, resuming("v1", name)); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		},
		"gone": func(t *testing.T, f *fixture, name string) {
			f.server.setDown(false)
			_, err := f.Issue(t.Context(), resuming("v1", name))
			wantError(t, err, issue.ErrGone)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newAPIServer(t)
			other := nameOf(s.put(object("x", "")))
			s.with(func() { s.down = true })
			f := startExpecting(t, s, "v1", other.String())
			end(t, f, other.String())
			s.setDown(false)
			s.awaitWatch(t)
			f.stop()
			if n := s.count(http.MethodDelete); n != 0 || s.one(t) != other {
				t.Errorf("%d DELETE of another's object", n)
			}
		})
	}
}

// An agent that stops leaves what it has resumed, too.
func TestResumedAttemptIsLeftAgain(t *testing.T) {
	s := newAPIServer(t)
	name := leftPending(t, s)
	for range 2 {
		f := startExpecting(t, s, "v1", name)
		got := f.ask(context.Background(), resuming("v1", name))
		f.stop()
		wantError(t, await(t, "the end of the attempt", got).err, issue.ErrStopping)
	}
	if s.one(t).String() != name || s.count(http.MethodDelete) != 0 {
		t.Error("the request was not left")
	}
}

// The caller stops before the issuer does.
func TestCallerStops(t *testing.T) {
	s := newAPIServer(t)
	f := start(t, s, nil)
	ctx, stop := context.WithCancelCause(t.Context())
	got, _ := f.keep(t, ctx)
	name := s.one(t)
	stop(issue.ErrStopping)
	wantError(t, await(t, "the end of the attempt", got).err, issue.ErrStopping, "left to the next agent")
	// Its waiter is still there: a list that comes by now does not find it stale.
	s.compact()
	s.dropWatches()
	s.await(t, "another list", func() bool { return s.listed() > 1 && s.open > 0 })
	f.stop()
	if s.one(t) != name || s.count(http.MethodDelete) != 0 {
		t.Error("the request was deleted")
	}
}

// A create that is under way when the agent stops is waited for, and what it made
// is left.
func TestStopWhileCreating(t *testing.T) {
	for _, kept := range []bool{true, false} {
		t.Run(fmt.Sprintf("kept=%t", kept), func(t *testing.T) {
			s := newAPIServer(t)
			f := start(t, s, nil)
			reached, release := make(chan struct{}), make(chan struct{})
			s.with(func() {
				s.onCreate = func(*cmapi.CertificateRequest) *metav1.Status { close(reached); <-release; return nil }
			})
			r := wish("v1")
			r.Sending = func(issue.Sent) bool { return kept }
			got := f.ask(context.Background(), r)
			await(t, "the create", reached)
			stopped := make(chan struct{})
			go func() { defer close(stopped); f.stop() }()
			wantError(t, await(t, "the end of the attempt", got).err, issue.ErrStopping, "while creating")
			close(release)
			await(t, "the end of the agent", stopped)
			s.with(func() {
				if left := len(s.objects) == 1; s.uids != 1 || left != kept {
					t.Errorf("%d made, %d left; kept: %t", s.uids, len(s.objects), kept)
				}
			})
		})
	}
}

// The name is known before the request is sent, and nothing is sent for a volume that
// went while it was being kept.
func TestKeptBeforeSent(t *testing.T) {
	s := newAPIServer(t)
	f := start(t, s, nil)
	ctx, cancel := context.WithCancelCause(t.Context())
	unpublished := errors.New("volume unpublished")
	r := wish("v1")
	r.Sending = func(issue.Sent) bool {
		if n := s.count(http.MethodPost); n != 0 {
			t.Errorf("%d POST before it was kept", n)
		}
		cancel(unpublished)
		return true
	}
	_, err := f.Issue(ctx, r)
	wantError(t, err, unpublished, "before CertificateRequest shop/web-0-")
	f.stop()
	if n := s.count(http.MethodPost); n != 0 || len(f.board.waiting) != 0 {
		t.Errorf("%d POST, %d on the board; want none", n, len(f.board.waiting))
	}
}

func TestExpect(t *testing.T) {
	s := newAPIServer(t)
	f := start(t, s, nil)
	for _, name := range []string{"", "x", "shop/", "/x", "a/b/c", "Shop/x", "shop/x y", "shop/..", strings.Repeat("x", 300)} {
		if f.Expect("v1", name) {
			t.Errorf("%q is expected", name)
		}
		_, err := f.Issue(t.Context(), resuming("v1", name+"\x00"))
		wantError(t, err, issue.ErrGone)
	}
	if !f.Expect("v1", "shop/x") || f.Expect("v1", "shop/x") || f.Expect("v2", "shop/x") {
		t.Error("a name is not expected once")
	}
	// Nor can another volume take it, nor anybody twice.
	_, err := f.Issue(t.Context(), resuming("v2", "shop/x"))
	wantError(t, err, issue.ErrGone)
	if _, ok := f.board.claim(types.NamespacedName{Namespace: "shop", Name: "x"}, "v1"); !ok {
		t.Error("the volume cannot claim it")
	}
	_, err = f.Issue(t.Context(), resuming("v1", "shop/x"))
	wantError(t, err, issue.ErrGone)
	if refs := f.board.abandon(types.NamespacedName{Namespace: "shop", Name: "x"}); refs != nil || len(f.board.waiting) != 1 {
		t.Error("what is claimed was abandoned")
	}
}

// What was seen under the name is held to its UID from then on.
func TestResumedRequestIsReplaced(t *testing.T) {
	s := newAPIServer(t)
	kept := leftPending(t, s)
	f := startExpecting(t, s, "v1", kept)
	name := s.one(t)
	s.with(func() {
		old := s.objects[name].DeepCopy()
		impostor := old.DeepCopy()
		impostor.UID = "impostor"
		sign(impostor)
		s.store("MODIFIED", impostor, old.Labels)
	})
	_, err := f.Issue(t.Context(), resuming("v1", kept))
	wantError(t, err, issue.ErrUnavailable)
	f.stop()
	s.with(func() {
		if s.objects[name] == nil {
			t.Error("the other object was deleted")
		}
	})
}

// The list that decides whether expected requests exist is not a cached one; no other
// list costs the API server that much.
func TestListIsFreshWhereItDecides(t *testing.T) {
	versions := func(s *apiServer) (out []string) {
		for _, r := range s.seen() {
			if r.method == http.MethodGet && !r.watch {
				out = append(out, r.version)
			}
		}
		return out
	}
	s := newAPIServer(t)
	f := start(t, s, nil)
	f.stop()
	if got := versions(s); len(got) != 1 || got[0] != "0" {
		t.Errorf("with nothing to resume lists ask for versions %q, want one of 0", got)
	}
	s = newAPIServer(t)
	f = startExpecting(t, s, "v1", "shop/x")
	f.stop()
	if got := versions(s); len(got) != 1 || got[0] != "" {
		t.Errorf("with something to resume lists ask for versions %q, want one of the newest", got)
	}
	if f.board.adopts() {
		t.Error("every list will be like that")
	}
}

// Retention counts what was resumed as any other.
func TestRetentionOfResumed(t *testing.T) {
	s := newAPIServer(t)
	f := start(t, s, retaining(2))
	first := f.obtain(t, "v1", sign)
	second := f.obtain(t, "v1", sign)
	f.stop()
	name := func() string {
		f := start(t, s, retaining(2))
		_, sent := f.keep(t, context.Background())
		f.stop()
		return sent.Request
	}()
	f = startExpecting(t, s, "v1", name, retaining(2))
	got := f.ask(t.Context(), resuming("v1", name))
	parsed, err := parseName(name)
	if err != nil {
		t.Fatal(err)
	}
	s.awaitOnly(t, first, second, parsed)
	s.update(parsed, sign)
	res := await(t, "the result", got)
	if res.err != nil {
		t.Fatal(res.err)
	}
	res.Done(t.Context())
	s.awaitOnly(t, second, parsed)
}

// Requester "pod": the token is needed to create, and for nothing else.
func TestResumeNeedsNoToken(t *testing.T) {
	s := newAPIServer(t)
	name := leftPending(t, s)
	s.update(s.one(t), sign)
	f := startExpecting(t, s, "v1", name, func(o *Options) { o.Requester = request.RequesterPod })
	if _, err := f.Issue(t.Context(), resuming("v1", name)); err != nil {
		t.Fatal(err)
	}
}

// An attempt outlives whatever becomes of the watch, be it of this agent or of the
// one before: its request is neither lost nor deleted nor made again.
func TestAttemptSurvivesTheWatch(t *testing.T) {
	for name, disturb := range map[string]func(t *testing.T, s *apiServer){
		"dropped": func(_ *testing.T, s *apiServer) { s.dropWatches() },
		"dropped, and its version has expired": func(_ *testing.T, s *apiServer) {
			s.compact()
			s.dropWatches()
		},
		"API server restarts": func(t *testing.T, s *apiServer) {
			s.setDown(true)
			s.CloseClientConnections()
			s.setDown(false)
		},
		"API server restarts, and has forgotten the versions": func(t *testing.T, s *apiServer) {
			s.setDown(true)
			s.CloseClientConnections()
			s.compact()
			s.setDown(false)
		},
	} {
		for _, resumed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/resumed=%t", name, resumed), func(t *testing.T) {
				t.Parallel()
				s := newAPIServer(t)
				var f *fixture
				var got <-chan result
				if resumed {
					kept := leftPending(t, s)
					f = startExpecting(t, s, "v1", kept)
					got = f.ask(t.Context(), resuming("v1", kept))
				} else {
					f = start(t, s, nil)
					got, _ = f.created(t, t.Context())
				}
				cr := s.one(t)
				for range 2 {
					var before int
					s.with(func() { before = len(s.requests) })
					disturb(t, s)
					s.await(t, "another watch", func() bool {
						for _, r := range s.requests[before:] {
							if r.watch && s.open > 0 {
								return true
							}
						}
						return false
					})
				}
				s.update(cr, approve)
				s.update(cr, sign)
				res := await(t, "the result", got)
				if res.err != nil {
					t.Fatal(res.err)
				}
				f.stop()
				if posts, deletes := s.count(http.MethodPost), s.count(http.MethodDelete); posts != 1 || deletes != 0 {
					t.Errorf("%d POST and %d DELETE before Done, want 1 and none", posts, deletes)
				}
			})
		}
	}
}
