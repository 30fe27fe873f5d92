// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/exp/bundle/witbundle"
	"github.com/spiffe/go-spiffe/v2/exp/svid/witsvid"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	spiffe "github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/signet-spiffe/signet/internal/conformance"
)

// All that go-spiffe can ask for and do, as its users see it, against the real server.

var (
	partnerDomain = spiffeid.RequireTrustDomainFromString("partner.org")
	unknownDomain = spiffeid.RequireTrustDomainFromString("unknown.org")
)

// twoOf is an identity with two SVIDs, each with a hint, and a federated trust domain.
func twoOf(t *testing.T, ca, partner *authority) Identity {
	t.Helper()
	i := ca.identity(t, "/internal")
	i.SVIDs = append(i.SVIDs, ca.svid(t, "/external"))
	i.SVIDs[0].Hint, i.SVIDs[1].Hint = "internal", "external"
	i.Bundles = x509bundle.NewSet(ca.bundle(), partner.bundle())
	return i
}

func wantBundles(t *testing.T, got *x509bundle.Set, want ...*authority) {
	t.Helper()
	if got.Len() != len(want) {
		t.Errorf("%d bundles, want %d", got.Len(), len(want))
	}
	for _, a := range want {
		if b, ok := got.Get(a.td); !ok || !b.Equal(a.bundle()) {
			t.Errorf("bundle of %s: %t", a.td, ok)
		}
	}
}

func TestGoSpiffeFetches(t *testing.T) {
	conformance.Proves(t, "E3", "W10", "W13", "W22", "W25", "W27")
	ca, partner := newAuthority(t, trustDomain), newAuthority(t, partnerDomain)
	s := newTestServer(t, Options{})
	i := twoOf(t, ca, partner)
	c, ctx := newClient(t, s.start("a", newScripted(i))), testContext(t)

	svid, err := c.FetchX509SVID(ctx)
	must(t, err)
	wantSameSVID(t, svid, i.SVIDs[0])
	svids, err := c.FetchX509SVIDs(ctx)
	must(t, err)
	if len(svids) != 2 {
		t.Fatalf("%d svids", len(svids))
	}
	for n := range svids {
		wantSameSVID(t, svids[n], i.SVIDs[n])
		if svids[n].Hint != i.SVIDs[n].Hint {
			t.Errorf("hint %q", svids[n].Hint)
		}
	}
	both, err := c.FetchX509Context(ctx)
	must(t, err)
	wantSameSVID(t, both.DefaultSVID(), i.SVIDs[0])
	wantBundles(t, both.Bundles, ca, partner)
	bundles, err := c.FetchX509Bundles(ctx)
	must(t, err)
	wantBundles(t, bundles, ca, partner)
	keys, err := c.FetchJWTBundles(ctx)
	must(t, err)
	if b, ok := keys.Get(trustDomain); !ok || !b.Empty() {
		t.Errorf("JWT bundle of the own trust domain: %t", ok)
	}
	if _, err := x509svid.ParseRaw(svid.Certificates[0].Raw, mustPKCS8(t, svid)); err != nil {
		t.Error(err)
	}
	if _, _, err := x509svid.Verify(svids[1].Certificates, bundles); err != nil {
		t.Errorf("what was fetched does not verify against what was fetched: %v", err)
	}

	_, err = c.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "db"})
	wantStatus(t, err, codes.Unimplemented, "JWT functionality is disabled")
	_, err = c.FetchJWTSVIDs(ctx, jwtsvid.Params{Audience: "db", ExtraAudiences: []string{"cache"}, Subject: i.SVIDs[0].ID})
	wantStatus(t, err, codes.Unimplemented, "JWT functionality is disabled")
	_, err = c.FetchJWTSVID(ctx, jwtsvid.Params{})
	if err == nil {
		t.Error("a JWT-SVID without audience")
	}
	_, err = c.FetchWITSVID(ctx, "")
	wantStatus(t, err, codes.Unimplemented, "not implemented")
	_, err = c.FetchWITSVIDs(ctx, i.SVIDs[0].ID.String())
	wantStatus(t, err, codes.Unimplemented, "not implemented")
	_, err = c.FetchWITBundles(ctx)
	wantStatus(t, err, codes.Unimplemented, "not implemented")
}

