// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	spiffe "github.com/spiffe/go-spiffe/v2/workloadapi"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
)

func TestPoolLeavesEachMemberItsOwn(t *testing.T) {
	p := pool{limit: 10, reserved: 2}
	p.join()
	p.join()
	greedy := 0
	for p.take(greedy) {
		greedy++
	}
	if greedy != 8 { // 10, less the 2 of the other
		t.Errorf("one member of two took %d of 10", greedy)
	}
	modest := 0
	for p.take(modest) {
		modest++
	}
	if modest != 2 {
		t.Errorf("the other got %d", modest)
	}
	p.give(greedy)
	greedy--
	if !p.take(modest) {
		t.Error("what is given back is not there for others")
	}
	if p.take(greedy) {
		t.Error("and twice")
	}
	for n := modest + 1; n > 0; n-- {
		p.give(n)
	}
	for ; greedy > 0; greedy-- {
		p.give(greedy)
	}
	p.leave()
	p.leave()
	if p.shared != 0 || p.members != 0 {
		t.Errorf("left over: %d of %d members", p.shared, p.members)
	}
}

func TestBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(100)
		if wait, scarce := b.spend(200); wait != 0 || scarce {
			t.Errorf("within the burst: %s, %t", wait, scarce)
		}
		if wait, scarce := b.spend(100); wait != 0 || !scarce {
			t.Errorf("within the second half of the burst: %s, %t", wait, scarce)
		}
		if wait, _ := b.spend(250); wait != 500*time.Millisecond {
			t.Errorf("50 over, at 100 a second: wait %s", wait)
		}
		time.Sleep(500 * time.Millisecond)
		if wait, _ := b.spend(0); wait != 0 {
			t.Errorf("afterwards: wait %s", wait)
		}
		if wait, _ := b.spend(1e6); wait != longestHold {
			t.Errorf("far over: wait %s", wait)
		}
		time.Sleep(24 * time.Hour)
		if wait, scarce := b.spend(500); wait != 0 || !scarce {
			t.Errorf("the burst after a day: %s, %t", wait, scarce)
		}
		if wait, _ := b.spend(1); wait == 0 {
			t.Error("the burst grows without bound")
		}
	})
}

