// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	spiffe "github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/signet-spiffe/signet/internal/conformance"
)

// What clients of other languages make of the server. Each is modelled by what decides whether a workload gets its identity:
// which errors it gives up on, what it does when a stream ends with OK, how long it waits, and which messages it refuses.
// go-spiffe is the library itself. All speak to the real server over a real socket; none sleeps: a client that would wait says
// how long, and goes on when the test lets it.

// client watches the X.509-SVIDs or the JWT bundles of a socket and tells w what happens to it.
type client struct {
	name    string
	backoff func(attempt int) time.Duration // attempts since the last message, from 0
	svids   func(ctx context.Context, addr string, w *watch)
	keys    func(ctx context.Context, addr string, w *watch)
}

func doubling(first, most time.Duration) func(int) time.Duration {
	return func(attempt int) time.Duration {
		if attempt > 16 {
			return most
		}
		return min(first<<attempt, most)
	}
}

func linear(step, most time.Duration) func(int) time.Duration {
	return func(attempt int) time.Duration { return min(time.Duration(attempt+1)*step, most) }
}

// clients are the libraries in use.
func clients() []client {
	java := model{terminal: []codes.Code{codes.InvalidArgument}, endsWithOK: true, emptyMapIsAnError: true}
	javaMain := java
	javaMain.terminal = []codes.Code{codes.InvalidArgument, codes.PermissionDenied, codes.Unauthenticated, codes.Unimplemented, codes.FailedPrecondition}
	python := model{terminal: []codes.Code{codes.InvalidArgument, codes.Canceled}, endsWithOK: true}
	rust := model{terminal: []codes.Code{codes.InvalidArgument}, refusesExpired: true, knowsNoIdentity: true}
	return []client{
		goSpiffe(linear(time.Second, 30*time.Second)),
		java.client("java-spiffe 0.8.17", doubling(time.Second, time.Minute)),
		javaMain.client("java-spiffe main", doubling(time.Second, time.Minute)),
		python.client("py-spiffe 0.3.1", doubling(100*time.Millisecond, 5*time.Second)),
		rust.client("rust-spiffe", doubling(200*time.Millisecond, 10*time.Second)),
	}
}

// watch is one client's run, seen by the test.
type watch struct {
	t      *testing.T
	events chan string
	goOn   chan struct{} // one for each wait of the client
}

// expect fails unless this is the next that happens to the client.
func (w *watch) expect(want string) {
	w.t.Helper()
	select {
	case got := <-w.events:
		if got != want {
			w.t.Fatalf("the client says %q, want %q", got, want)
		}
	case <-time.After(patience):
		w.t.Fatalf("nothing happens to the client, want %q", want)
	}
}

// letGoOn ends the client's wait.
func (w *watch) letGoOn() { w.goOn <- struct{}{} }

func (w *watch) say(format string, args ...any) { w.events <- fmt.Sprintf(format, args...) }

// pause says that the client comes back, and waits until it may.
func (w *watch) pause(ctx context.Context, why string, after time.Duration) {
	w.say("%s, again in %s", why, after)
	select {
	case <-w.goOn:
	case <-ctx.Done():
	}
}

// start runs one of a client's watches until the test ends.
func start(t *testing.T, addr string, run func(context.Context, string, *watch)) *watch {
	t.Helper()
	w := &watch{t: t, events: make(chan string, 64), goOn: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		run(ctx, addr, w)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		for close(w.events); len(w.events) > 0; {
			t.Errorf("and then the client says %q", <-w.events)
		}
	})
	return w
}

func describe(s *x509svid.SVID) string {
	return fmt.Sprintf("%s %d", s.ID.Path(), s.Certificates[0].SerialNumber)
}

// model is a client that is not written in Go.
type model struct {
	terminal          []codes.Code // it gives up
	endsWithOK        bool         // it takes OK for the end, and gives up
	emptyMapIsAnError bool         // bundles without any are no update
	refusesExpired    bool         // an expired leaf is no update
	knowsNoIdentity   bool         // it tells "no identity issued" from other PermissionDenied, by the text
}