func mustPKCS8(t *testing.T, s *x509svid.SVID) []byte {
	t.Helper()
	_, key, err := s.MarshalRaw()
	must(t, err)
	return key
}

// The convenience functions make a client of their own each time.
func TestGoSpiffeFetchesWithoutAClient(t *testing.T) {
	ca, partner := newAuthority(t, trustDomain), newAuthority(t, partnerDomain)
	s := newTestServer(t, Options{})
	i := twoOf(t, ca, partner)
	t.Setenv(spiffe.SocketEnv, s.start("a", newScripted(i)))
	ctx := testContext(t)
	svid, err := spiffe.FetchX509SVID(ctx)
	must(t, err)
	wantSameSVID(t, svid, i.SVIDs[0])
	bundles, err := spiffe.FetchX509Bundles(ctx)
	must(t, err)
	wantBundles(t, bundles, ca, partner)
	keys, err := spiffe.FetchJWTBundles(ctx)
	must(t, err)
	if !keys.Has(trustDomain) {
		t.Error("no JWT bundle of the own trust domain")
	}
}

// Two SVIDs with one hint would be one to go-spiffe, which drops the later.
func TestGoSpiffeKeepsSVIDsWhoseHintsWereTheSame(t *testing.T) {
	conformance.Proves(t, "W14")
	ca, partner := newAuthority(t, trustDomain), newAuthority(t, partnerDomain)
	s := newTestServer(t, Options{})
	i := twoOf(t, ca, partner)
	i.SVIDs[1].Hint = i.SVIDs[0].Hint
	svids, err := newClient(t, s.start("a", newScripted(i))).FetchX509SVIDs(testContext(t))
	must(t, err)
	if len(svids) != 2 || svids[0].Hint != "internal" || svids[1].Hint != "" {
		t.Errorf("%d svids", len(svids))
	}
}

// updates collects what a watcher is told.
type updates[T any] struct {
	got    chan T
	errors chan error
}

func newUpdates[T any]() updates[T] { return updates[T]{make(chan T, 16), make(chan error, 16)} }

func (u updates[T]) next(t *testing.T) T {
	t.Helper()
	select {
	case v := <-u.got:
		return v
	case <-time.After(patience):
		t.Fatal("no update")
		panic("unreachable")
	}
}

func (u updates[T]) OnX509ContextUpdate(c *spiffe.X509Context) { u.got <- any(c).(T) }
func (u updates[T]) OnX509ContextWatchError(err error)         { u.errors <- err }
func (u updates[T]) OnX509BundlesUpdate(s *x509bundle.Set)     { u.got <- any(s).(T) }
func (u updates[T]) OnX509BundlesWatchError(err error)         { u.errors <- err }
func (u updates[T]) OnJWTBundlesUpdate(s *jwtbundle.Set)       { u.got <- any(s).(T) }
func (u updates[T]) OnJWTBundlesWatchError(err error)          { u.errors <- err }
func (u updates[T]) OnWITSVIDsUpdate(s []*witsvid.SVID)        { u.got <- any(s).(T) }
func (u updates[T]) OnWITSVIDsWatchError(err error)            { u.errors <- err }
func (u updates[T]) OnWITBundlesUpdate(s *witbundle.Set)       { u.got <- any(s).(T) }
func (u updates[T]) OnWITBundlesWatchError(err error)          { u.errors <- err }
func (u updates[T]) run(t *testing.T, watch func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- watch(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			wantStatus(t, err, codes.Canceled, "")
		}
	})
}