// reachedLimit waits until the server has met a limit. It reports to nobody, so the metric is asked again and again.
func reachedLimit(t *testing.T, s *testServer, l limit) {
	t.Helper()
	ctx := testContext(t)
	for testutil.ToFloat64(s.metrics.limited[l]) == 0 {
		if ctx.Err() != nil {
			t.Fatalf("limit %q was not reached", l)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestConnectionsOfASocketAreBounded(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{Limits: Limits{Connections: 3}})
	addr, other := s.start("a", newScripted(ca.identity(t, "/a"))), s.start("b", newScripted(ca.identity(t, "/b")))
	var first *grpc.ClientConn
	for range 3 {
		cc := dial(t, addr)
		recv(t, fetchStream(t, cc))
		first = cc
	}
	fourth := dial(t, addr)
	wantStatus(t, fetchOnce(t, fourth), codes.Unavailable, "")
	must(t, fourth.Close()) // which would try again
	must(t, fetchOnce(t, dial(t, other)))
	reachedLimit(t, s, limitConnections)
	if log := s.log.String(); !strings.Contains(log, "limit=connections") {
		t.Errorf("log: %s", log)
	}
	// go-spiffe comes back by itself once there is room.
	ready := make(chan error, 1)
	go func() {
		source, err := spiffe.NewX509Source(testContext(t), clientAt(addr))
		if err == nil {
			err = source.Close()
		}
		ready <- err
	}()
	must(t, first.Close())
	must(t, <-ready)
}

func TestEverySocketHasConnectionsToItself(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{Limits: Limits{AllConnections: 2*reservedConnections + 1}})
	greedy, modest := s.start("a", newScripted(ca.identity(t, "/a"))), s.start("b", newScripted(ca.identity(t, "/b")))
	for range reservedConnections + 1 {
		recv(t, fetchStream(t, dial(t, greedy)))
	}
	wantStatus(t, fetchOnce(t, dial(t, greedy)), codes.Unavailable, "")
	reachedLimit(t, s, limitAllConnections)
	for range reservedConnections {
		recv(t, fetchStream(t, dial(t, modest)))
	}
}

func TestAllConnectionsLeaveDescriptorsToOthers(t *testing.T) {
	if descriptors() == 0 {
		t.Skip("the number of descriptors is not known on this system")
	}
	if got, most := newShare(Limits{AllConnections: 1 << 30}).connections.limit, descriptors()/2; got != most {
		t.Errorf("%d connections of %d descriptors", got, descriptors())
	}
}

func TestRPCsOfASocketAreBounded(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{Limits: Limits{RPCs: 5}})
	addr, other := s.start("a", newScripted(ca.identity(t, "/a"))), s.start("b", newScripted(ca.identity(t, "/b")))
	ccs := []*grpc.ClientConn{dial(t, addr), dial(t, addr)} // the limit is the socket's, not a connection's
	var cancels []context.CancelFunc
	for n := range 5 {
		ctx, cancel := context.WithCancel(withHeader(testContext(t)))
		cancels = append(cancels, cancel)
		stream, err := workload.NewSpiffeWorkloadAPIClient(ccs[n%2]).FetchX509SVID(ctx, &workload.X509SVIDRequest{})
		must(t, err)
		recv(t, stream)
	}
	for _, cc := range ccs {
		wantStatus(t, fetchOnce(t, cc), codes.Unavailable, "too many open streams on this workload's socket (5)")
		_, err := healthpb.NewHealthClient(cc).Check(testContext(t), &healthpb.HealthCheckRequest{})
		wantStatus(t, err, codes.Unavailable, "too many open streams")
	}
	must(t, fetchOnce(t, dial(t, other)))
	if got := testutil.ToFloat64(s.metrics.limited[limitRPCs]); got != 4 {
		t.Errorf("counted %v", got)
	}
	if n := strings.Count(s.log.String(), "at a limit"); n != 1 {
		t.Errorf("%d log lines", n)
	}
	cancels[0]()
	source, err := spiffe.NewX509Source(testContext(t), clientAt(addr)) // retries until the server has seen the end
	must(t, err)
	must(t, source.Close())
}

func TestEverySocketHasRPCsToItself(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{Limits: Limits{AllRPCs: 2 * reservedRPCs}})
	greedy, modest := dial(t, s.start("a", newScripted(ca.identity(t, "/a")))), dial(t, s.start("b", newScripted(ca.identity(t, "/b"))))
	for range reservedRPCs {
		recv(t, fetchStream(t, greedy))
	}
	wantStatus(t, fetchOnce(t, greedy), codes.Unavailable, "too many open streams on this node")
	for range reservedRPCs {
		recv(t, fetchStream(t, modest))
	}
}

// rawConn is an HTTP/2 connection without a client library.
type rawConn struct {
	net.Conn
	*http2.Framer
	block strings.Builder
	hpack *hpack.Encoder
}

func rawDial(t *testing.T, addr string, settings ...http2.Setting) *rawConn {
	t.Helper()
	conn, err := net.Dial("unix", strings.TrimPrefix(addr, "unix://"))
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	c := &rawConn{Conn: conn, Framer: http2.NewFramer(conn, conn)}
	c.hpack = hpack.NewEncoder(&c.block)
	_, err = io.WriteString(conn, http2.ClientPreface)
	must(t, err)
	must(t, c.WriteSettings(settings...))
	return c
}

func (c *rawConn) open(t *testing.T, id uint32, method string) error {
	t.Helper()
	c.block.Reset()
	for _, f := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", method}, {":authority", "localhost"},
		{"content-type", "application/grpc"}, {"te", "trailers"}, {securityHeader, "true"}} {
		must(t, c.hpack.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}))
	}
	return c.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: []byte(c.block.String()), EndHeaders: true})
}

