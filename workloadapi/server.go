// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"reflect"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
)

// Limits and sizes of the gRPC server. A node holds some thousands of connections that are silent nearly always, so every
// per-connection buffer is paid for by the node and used by nobody.
const (
	// readBufferBytes holds the frames of one request: settings, headers, a small message.
	readBufferBytes = 2 << 10
	// writeBufferBytes is one flush; gRPC takes it from a pool and gives it back.
	writeBufferBytes = 8 << 10
	// windowBytes is what a client may send ahead. Requests are tiny; the smallest window HTTP/2 starts with is enough, and a
	// fixed one saves the bandwidth estimation and its pings.
	windowBytes = 64<<10 - 1
	// maxRequestBytes bounds a request message. The largest legitimate one is a JWT-SVID to validate.
	maxRequestBytes = 128 << 10
	// maxHeaderBytes bounds the request metadata of one stream, which is kept as long as the stream. Instrumented clients add
	// traces and baggage to the few dozen bytes of a Workload API request.
	maxHeaderBytes = 8 << 10
	// handshakeTimeout bounds how long a connection may stay without an HTTP/2 preface.
	handshakeTimeout = 20 * time.Second
	// minPingInterval is how often a client may ping; generous, since a client that is turned away for pinging reconnects.
	minPingInterval = 5 * time.Second
)

// How long the end may take.
const (
	// drainTimeout bounds the wait for handlers and clients when a workload or the server ends.
	drainTimeout = time.Second
	// flushPause lets the transport write the final status of streams whose handlers have returned. gRPC offers no event
	// for it. It is only paid when streams were open.
	flushPause = 100 * time.Millisecond
)

// ErrStopped is returned for a listener that arrives after Shutdown.
var ErrStopped = errors.New("workload api server is shut down")

var (
	errDetached = status.Error(codes.PermissionDenied, "no identity issued: the workload has been removed from this node")
	errShutdown = status.Error(codes.Unavailable, "workload api is shutting down")
)

// Options configure a Server. The zero value works.
type Options struct {
	// Log receives what operators should know; nil discards. A Workload that implements slog.LogValuer is named in it.
	Log *slog.Logger
	// Registerer receives the server's metrics; nil keeps them to itself. Two servers cannot share a registerer.
	Registerer prometheus.Registerer
	// SDS configures Envoy's secret discovery service.
	SDS SDSOptions
	// Limits bound what the holders of one socket can have of the server.
	Limits Limits
	// JWT issues JWT-SVIDs; nil disables the JWT profile (Workload API §3 lets an operator do so).
	JWT JWTSource
}

// Server serves the Workload API on any number of listeners. All methods are safe for concurrent use.
type Server struct {
	log     *slog.Logger
	metrics *metrics
	share   *share
	grpc    *grpc.Server
	front   *front

	accepting sync.WaitGroup // goroutines that accept

	mu        sync.Mutex // guards what follows; held for map operations only
	endpoints map[Workload]*endpoint
	acceptor  *acceptor // nil until there is something to accept on
	stopped   bool
}

// NewServer returns a server without listeners. It panics when Options.Registerer already holds metrics of the same names,
// which is a mistake in the program and not in its input.
func NewServer(o Options) *Server {
	s := &Server{log: o.Log, share: newShare(o.Limits), front: newFront(), endpoints: make(map[Workload]*endpoint)}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.grpc = grpc.NewServer(
		grpc.Creds(listenerCredentials{}),
		grpc.ForceServerCodecV2(newCodec()),
		grpc.UnaryInterceptor(s.interceptUnary),
		grpc.StreamInterceptor(s.interceptStream),
		grpc.ReadBufferSize(readBufferBytes),
		grpc.WriteBufferSize(writeBufferBytes),
		grpc.StaticStreamWindowSize(windowBytes),
		grpc.StaticConnWindowSize(windowBytes),
		grpc.MaxRecvMsgSize(maxRequestBytes),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.MaxConcurrentStreams(uint32(s.share.limits.RPCsPerConnection)),
		grpc.InTapHandle(s.tap),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: s.share.limits.Idle}),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minPingInterval, PermitWithoutStream: true}),
	)
	workload.RegisterSpiffeWorkloadAPIServer(s.grpc, handler{jwt: o.JWT})
	healthpb.RegisterHealthServer(s.grpc, healthHandler{})
	registerSDS(s.grpc, o.SDS, o.Registerer)
	reflection.Register(s.grpc)
	s.metrics = newMetrics(o.Registerer, s.grpc.GetServiceInfo())
	return s
}

// Serve serves w on lis and blocks until the listener ends. It takes the listener over: nobody else may close it. It returns
// nil after Detach(w) or Shutdown, ErrStopped when Shutdown came first, and otherwise the error of the listener.
//
// A workload may be served on several listeners. Connections outlive the listener that accepted them; Detach ends them.
//
// A caller that starts Serve in a goroutine cannot know whether a Detach that follows comes before or after it; Start has
// no such race.
func (s *Server) Serve(lis net.Listener, w Workload) error {
	failed := make(chan error, 1)
	l, err := s.attach(lis, w, func(err error) { failed <- err })
	if err != nil {
		return err
	}
	select {
	case err := <-failed:
		return err
	case <-l.closed:
	}
	select {
	case err := <-failed: // which is what closed it
		return err
	default:
		return nil
	}
}