func (m model) client(name string, backoff func(int) time.Duration) client {
	watching := func(receive func(*grpc.ClientConn, context.Context) (func() (string, error), error)) func(context.Context, string, *watch) {
		return func(ctx context.Context, addr string, w *watch) { m.watch(ctx, addr, w, backoff, receive) }
	}
	return client{name: name, backoff: backoff, svids: watching(m.svids), keys: watching(m.keys)}
}

// watch is the loop that all of them have.
func (m model) watch(ctx context.Context, addr string, w *watch, backoff func(int) time.Duration,
	open func(*grpc.ClientConn, context.Context) (func() (string, error), error)) {
	for attempt := 0; ; attempt++ {
		messages, err := m.try(ctx, addr, w, open)
		if messages > 0 {
			attempt = 0
		}
		switch code := status.Code(err); {
		case ctx.Err() != nil:
			return
		case errors.Is(err, io.EOF) && m.endsWithOK:
			w.say("gave up: OK")
			return
		case slices.Contains(m.terminal, code):
			w.say("gave up: %s", code)
			return
		}
		w.pause(ctx, m.reason(err), backoff(attempt))
	}
}

// try is one stream, from its opening to its end. It has a connection of its own: gRPC waits between attempts to connect, and
// that in real time.
func (m model) try(ctx context.Context, addr string, w *watch, open func(*grpc.ClientConn, context.Context) (func() (string, error), error)) (messages int, err error) {
	ctx, cancel := context.WithCancel(withHeader(ctx))
	defer cancel()
	cc, err := connect(ctx, addr)
	if err != nil {
		return 0, err
	}
	next, err := open(cc, ctx)
	if err != nil {
		return 0, err
	}
	for ; ; messages++ {
		said, err := next()
		if err != nil {
			return messages, err
		}
		w.say("%s", said)
	}
}

// connect opens a connection that ends with ctx.
func connect(ctx context.Context, addr string) (*grpc.ClientConn, error) {
	cc, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err == nil {
		context.AfterFunc(ctx, func() { _ = cc.Close() })
	}
	return cc, err
}

// reason is what the client takes the error for.
func (m model) reason(err error) string {
	s := status.Convert(err)
	if m.knowsNoIdentity && s.Code() == codes.PermissionDenied && !strings.Contains(s.Message(), "no identity issued") {
		return "another PermissionDenied"
	}
	if errors.Is(err, io.EOF) {
		return "OK"
	}
	return s.Code().String()
}

func (m model) svids(cc *grpc.ClientConn, ctx context.Context) (func() (string, error), error) {
	stream, err := workload.NewSpiffeWorkloadAPIClient(cc).FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	return func() (string, error) {
		r, err := stream.Recv()
		if err != nil {
			return "", err
		}
		if len(r.Svids) == 0 || len(r.Svids[0].Bundle) == 0 {
			return "refused: empty", nil
		}
		svid, err := x509svid.ParseRaw(r.Svids[0].X509Svid, r.Svids[0].X509SvidKey)
		if err != nil {
			return "refused: " + err.Error(), nil
		}
		if m.refusesExpired && time.Now().After(svid.Certificates[0].NotAfter) {
			return "refused: expired", nil
		}
		return describe(svid), nil
	}, err
}

func (m model) keys(cc *grpc.ClientConn, ctx context.Context) (func() (string, error), error) {
	stream, err := workload.NewSpiffeWorkloadAPIClient(cc).FetchJWTBundles(ctx, &workload.JWTBundlesRequest{})
	return func() (string, error) {
		r, err := stream.Recv()
		if err != nil {
			return "", err
		}
		if len(r.Bundles) == 0 && m.emptyMapIsAnError {
			return "refused: empty", nil
		}
		own, err := jwtbundle.Parse(trustDomain, r.Bundles[trustDomain.IDString()])
		if err != nil {
			return "refused: " + err.Error(), nil
		}
		return fmt.Sprintf("%d keys", len(own.JWTAuthorities())), nil
	}, err
}