func TestGoSpiffeWatchesX509(t *testing.T) {
	conformance.Proves(t, "W3", "W5")
	ca, partner := newAuthority(t, trustDomain), newAuthority(t, partnerDomain)
	s := newTestServer(t, Options{})
	alone, federated := ca.identity(t, "/a"), twoOf(t, ca, partner)
	w := newScripted(alone)
	c := newClient(t, s.start("a", w))
	contexts, bundles := newUpdates[*spiffe.X509Context](), newUpdates[*x509bundle.Set]()
	contexts.run(t, func(ctx context.Context) error { return c.WatchX509Context(ctx, contexts) })
	bundles.run(t, func(ctx context.Context) error { return c.WatchX509Bundles(ctx, bundles) })

	got := contexts.next(t)
	wantSameSVID(t, got.DefaultSVID(), alone.SVIDs[0])
	wantBundles(t, got.Bundles, ca)
	wantBundles(t, bundles.next(t), ca)

	w.set(federated)
	got = contexts.next(t)
	if len(got.SVIDs) != 2 {
		t.Errorf("%d svids", len(got.SVIDs))
	}
	wantBundles(t, got.Bundles, ca, partner)
	wantBundles(t, bundles.next(t), ca, partner)

	w.set(alone) // the end of a federation
	wantBundles(t, contexts.next(t).Bundles, ca)
	wantBundles(t, bundles.next(t), ca)

	w.set(Identity{Status: NotEntitled})
	wantStatus(t, <-contexts.errors, codes.PermissionDenied, "no identity issued")
	wantStatus(t, <-bundles.errors, codes.PermissionDenied, "no identity issued")
}

func TestGoSpiffeWatchesJWTBundles(t *testing.T) {
	conformance.Proves(t, "W22")
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	w := newScripted(Identity{Status: Pending})
	c := newClient(t, s.start("a", w))
	keys := newUpdates[*jwtbundle.Set]()
	keys.run(t, func(ctx context.Context) error { return c.WatchJWTBundles(ctx, keys) })
	w.waitAsked(1)
	w.set(ca.identity(t, "/a"))
	if got := keys.next(t); !got.Has(trustDomain) {
		t.Error("no JWT bundle of the own trust domain")
	}
}

// WIT is not offered. Whoever watches is told at once and for good.
func TestGoSpiffeWatchesNoWIT(t *testing.T) {
	conformance.Proves(t, "W25")
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	addr := s.start("a", newScripted(ca.identity(t, "/a")))
	c := newClient(t, addr)
	wantStatus(t, c.WatchWITSVIDs(testContext(t), newUpdates[[]*witsvid.SVID](), ""), codes.Unimplemented, "not implemented")
	wantStatus(t, c.WatchWITBundles(testContext(t), newUpdates[*witbundle.Set]()), codes.Unimplemented, "not implemented")
	_, err := spiffe.NewWITSource(testContext(t), clientAt(addr))
	wantStatus(t, err, codes.Unimplemented, "not implemented")
}

// A source is there when its first update is, and not before; whoever does not want to wait any longer is let go.
func TestGoSpiffeSourcesWaitForTheFirstUpdate(t *testing.T) {
	conformance.Proves(t, "W4")
	ca := newAuthority(t, trustDomain)
	sources := map[string]func(context.Context, spiffe.SourceOption) (interface{ Close() error }, error){
		"X509Source": func(ctx context.Context, o spiffe.SourceOption) (interface{ Close() error }, error) {
			return spiffe.NewX509Source(ctx, o)
		},
		"BundleSource": func(ctx context.Context, o spiffe.SourceOption) (interface{ Close() error }, error) {
			return spiffe.NewBundleSource(ctx, o)
		},
		"JWTSource": func(ctx context.Context, o spiffe.SourceOption) (interface{ Close() error }, error) {
			return spiffe.NewJWTSource(ctx, o)
		},
	}
	for name, newSource := range sources {
		t.Run(name, func(t *testing.T) {
			s := newTestServer(t, Options{})
			w := newScripted(Identity{Status: Pending})
			addr := s.start("a", w)

			ctx, cancel := context.WithCancel(testContext(t))
			gone := make(chan error, 1)
			go func() {
				_, err := newSource(ctx, clientAt(addr))
				gone <- err
			}()
			w.waitAsked(1)
			cancel()
			if err := <-gone; !errors.Is(err, context.Canceled) {
				t.Errorf("who does not wait gets %v", err)
			}

			ready := make(chan error, 1)
			go func() {
				source, err := newSource(testContext(t), clientAt(addr))
				if err == nil {
					err = source.Close()
				}
				ready <- err
			}()
			w.waitAsked(2)
			select {
			case err := <-ready:
				t.Errorf("ready without an update: %v", err)
			default:
			}
			w.set(ca.identity(t, "/a"))
			must(t, <-ready)
		})
	}
}