// waitClosed returns once the server has closed the connection.
func (c *rawConn) waitClosed(t *testing.T) {
	t.Helper()
	must(t, c.SetReadDeadline(time.Now().Add(patience)))
	if _, err := io.Copy(io.Discard, c.Conn); errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
		t.Fatal("the connection stays open")
	}
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// Unary RPCs whose request does not come are refused by nobody: gRPC reads the request before it asks anybody.
func TestRequestsThatDoNotComeEndTheConnection(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{Limits: Limits{RPCs: 20, RPCsPerConnection: 10}})
	addr := s.start("a", newScripted(ca.identity(t, "/a")))
	var conns []*rawConn
	for range 4 { // 20 within the limit, 10 over it, and one that is too much
		c := rawDial(t, addr)
		conns = append(conns, c)
		for n := range 10 {
			if err := c.open(t, uint32(2*n+1), healthpb.Health_Check_FullMethodName); err != nil {
				break // it is closed already
			}
		}
	}
	reachedLimit(t, s, limitUnfinished)
	for _, c := range conns[:3] {
		must(t, c.Close())
	}
	source, err := spiffe.NewX509Source(testContext(t), clientAt(addr))
	must(t, err)
	must(t, source.Close())
}

func TestFloodsAreSlowedDownOnTheirSocketOnly(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{Limits: Limits{Rate: 50}})
	w := newScripted(ca.identity(t, "/a"))
	addr, other := s.start("a", w), s.start("b", newScripted(ca.identity(t, "/b")))
	stream := fetchStream(t, dial(t, addr))
	recv(t, stream)
	c := rawDial(t, addr)
	flooding := make(chan struct{})
	go func() {
		defer close(flooding)
		for c.WriteWindowUpdate(0, 1) == nil {
		}
	}()
	reachedLimit(t, s, limitRate)
	must(t, fetchOnce(t, dial(t, other)))
	// What is sent to the workload is not slowed.
	next := ca.identity(t, "/a")
	w.set(next)
	wantSameSVID(t, recv(t, stream), next.SVIDs[0])
	// Nor is the end.
	began := time.Now()
	s.Detach(w)
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("Detach takes %s", took)
	}
	<-flooding
}

func TestConnectionsAreAcceptedAtARate(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	for name, listen := range map[string]func(net.Listener) net.Listener{
		"shared acceptor":     func(l net.Listener) net.Listener { return l },
		"without descriptors": func(l net.Listener) net.Listener { return struct{ net.Listener }{l} },
	} {
		t.Run(name, func(t *testing.T) {
			s := newTestServer(t, Options{Limits: Limits{Rate: 20}})
			must(t, s.Start(listen(s.listen("a")), newScripted(ca.identity(t, "/a"))))
			addr, other := "unix://"+s.dir+"/a", s.start("b", newScripted(ca.identity(t, "/b")))
			for range 100 { // 200 of 100 that may come at once
				c, err := net.Dial("unix", strings.TrimPrefix(addr, "unix://"))
				must(t, err)
				must(t, c.Close())
			}
			reachedLimit(t, s, limitRate)
			must(t, fetchOnce(t, dial(t, other)))
			if n := testutil.ToFloat64(s.metrics.accepted); n > 90 {
				t.Errorf("%v connections were accepted at once", n)
			}
			must(t, fetchOnce(t, dial(t, addr))) // its turn comes
		})
	}
}

func TestAClientThatDoesNotReadLosesItsConnection(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{Limits: Limits{Unread: 50 * time.Millisecond}})
	w := newScripted(ca.identity(t, "/a"))
	c := rawDial(t, s.start("a", w), http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1})
	must(t, c.WriteWindowUpdate(0, 1<<31-1-65535))
	must(t, c.open(t, 1, workload.SpiffeWorkloadAPI_FetchX509SVID_FullMethodName))
	must(t, c.WriteData(1, true, make([]byte, 5)))
	identities := []Identity{ca.identity(t, "/a"), ca.identity(t, "/a")}
	for n := 0; testutil.ToFloat64(s.metrics.limited[limitUnread]) == 0; n++ {
		if n > 100_000 {
			t.Fatal("it is served for ever")
		}
		w.set(identities[n%2])
		time.Sleep(100 * time.Microsecond) // the stream need not have seen every one
	}
	c.waitClosed(t)
}