// Start is Serve in the background: when it returns nil, w is attached, its socket is answered, and a Detach(w) after it
// ends it. A listener that fails later is logged. On error lis is closed. A socket that nobody connects to costs no
// goroutine.
func (s *Server) Start(lis net.Listener, w Workload) error {
	_, err := s.attach(lis, w, func(err error) {
		s.log.Error("workload api listener failed", "error", err, workloadAttr(w))
	})
	return err
}

// Detach ends the service for w: its listeners and streams at once (PermissionDenied), its connections as soon as the
// streams' last words are written. Other workloads do not notice. When it returns, every socket of w is closed, so the file
// system that holds them can be unmounted; a client that does not read delays that by a second at most. Without open
// streams it does not wait at all. A workload that is not attached is no error.
func (s *Server) Detach(w Workload) {
	if !canBeKey(w) {
		return // never attached
	}
	s.mu.Lock()
	ep := s.endpoints[w]
	s.mu.Unlock()
	if ep == nil {
		return
	}
	ep.detach()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.endpoints[w] == ep { // else w has been attached again
		delete(s.endpoints, w)
	}
}

// Shutdown ends all listeners, streams (Unavailable) and connections, and refuses new ones. Clients that do not let go are
// cut off after a second, or when ctx ends, in which case its error is returned. It returns after the last handler has.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.stopped = true
	endpoints := make([]*endpoint, 0, len(s.endpoints))
	for _, ep := range s.endpoints {
		endpoints = append(endpoints, ep)
	}
	s.mu.Unlock()

	graceful := make(chan struct{})
	go func() {
		defer close(graceful)
		s.grpc.GracefulStop()
	}()
	// Connections are told before their streams end: a client would open its next stream on the same connection, and be turned
	// away again and again until it hears of the end. gRPC tells them right after it has closed its listener.
	select {
	case <-s.front.closed:
	case <-graceful: // It never served.
	}
	for _, ep := range endpoints {
		ep.end(errShutdown)
	}
	err := waitFor(ctx, graceful, drainTimeout)
	// Connections first: Stop waits for handshakes, and a silent client's would only end with its time-out.
	for _, ep := range endpoints {
		ep.closeConnections()
	}
	s.grpc.Stop()
	<-graceful
	s.mu.Lock()
	if s.acceptor != nil {
		s.acceptor.close()
	}
	s.mu.Unlock()
	_ = s.front.Close() // gRPC has, unless it never served
	s.accepting.Wait()
	if err != nil {
		return fmt.Errorf("shut down workload api: %w", err)
	}
	return nil
}

// waitFor waits until done is closed, but no longer than limit or ctx. Only ctx ending is an error.
func waitFor(ctx context.Context, done <-chan struct{}, limit time.Duration) error {
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-done:
		return nil
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// attach adds lis to the endpoint of w and has it accepted on. It closes lis on error. failed is called at most once, before
// the listener is closed for that reason.
func (s *Server) attach(lis net.Listener, w Workload, failed func(error)) (*listener, error) {
	if !canBeKey(w) {
		_ = lis.Close()
		return nil, fmt.Errorf("serve workload api on %s: workload of type %T is nil or not comparable", lis.Addr(), w)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		_ = lis.Close()
		return nil, ErrStopped
	}
	if err := s.begin(); err != nil {
		_ = lis.Close()
		return nil, fmt.Errorf("serve workload api: %w", err)
	}
	ep := s.endpoints[w]
	if ep == nil || ep.hasEnded() {
		ep = newEndpoint(w, s.share, s.metrics, s.log)
		s.endpoints[w] = ep
	}
	l := ep.addListener(lis)
	if err := s.accept(l, failed); err != nil {
		_ = l.Close()
		return nil, err
	}
	return l, nil
}

// begin starts what accepts for all workloads. The caller holds mu.
func (s *Server) begin() error {
	if s.acceptor != nil {
		return nil
	}
	a, err := newAcceptor(s.front)
	if err != nil {
		return err
	}
	s.acceptor = a
	s.accepting.Go(a.run)
	s.accepting.Go(func() { _ = s.grpc.Serve(s.front) }) // ends with the front, at Shutdown
	return nil
}

// accept has l accepted on. The caller holds mu.
func (s *Server) accept(l *listener, failed func(error)) error {
	fail := func(err error) {
		if !l.endpoint.hasEnded() {
			failed(fmt.Errorf("accept on workload socket %s: %w", l.Addr(), err))
		}
		_ = l.Close()
	}
	watched, err := s.acceptor.watch(l, fail)
	if watched || err != nil {
		return err
	}
	s.accepting.Go(func() { fail(acceptAll(l, s.front)) })
	return nil
}

// canBeKey reports whether w can be a map key without a panic.
func canBeKey(w Workload) bool {
	return w != nil && reflect.ValueOf(w).Comparable()
}

// workloadAttr names a workload that says how it wants to be logged. Others are not printed: what they hold is unknown.
func workloadAttr(w Workload) slog.Attr {
	if v, ok := w.(slog.LogValuer); ok {
		return slog.Any("workload", v)
	}
	return slog.Attr{}
}
