// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"context"
	"errors"
	"net"
	"os"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"
	"google.golang.org/protobuf/proto"
)

// share is what all endpoints of a server share.
type share struct {
	limits      Limits
	connections pool
	rpcs        pool
}

func newShare(l Limits) *share {
	l = l.withDefaults()
	if n := descriptors() / 2; n > 0 {
		l.AllConnections = min(l.AllConnections, n)
	}
	return &share{
		limits:      l,
		connections: pool{limit: l.AllConnections, reserved: reservedConnections},
		rpcs:        pool{limit: l.AllRPCs, reserved: reservedRPCs},
	}
}

// complainEvery is how often an endpoint may say in the log that it is at a limit.
const complainEvery = time.Minute

// reached counts that w's socket is at a limit, and says so in the log now and then.
func (e *endpoint) reached(l limit) {
	e.metrics.limited[l].Inc()
	e.mu.Lock()
	now := time.Now()
	e.held++
	silent := !e.complained.IsZero() && now.Sub(e.complained) < complainEvery
	held := e.held
	if !silent {
		e.complained, e.held = now, 0
	}
	e.mu.Unlock()
	if silent {
		return
	}
	e.log.Warn("a workload is at a limit of its workload api socket", "limit", string(l), "times", held, workloadAttr(e.workload))
}

// admit takes a fresh connection over, or refuses it: net.ErrClosed when the endpoint has ended, errCrowded over a limit.
func (e *endpoint) admit(raw net.Conn) (*conn, error) {
	c := &conn{Conn: raw, endpoint: e, closed: make(chan struct{})}
	refused := limit("")
	e.mu.Lock()
	ended := e.reason != nil
	switch {
	case ended:
	case len(e.conns) >= e.share.limits.Connections:
		refused = limitConnections
	case !e.share.connections.take(len(e.conns)):
		refused = limitAllConnections
	default:
		e.conns[c] = struct{}{}
	}
	e.mu.Unlock()
	switch {
	case ended:
		_ = raw.Close()
		return nil, net.ErrClosed
	case refused != "":
		_ = raw.Close()
		e.reached(refused)
		return nil, errCrowded
	}
	e.metrics.connections.Inc()
	e.metrics.accepted.Inc()
	return c, nil
}

// slow charges a connection, and calls pause when the socket is to accept no more for some time.
func (e *endpoint) slow(pause func(time.Duration)) {
	if wait, _ := e.budget.spend(costConnection); wait > 0 {
		e.reached(limitRate)
		pause(wait)
	}
}

// errCrowded says that a connection was accepted and closed at once.
var errCrowded = errors.New("too many connections")

// hold waits as long as the socket is over its rate, but no longer than until the connection is closed.
func (c *conn) hold() (scarce bool) {
	wait, scarce := c.endpoint.budget.spend(0)
	if wait == 0 {
		return scarce
	}
	c.endpoint.reached(limitRate)
	t := time.NewTimer(wait)
	defer t.Stop()
	for wait > 0 {
		select {
		case <-c.closed:
			return true
		case <-t.C:
		}
		wait, _ = c.endpoint.budget.spend(0)
		t.Reset(wait)
	}
	return true
}

// Read implements net.Conn. Every kind of flood comes through here, so this is where it is slowed down: the client finds its
// own buffers full.
func (c *conn) Read(p []byte) (int, error) {
	if c.hold() {
		p = p[:min(len(p), carefulRead)]
	}
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.endpoint.budget.spend(float64(n) * costByte)
	}
	return n, err
}

// Write implements net.Conn. A client that leaves its buffer full for too long loses the connection.
func (c *conn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.endpoint.share.limits.Unread)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(p)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.endpoint.reached(limitUnread)
		_ = c.Close() // gRPC leaves that to its reader, which waits for the client
	}
	return n, err
}

// refusal is the key of a limit that an RPC has met, in its context.
type refusal struct{}