// goSpiffe is the library, with a back-off that waits for the test.
func goSpiffe(backoff func(int) time.Duration) client {
	newClient := func(ctx context.Context, addr string, w *watch) (*spiffe.Client, *goWatch) {
		g := &goWatch{ctx: ctx, w: w, backoff: backoff}
		c, err := spiffe.New(ctx, spiffe.WithAddr(addr), spiffe.WithBackoffStrategy(g),
			spiffe.WithDialOptions(grpc.WithStreamInterceptor(
				func(ctx context.Context, desc *grpc.StreamDesc, _ *grpc.ClientConn, method string, _ grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
					cc, err := connect(ctx, addr) // as a model does; the library ends ctx with the stream
					if err != nil {
						return nil, err
					}
					return cc.NewStream(ctx, desc, method, opts...)
				})))
		if err != nil {
			w.say("no client: %v", err)
		}
		return c, g
	}
	return client{name: "go-spiffe", backoff: backoff,
		svids: func(ctx context.Context, addr string, w *watch) {
			c, g := newClient(ctx, addr, w)
			g.finish(c, c.WatchX509Context(ctx, g))
		},
		keys: func(ctx context.Context, addr string, w *watch) {
			c, g := newClient(ctx, addr, w)
			g.finish(c, c.WatchJWTBundles(ctx, g))
		},
	}
}

// goWatch is go-spiffe's watcher and its back-off.
type goWatch struct {
	ctx     context.Context
	w       *watch
	backoff func(int) time.Duration
	attempt int
	last    error
}

func (g *goWatch) NewBackoff() spiffe.Backoff { return g }
func (g *goWatch) Reset()                     { g.attempt = 0 }

func (g *goWatch) Next() time.Duration {
	g.w.pause(g.ctx, status.Code(g.last).String(), g.backoff(g.attempt))
	g.attempt++
	return 0
}

func (g *goWatch) OnX509ContextUpdate(c *spiffe.X509Context) {
	g.w.say("%s", describe(c.DefaultSVID()))
}
func (g *goWatch) OnX509ContextWatchError(err error) { g.last = err }
func (g *goWatch) OnJWTBundlesWatchError(err error)  { g.last = err }

func (g *goWatch) OnJWTBundlesUpdate(s *jwtbundle.Set) {
	b, ok := s.Get(trustDomain)
	if !ok {
		g.w.say("refused: empty")
		return
	}
	g.w.say("%d keys", len(b.JWTAuthorities()))
}

func (g *goWatch) finish(c *spiffe.Client, err error) {
	if g.ctx.Err() == nil {
		g.w.say("gave up: %s", status.Code(err))
	}
	_ = c.Close()
}

// everyClient runs a scene with each of them. A scene ends when the client has what it came for, and nothing may happen to it
// that the scene did not expect.
func everyClient(t *testing.T, scene func(t *testing.T, s *testServer, ca *authority, c client)) {
	for _, c := range clients() {
		t.Run(c.name, func(t *testing.T) {
			scene(t, newTestServer(t, Options{}), newAuthority(t, trustDomain), c)
		})
	}
}

func TestClientsThatComeTooEarlyAreHeld(t *testing.T) {
	conformance.Proves(t, "W4")
	everyClient(t, func(t *testing.T, s *testServer, ca *authority, c client) {
		pod := newScripted(Identity{Status: Pending})
		w := start(t, s.start("a", pod), c.svids)
		pod.waitAsked(1)
		i := ca.identity(t, "/a")
		pod.set(i)
		w.expect(describe(i.SVIDs[0])) // in the same moment: none of them came twice
	})
}

