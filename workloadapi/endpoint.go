// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// endpoint is one attached workload with its listeners and connections.
type endpoint struct {
	workload Workload
	share    *share
	budget   *budget
	metrics  *metrics
	log      *slog.Logger
	ended    chan struct{} // closed by end, after reason is set
	idle     chan struct{} // closed once ended and without open RPCs
	gone     sync.Once     // detach
	sds      sdsNotes

	mu        sync.Mutex // guards what follows; nothing waits while holding it
	reason    error      // gRPC status; set once, before ended is closed
	open      int        // RPCs that heed ended
	listeners map[*listener]struct{}
	conns     map[*conn]struct{}
	cached    *view

	rpcs, surplus, reflections int       // open RPCs: within limits, over them, and of reflection
	complained                 time.Time // when the log last said that a limit was reached
	held                       int       // how often one was since
}

func newEndpoint(w Workload, s *share, m *metrics, log *slog.Logger) *endpoint {
	s.connections.join()
	s.rpcs.join()
	return &endpoint{
		workload:  w,
		share:     s,
		budget:    newBudget(s.limits.Rate),
		metrics:   m,
		log:       log,
		ended:     make(chan struct{}),
		idle:      make(chan struct{}),
		listeners: make(map[*listener]struct{}),
		conns:     make(map[*conn]struct{}),
	}
}

// current returns the workload's present identity as a view, shared by all callers that see the same identity.
func (e *endpoint) current() *view {
	identity, superseded := e.workload.Identity()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.cached != nil && superseded != nil && e.cached.superseded == superseded {
		return e.cached
	}
	v := e.newView(identity, superseded)
	e.cached = v
	return v
}

// begin admits an RPC that watches ended. The caller must call finish if the error is nil.
func (e *endpoint) begin() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.reason != nil {
		return e.reason
	}
	e.open++
	return nil
}

func (e *endpoint) finish() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.open--
	if e.open == 0 && e.reason != nil {
		close(e.idle)
	}
}

// end closes the listeners and tells all streams to end with reason, a gRPC status; only the first reason counts. When it
// returns, no connection will be added any more. It reports whether RPCs were open.
func (e *endpoint) end(reason error) (busy bool) {
	e.mu.Lock()
	busy = e.open > 0
	if e.reason == nil {
		e.reason = reason
		e.cached = nil
		close(e.ended)
		e.share.connections.leave()
		e.share.rpcs.leave()
		if !busy {
			close(e.idle)
		}
	}
	listeners := make([]*listener, 0, len(e.listeners))
	for l := range e.listeners {
		listeners = append(listeners, l)
	}
	e.mu.Unlock()
	for _, l := range listeners {
		_ = l.Close()
		l.settle()
	}
	return busy
}

func (e *endpoint) hasEnded() bool {
	select {
	case <-e.ended:
		return true
	default:
		return false
	}
}

// detach ends the endpoint and returns once all its sockets are closed, for every caller.
func (e *endpoint) detach() {
	e.gone.Do(func() {
		if e.end(errDetached) {
			// Give the open RPCs time to return, and their status time to be written.
			_ = waitFor(context.Background(), e.idle, drainTimeout)
			time.Sleep(flushPause)
		}
		e.closeConnections()
	})
}

// closeConnections closes what is still open. Connections of an ended endpoint do not increase any more.
func (e *endpoint) closeConnections() {
	e.mu.Lock()
	conns := make([]*conn, 0, len(e.conns))
	for c := range e.conns {
		conns = append(conns, c)
	}
	e.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
	}
}

func (e *endpoint) addListener(lis net.Listener) *listener {
	l := &listener{Listener: lis, endpoint: e, closed: make(chan struct{})}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.listeners[l] = struct{}{}
	e.metrics.listeners.Inc()
	return l
}

func (e *endpoint) dropListener(l *listener) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, ok := e.listeners[l]; ok {
		delete(e.listeners, l)
		e.metrics.listeners.Dec()
	}
}