// tap sees every RPC before anything is done for it, and counts it until gRPC has done with it. It refuses none itself: gRPC
// keeps the context of an RPC that is refused here, with its headers, for as long as the time-out that the client has chosen.
func (s *Server) tap(ctx context.Context, _ *tap.Info) (context.Context, error) {
	info, err := connectionOf(ctx)
	if err != nil {
		return ctx, nil // the handler says so
	}
	e := info.endpoint
	e.budget.spend(costRPC)
	over, crowd := e.enter()
	context.AfterFunc(ctx, func() { e.exit(over) })
	if crowd {
		// They pile up before any handler could refuse them: their requests do not come.
		e.reached(limitUnfinished)
		_ = info.conn.Close()
	}
	if over == "" {
		return ctx, nil
	}
	return context.WithValue(ctx, refusal{}, over), nil
}

// enter counts an RPC. It is over the limit named, if any; crowd says that so many are that nobody refuses them.
func (e *endpoint) enter() (over limit, crowd bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.rpcs >= e.share.limits.RPCs:
		over = limitRPCs
	case !e.share.rpcs.take(e.rpcs):
		over = limitAllRPCs
	default:
		e.rpcs++
		return "", false
	}
	e.surplus++
	return over, e.surplus > e.share.limits.RPCsPerConnection
}

func (e *endpoint) exit(over limit) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if over != "" {
		e.surplus--
		return
	}
	e.share.rpcs.give(e.rpcs)
	e.rpcs--
}

// checkLimits returns what an RPC over a limit ends with.
func checkLimits(ctx context.Context) error {
	over, ok := ctx.Value(refusal{}).(limit)
	if !ok {
		return nil
	}
	ep, err := endpointOf(ctx)
	if err != nil {
		return err
	}
	ep.reached(over)
	if over == limitAllRPCs {
		return status.Error(codes.Unavailable, "too many open streams on this node; try again later")
	}
	return status.Error(codes.Unavailable, "too many open streams on this workload's socket ("+strconv.Itoa(ep.share.limits.RPCs)+"); close some")
}

// pricedStream charges what the client sends on a stream to its socket.
type pricedStream struct {
	grpc.ServerStream
	endpoint *endpoint
}

// RecvMsg implements grpc.ServerStream.
func (s pricedStream) RecvMsg(m any) error {
	err := s.ServerStream.RecvMsg(m)
	s.endpoint.budget.spend(costMessage)
	return err
}

// isReflection reports whether a method is server reflection's. Its answers are large, and made anew for every request.
func isReflection(method string) bool {
	return method == "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo" ||
		method == "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
}

// reflect admits a reflection stream, and returns what ends the admission.
func (e *endpoint) reflect(ctx context.Context) (end func(), err error) {
	info, err := connectionOf(ctx)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	crowded := e.reflections >= maxReflections
	if !crowded {
		e.reflections++
	}
	e.mu.Unlock()
	if crowded {
		e.reached(limitReflection)
		return nil, status.Errorf(codes.Unavailable, "more than %d reflection streams on this workload's socket", maxReflections)
	}
	info.conn.mortal.Do(func() {
		time.AfterFunc(reflectionLife, func() { _ = info.conn.Close() })
	})
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.reflections--
	}, nil
}

// reflectedStream bounds and charges what reflection is asked for.
type reflectedStream struct{ pricedStream }

// RecvMsg implements grpc.ServerStream.
func (s reflectedStream) RecvMsg(m any) error {
	if err := s.pricedStream.RecvMsg(m); err != nil {
		return err
	}
	if r, ok := m.(proto.Message); ok && proto.Size(r) > maxReflectionRequest {
		return status.Errorf(codes.InvalidArgument, "reflection request is longer than %d bytes", maxReflectionRequest)
	}
	return nil
}

// SendMsg implements grpc.ServerStream.
func (s reflectedStream) SendMsg(m any) error {
	if r, ok := m.(proto.Message); ok {
		s.endpoint.budget.spend(float64(proto.Size(r)) * costReflected)
	}
	return s.ServerStream.SendMsg(m)
}