func TestClientsComeBackToAServerThatStarts(t *testing.T) {
	conformance.Proves(t, "E13")
	everyClient(t, func(t *testing.T, s *testServer, ca *authority, c client) {
		pod := newScripted(Identity{Status: Initializing})
		w := start(t, s.start("a", pod), c.svids)
		for attempt := range 3 {
			w.expect(fmt.Sprintf("Unavailable, again in %s", c.backoff(attempt)))
			if attempt < 2 {
				w.letGoOn()
			}
		}
		i := ca.identity(t, "/a")
		pod.set(i)
		w.letGoOn()
		w.expect(describe(i.SVIDs[0]))
	})
}

// An identity that cannot be told for now is no reason to give up either.
func TestClientsComeBackForAnIdentityThatWasIncomplete(t *testing.T) {
	everyClient(t, func(t *testing.T, s *testServer, ca *authority, c client) {
		i := ca.identity(t, "/a")
		bare := i
		bare.Bundles = nil
		pod := newScripted(bare)
		w := start(t, s.start("a", pod), c.svids)
		w.expect(fmt.Sprintf("Unavailable, again in %s", c.backoff(0)))
		pod.set(i)
		w.letGoOn()
		w.expect(describe(i.SVIDs[0]))
	})
}

// takesNoForAnAnswer is who leaves for good when told that there is no identity. A pod's server says so only of a volume that
// is being taken away, which happens when the pod's containers have ended, or of an identity that was refused.
const takesNoForAnAnswer = "java-spiffe main"

func TestClientsWithoutAnIdentityAreTold(t *testing.T) {
	conformance.Proves(t, "E14", "W16")
	everyClient(t, func(t *testing.T, s *testServer, ca *authority, c client) {
		pod := newScripted(Identity{Status: NotEntitled})
		w := start(t, s.start("a", pod), c.svids)
		if c.name == takesNoForAnAnswer {
			w.expect("gave up: PermissionDenied")
			return
		}
		w.expect(fmt.Sprintf("PermissionDenied, again in %s", c.backoff(0)))
		i := ca.identity(t, "/a")
		pod.set(i)
		w.letGoOn()
		w.expect(describe(i.SVIDs[0]))
	})
}

// A volume is taken away, and one is mounted where it was, on the same path.
func TestClientsFindTheSocketThatTookThePlace(t *testing.T) {
	conformance.Proves(t, "W16")
	everyClient(t, func(t *testing.T, s *testServer, ca *authority, c client) {
		i, next := ca.identity(t, "/a"), ca.identity(t, "/a")
		pod := newScripted(i)
		w := start(t, s.start("a", pod), c.svids)
		w.expect(describe(i.SVIDs[0]))
		s.Detach(pod)
		if c.name == takesNoForAnAnswer {
			w.expect("gave up: PermissionDenied")
			return
		}
		w.expect(fmt.Sprintf("PermissionDenied, again in %s", c.backoff(0)))
		w.letGoOn()
		w.expect(fmt.Sprintf("Unavailable, again in %s", c.backoff(1))) // nobody is there
		s.start("a", newScripted(next))
		w.letGoOn()
		w.expect(describe(next.SVIDs[0]))
	})
}

func TestClientsSeeEveryRotationOnOneStream(t *testing.T) {
	conformance.Proves(t, "W5", "W28")
	everyClient(t, func(t *testing.T, s *testServer, ca *authority, c client) {
		i := ca.identity(t, "/a")
		pod := newScripted(i)
		w := start(t, s.start("a", pod), c.svids)
		for range 5 {
			w.expect(describe(i.SVIDs[0]))
			i = ca.identity(t, "/a")
			pod.set(i)
		}
		w.expect(describe(i.SVIDs[0]))
	})
}