func TestGoSpiffeX509SourcePicksByHint(t *testing.T) {
	conformance.Proves(t, "W14", "W27")
	ca, partner := newAuthority(t, trustDomain), newAuthority(t, partnerDomain)
	s := newTestServer(t, Options{})
	i := twoOf(t, ca, partner)
	w := newScripted(i)
	addr := s.start("a", w)
	source, err := spiffe.NewX509Source(testContext(t), clientAt(addr), spiffe.WithDefaultX509SVIDPicker(func(svids []*x509svid.SVID) *x509svid.SVID {
		return svids[slices.IndexFunc(svids, func(s *x509svid.SVID) bool { return s.Hint == "external" })]
	}))
	must(t, err)
	t.Cleanup(func() { _ = source.Close() })
	for range 2 {
		svid, err := source.GetX509SVID()
		must(t, err)
		wantSameSVID(t, svid, i.SVIDs[1])
		byDefault, err := newX509Source(t, addr).GetX509SVID()
		must(t, err)
		wantSameSVID(t, byDefault, i.SVIDs[0])
		i = twoOf(t, ca, partner)
		w.set(i)
		must(t, source.WaitUntilUpdated(testContext(t)))
	}
	must(t, source.Close())
	if _, err := source.GetX509SVID(); err == nil {
		t.Error("a closed source has an SVID")
	}
}

func TestGoSpiffeBundleSourceFollows(t *testing.T) {
	conformance.Proves(t, "W3", "W13")
	ca, partner, second := newAuthority(t, trustDomain), newAuthority(t, partnerDomain), newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	i := ca.identity(t, "/a")
	w := newScripted(i)
	source, err := spiffe.NewBundleSource(testContext(t), clientAt(s.start("a", w)))
	must(t, err)
	t.Cleanup(func() { _ = source.Close() })
	if _, err := source.GetX509BundleForTrustDomain(partnerDomain); err == nil {
		t.Error("a bundle of a trust domain that nobody federates with")
	}
	_, err = source.GetBundleForTrustDomain(trustDomain)
	must(t, err)

	i.Bundles = x509bundle.NewSet(partner.bundle(), x509bundle.FromX509Authorities(trustDomain, []*x509.Certificate{ca.cert, second.cert}))
	w.set(i)
	must(t, source.WaitUntilUpdated(testContext(t)))
	for td, want := range map[spiffeid.TrustDomain]int{trustDomain: 2, partnerDomain: 1} {
		b, err := source.GetX509BundleForTrustDomain(td)
		must(t, err)
		if n := len(b.X509Authorities()); n != want {
			t.Errorf("%d authorities of %s, want %d", n, td, want)
		}
	}
	for _, td := range []spiffeid.TrustDomain{partnerDomain, unknownDomain} {
		if _, err := source.GetJWTBundleForTrustDomain(td); err == nil {
			t.Errorf("a JWT bundle of %s", td)
		}
	}
}

func TestGoSpiffeJWTSourceHasTheOwnTrustDomainOnly(t *testing.T) {
	conformance.Proves(t, "W22")
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	source, err := spiffe.NewJWTSource(testContext(t), clientAt(s.start("a", newScripted(ca.identity(t, "/a")))))
	must(t, err)
	t.Cleanup(func() { _ = source.Close() })
	keys, err := source.GetJWTBundleForTrustDomain(trustDomain)
	must(t, err)
	if !keys.Empty() {
		t.Error("JWT keys out of nowhere")
	}
	if _, err := source.GetJWTBundleForTrustDomain(partnerDomain); err == nil {
		t.Error("a JWT bundle of nobody's")
	}
	_, err = source.FetchJWTSVIDs(testContext(t), jwtsvid.Params{Audience: "db"})
	wantStatus(t, err, codes.Unimplemented, "JWT functionality is disabled")
}