func (e *endpoint) release(c *conn) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, ok := e.conns[c]; ok {
		e.share.connections.give(len(e.conns))
		delete(e.conns, c)
		e.metrics.connections.Dec()
	}
}

// listener marks what it accepts as belonging to its endpoint.
type listener struct {
	net.Listener
	endpoint *endpoint
	unwatch  func() // takes it out of the acceptor; nil if it is not in there
	closing  sync.Once
	err      error         // of closing
	closed   chan struct{} // closed by Close

	accepting sync.Mutex // held from accept(2) until the connection is in the endpoint's hands; only settle waits for it
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) { return l.take(l.Listener.Accept) }

// take accepts one connection and puts it into the endpoint's hands.
func (l *listener) take(accept func() (net.Conn, error)) (net.Conn, error) {
	l.accepting.Lock()
	defer l.accepting.Unlock()
	raw, err := accept()
	if err != nil {
		return nil, err
	}
	c, err := l.endpoint.admit(raw)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Close closes the listener once, and takes it off its endpoint.
func (l *listener) Close() error {
	l.closing.Do(func() {
		if l.unwatch != nil {
			l.unwatch()
		}
		l.err = l.Listener.Close()
		l.endpoint.dropListener(l)
		close(l.closed)
	})
	return l.err
}

// settle waits, after Close, for an Accept that is under way. A connection that it has taken from the kernel but not yet
// handed over would otherwise keep the socket's file system busy unseen.
func (l *listener) settle() {
	l.accepting.Lock()
	defer l.accepting.Unlock()
}

// conn is a connection that knows its endpoint.
type conn struct {
	net.Conn
	endpoint *endpoint
	closing  sync.Once
	err      error         // of closing
	closed   chan struct{} // closed by Close, first of all
	mortal   sync.Once     // the end of its life is set
}

// Close returns once the descriptor is closed, to every caller: the transport and the endpoint may both close. An accepted
// Unix connection keeps the file system of its listener busy, so whoever unmounts that needs to know.
func (c *conn) Close() error {
	c.closing.Do(func() {
		close(c.closed)
		c.err = c.Conn.Close()
		c.endpoint.release(c)
	})
	return c.err
}

// authInfo carries the endpoint of a connection to the handlers of its RPCs.
type authInfo struct {
	credentials.CommonAuthInfo
	endpoint *endpoint
	conn     *conn
}

// AuthType implements credentials.AuthInfo.
func (authInfo) AuthType() string { return "workload-socket" }

// listenerCredentials are transport credentials that take the identity of the peer from the listener that accepted it.
// There is no TLS on a workload endpoint (Workload Endpoint §3.1).
type listenerCredentials struct{}

// ServerHandshake implements credentials.TransportCredentials. It does no I/O.
func (listenerCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, ok := raw.(*conn)
	if !ok {
		return nil, nil, errors.New("connection was not accepted by a workload's listener")
	}
	info := authInfo{
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
		endpoint:       c.endpoint,
		conn:           c,
	}
	return c, info, nil
}

// ClientHandshake implements credentials.TransportCredentials; there is no client side.
func (listenerCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("workload socket credentials are for servers only")
}

// Info implements credentials.TransportCredentials.
func (listenerCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "workload-socket"}
}

// Clone implements credentials.TransportCredentials.
func (c listenerCredentials) Clone() credentials.TransportCredentials { return c }

// OverrideServerName implements credentials.TransportCredentials.
func (listenerCredentials) OverrideServerName(string) error { return nil }

// endpointOf returns the endpoint whose listener accepted the connection of the RPC.
func endpointOf(ctx context.Context) (*endpoint, error) {
	info, err := connectionOf(ctx)
	return info.endpoint, err
}

func connectionOf(ctx context.Context) (authInfo, error) {
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(authInfo); ok {
			return info, nil
		}
	}
	return authInfo{}, status.Error(codes.Internal, "connection belongs to no workload")
}