// An agent is replaced: the old one ends, for a while there is none, and the next one serves the same socket.
func TestClientsOutliveTheAgent(t *testing.T) {
	conformance.Proves(t, "E13")
	everyClient(t, func(t *testing.T, s *testServer, ca *authority, c client) {
		i := ca.identity(t, "/a")
		w := start(t, s.start("a", newScripted(i)), c.svids)
		w.expect(describe(i.SVIDs[0]))
		must(t, s.Shutdown(context.Background()))
		for attempt := range 2 {
			w.expect(fmt.Sprintf("Unavailable, again in %s", c.backoff(attempt)))
			if attempt == 0 {
				w.letGoOn()
			}
		}
		next := &testServer{Server: NewServer(Options{}), t: t, dir: s.dir}
		next.start("a", newScripted(i)) // the same SVID: it was kept
		w.letGoOn()
		w.expect(describe(i.SVIDs[0]))
		must(t, next.Shutdown(context.Background()))
		w.expect(fmt.Sprintf("Unavailable, again in %s", c.backoff(0))) // the message in between has reset it
	})
}

// A pod that waits for its SVID while the agent is replaced is not told that it has none.
func TestClientsThatAreHeldOutliveTheAgent(t *testing.T) {
	everyClient(t, func(t *testing.T, s *testServer, ca *authority, c client) {
		pod := newScripted(Identity{Status: Pending})
		w := start(t, s.start("a", pod), c.svids)
		pod.waitAsked(1)
		must(t, s.Shutdown(context.Background()))
		w.expect(fmt.Sprintf("Unavailable, again in %s", c.backoff(0)))
		next := &testServer{Server: NewServer(Options{}), t: t, dir: s.dir}
		i := ca.identity(t, "/a")
		next.start("a", newScripted(i))
		w.letGoOn()
		w.expect(describe(i.SVIDs[0]))
		must(t, next.Shutdown(context.Background()))
		w.expect(fmt.Sprintf("Unavailable, again in %s", c.backoff(0)))
	})
}

// JWT is off: whoever watches keys has the empty set, is content and stays; a rotation is nothing to tell it; who asks for a
// token is told why there is none.
func TestClientsLiveWithoutJWT(t *testing.T) {
	conformance.Proves(t, "W5", "W22")
	everyClient(t, func(t *testing.T, s *testServer, ca *authority, c client) {
		pod := newScripted(ca.identity(t, "/a"))
		addr := s.start("a", pod)
		w := start(t, addr, c.keys)
		w.expect("0 keys")
		pod.set(ca.identity(t, "/a"))
		pod.waitAsked(1)
		_, err := workload.NewSpiffeWorkloadAPIClient(dial(t, addr)).FetchJWTSVID(withHeader(testContext(t)), &workload.JWTSVIDRequest{Audience: []string{"db"}})
		wantStatus(t, err, codes.Unimplemented, "JWT functionality is disabled")
		must(t, s.Shutdown(context.Background()))
		w.expect(fmt.Sprintf("Unavailable, again in %s", c.backoff(0))) // and nothing before it
	})
}

// okServer ends streams with OK, as Signet's server never does.
type okServer struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
}

func (okServer) FetchX509SVID(*workload.X509SVIDRequest, grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	return nil
}

// Why no stream may end with OK: this shows the models, not the server.
func TestClientsThatTakeOKForTheEnd(t *testing.T) {
	checkLeaks(t)
	path := filepath.Join(t.TempDir(), "s")
	lis, err := net.Listen("unix", path)
	must(t, err)
	server := grpc.NewServer()
	workload.RegisterSpiffeWorkloadAPIServer(server, okServer{})
	go func() { _ = server.Serve(lis) }()
	t.Cleanup(server.Stop)
	lost := map[string]bool{"java-spiffe 0.8.17": true, "java-spiffe main": true, "py-spiffe 0.3.1": true}
	for _, c := range clients() {
		t.Run(c.name, func(t *testing.T) {
			w := start(t, "unix://"+path, c.svids)
			switch {
			case lost[c.name]:
				w.expect("gave up: OK")
			case c.name == "go-spiffe":
				w.expect(fmt.Sprintf("Unknown, again in %s", c.backoff(0))) // io.EOF has no code
			default:
				w.expect(fmt.Sprintf("OK, again in %s", c.backoff(0)))
			}
		})
	}
}