func TestReflectionIsBounded(t *testing.T) {
	s := newTestServer(t, Options{})
	cc := dial(t, s.start("a", newScripted(Identity{Status: NotEntitled})))
	ask := func(r *reflectionpb.ServerReflectionRequest) error {
		stream, err := reflectionpb.NewServerReflectionClient(cc).ServerReflectionInfo(testContext(t))
		must(t, err)
		must(t, stream.Send(r))
		_, err = stream.Recv()
		return err
	}
	list := &reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}
	wantStatus(t, ask(&reflectionpb.ServerReflectionRequest{Host: strings.Repeat("h", maxReflectionRequest)}), codes.InvalidArgument, "longer than")
	for range maxReflections {
		must(t, ask(list)) // and stays open
	}
	wantStatus(t, ask(list), codes.Unavailable, "reflection streams")
	reachedLimit(t, s, limitReflection)
}

func TestErrorsDoNotRepeatLongRequests(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	cc := dial(t, s.start("a", newScripted(ca.identity(t, "/a"))))
	long := strings.Repeat("x", 100_000)
	_, checked := healthpb.NewHealthClient(cc).Check(testContext(t), &healthpb.HealthCheckRequest{Service: long})
	_, fetched := workload.NewSpiffeWorkloadAPIClient(cc).FetchJWTSVID(withHeader(testContext(t)), &workload.JWTSVIDRequest{Audience: []string{"a"}, SpiffeId: long})
	for name, err := range map[string]error{"health": checked, "jwt": fetched} {
		if n := len(status.Convert(err).Message()); err == nil || n > 2*maxReasonBytes {
			t.Errorf("%s: %d bytes, %v", name, n, status.Code(err))
		}
	}
}

// Idle connections end with GOAWAY, which clients do not notice.
func TestIdleConnectionsEnd(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{Limits: Limits{Idle: 50 * time.Millisecond}})
	addr := s.start("a", newScripted(ca.identity(t, "/a")))
	c := rawDial(t, addr)
	for {
		must(t, c.SetReadDeadline(time.Now().Add(patience)))
		f, err := c.ReadFrame()
		must(t, err)
		if g, ok := f.(*http2.GoAwayFrame); ok {
			if g.ErrCode != http2.ErrCodeNo {
				t.Errorf("GOAWAY with %s", g.ErrCode)
			}
			break
		}
	}
	cc := dial(t, addr)
	stream := fetchStream(t, cc) // a stream keeps its connection
	recv(t, stream)
	_, err := healthpb.NewHealthClient(dial(t, addr)).Check(testContext(t), &healthpb.HealthCheckRequest{})
	must(t, err)
	if s := stream.Context().Err(); s != nil {
		t.Error(s)
	}
}

func TestCountsReturnToZero(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{Limits: Limits{RPCs: 5}})
	w := newScripted(ca.identity(t, "/a"))
	addr := s.start("a", w)
	var running sync.WaitGroup
	for range 10 {
		running.Go(func() {
			cc := dial(t, addr)
			for range 20 {
				ctx, cancel := context.WithTimeout(withHeader(testContext(t)), 5*time.Millisecond)
				stream, err := workload.NewSpiffeWorkloadAPIClient(cc).FetchX509SVID(ctx, &workload.X509SVIDRequest{})
				if err == nil {
					_, _ = stream.Recv()
				}
				cancel()
			}
			_ = cc.Close()
		})
	}
	running.Wait()
	s.mu.Lock()
	ep := s.endpoints[w]
	s.mu.Unlock()
	ctx := testContext(t)
	for {
		ep.mu.Lock()
		rpcs, surplus, conns := ep.rpcs, ep.surplus, len(ep.conns)
		ep.mu.Unlock()
		if rpcs == 0 && surplus == 0 && conns == 0 && s.share.rpcs.shared == 0 && s.share.connections.shared == 0 {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("left over: %d rpcs, %d over the limit, %d connections", rpcs, surplus, conns)
		}
		time.Sleep(time.Millisecond)
	}
}