// A partner whose bundle does not fit into a message costs a go-spiffe program the trust in that partner, and nothing else.
func TestGoSpiffeReceivesWhatFits(t *testing.T) {
	ca, partner := newAuthority(t, trustDomain), newAuthority(t, partnerDomain)
	var roots []*x509.Certificate
	for n := 0; n < 5<<20; { // one root in many spellings: only its size matters
		root := *partner.cert
		root.Raw = append(slices.Clone(partner.cert.Raw), fmt.Sprintf("%08d", len(roots))...)
		roots, n = append(roots, &root), n+len(root.Raw)
	}
	i := ca.identity(t, "/a")
	i.Bundles = x509bundle.NewSet(ca.bundle(), partner.bundle(), x509bundle.FromX509Authorities(unknownDomain, roots))
	s := newTestServer(t, Options{})
	c := newClient(t, s.start("a", newScripted(i)))
	got, err := c.FetchX509Context(testContext(t))
	must(t, err)
	wantSameSVID(t, got.DefaultSVID(), i.SVIDs[0])
	wantBundles(t, got.Bundles, ca, partner)
	bundles, err := c.FetchX509Bundles(testContext(t))
	must(t, err)
	wantBundles(t, bundles, ca, partner)
}

// A pod may mount several volumes: each socket speaks for its own, and the end of one is not the end of the other.
func TestVolumesOfOnePodSpeakForThemselves(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	one, two := newScripted(ca.identity(t, "/one")), newScripted(ca.identity(t, "/two"))
	first, second := newX509Source(t, s.start("one", one)), newX509Source(t, s.start("two", two))
	path := func(source *spiffe.X509Source) string {
		svid, err := source.GetX509SVID()
		must(t, err)
		return svid.ID.Path()
	}
	if d := cmp.Diff([]string{"/one", "/two"}, []string{path(first), path(second)}); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	s.Detach(one)
	next := ca.identity(t, "/two")
	two.set(next)
	must(t, second.WaitUntilUpdated(testContext(t)))
	svid, err := second.GetX509SVID()
	must(t, err)
	wantSameSVID(t, svid, next.SVIDs[0])
	if path(first) != "/one" { // go-spiffe keeps what it has
		t.Error("the first volume's client has another identity")
	}
}

// A node's worth of streams in one process: 250 sockets with one connection and eight streams each. Every client has its own workload's SVID,
// and a rotation of all workloads reaches every stream once.
func TestTwoThousandStreams(t *testing.T) {
	conformance.Proves(t, "E11", "W5")
	const sockets, perSocket = 250, 8
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	pods := make([]*scripted, sockets)
	addrs := make([]string, sockets)
	next := make([]Identity, sockets)
	parallel := func(do func(n int)) {
		var all sync.WaitGroup
		work := make(chan int)
		for range 8 {
			all.Go(func() {
				for n := range work {
					do(n)
				}
			})
		}
		for n := range sockets {
			work <- n
		}
		close(work)
		all.Wait()
	}
	parallel(func(n int) {
		path := fmt.Sprintf("/pod/%d", n)
		pods[n], next[n] = newScripted(ca.identity(t, path)), ca.identity(t, path)
		addrs[n] = s.start(fmt.Sprint(n), pods[n])
	})
	type stream = grpc.ServerStreamingClient[workload.X509SVIDResponse]
	streams := make([][]stream, sockets)
	read := func(n int) {
		want := pods[n].identity.SVIDs[0]
		for _, stream := range streams[n] {
			r, err := stream.Recv()
			if err != nil {
				t.Error(err)
				return
			}
			if !slices.Equal(r.Svids[0].X509Svid, want.Certificates[0].Raw) {
				t.Errorf("a client of %s got %s, or an old one", want.ID, r.Svids[0].SpiffeId)
			}
		}
	}
	ctx, cancel := context.WithTimeout(withHeader(context.Background()), 4*patience)
	t.Cleanup(cancel)
	parallel(func(n int) {
		cc, err := connect(ctx, addrs[n])
		if err != nil {
			t.Error(err)
			return
		}
		for range perSocket {
			stream, err := workload.NewSpiffeWorkloadAPIClient(cc).FetchX509SVID(ctx, &workload.X509SVIDRequest{})
			if err != nil {
				t.Error(err)
				return
			}
			streams[n] = append(streams[n], stream)
		}
		read(n)
	})
	if t.Failed() {
		return
	}
	for n, pod := range pods {
		pod.set(next[n])
	}
	parallel(read)
}
