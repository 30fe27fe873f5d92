// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"strings"
	"time"

	debugv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/debug/v1"
	loggerv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/logger/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	"github.com/signet-spiffe/signet/agent/workload"
	"github.com/signet-spiffe/signet/internal/observe"
	agentv1 "github.com/signet-spiffe/signet/proto/signet/agent/v1"
)

// Workloads is what the socket shows and renews (workload.Registry).
type Workloads interface {
	List() []workload.Standing
	Watch() *workload.Watcher
	Renew(ctx context.Context, volumeID string) (workload.Renewal, error)
}

// About tells which agent this is, in the words of signet.agent.v1's
// GetVersionResponse.
type About struct {
	Version, Node, Driver, TrustDomain string
	Started                            time.Time
}

// Options are what a Server is made of. All are needed, unless they say otherwise.
type Options struct {
	// Path of the socket; see CheckPath. Its directory is made.
	Path      string
	About     About
	Workloads Workloads
	// Level is the agent's own log level.
	Level *observe.Level
	// Heard, if not nil, is when the agent last heard from the API server; zero for
	// never.
	Heard func() time.Time
	// Services are further services to be served on the socket.
	Services []Service
	// EveryUser opens the socket to every user of the node who can see it, so that
	// Services can allow users who are not the administrator. By the kernel's word for
	// who they are, others are turned away when they connect, and those are refused
	// everything else.
	EveryUser bool
	Log       *slog.Logger
}

// Service is a further gRPC service.
type Service struct {
	// Register registers it. Its methods may return errors of any kind; those without a
	// gRPC status get one by the rules of this package.
	Register func(grpc.ServiceRegistrar)
	// Allow says why a peer may not call it; nil allows root and the agent's own user,
	// as everything else on the socket does. Others cannot connect without
	// Options.EveryUser.
	Allow func(Peer) error
}

// Server is the admin socket.
type Server struct {
	listener net.Listener
	grpc     *grpc.Server
	log      *slog.Logger
	allow    map[string]func(Peer) error // By service; what is not here is for administrators.

	// life ends when Run does, with errStopping as cause; calls run under it.
	life context.Context
	end  context.CancelCauseFunc
}

const (
	// maxRequest is plenty for a few names, in bytes.
	maxRequest = 64 << 10
	// handshakeTimeout ends connections that say nothing.
	handshakeTimeout = 10 * time.Second
	// maxStreams bounds the calls at the same time on one connection.
	maxStreams = 100
	// stopGrace is how long calls may take to end when the agent stops.
	stopGrace = time.Second
)

// NewServer opens the socket and serves nothing yet.
func NewServer(o Options) (*Server, error) {
	who := ownerOnly
	if o.EveryUser {
		who = everyUser
	}
	l, err := listen(o.Path, who)
	if err != nil {
		return nil, err
	}
	return newServer(o, l), nil
}

func newServer(o Options, l net.Listener) *Server {
	s := &Server{listener: l, log: o.Log, allow: map[string]func(Peer) error{}}
	s.life, s.end = context.WithCancelCause(context.Background())
	s.grpc = grpc.NewServer(
		grpc.Creds(peerCredentials{welcome: o.welcome()}), grpc.MaxRecvMsgSize(maxRequest), grpc.MaxConcurrentStreams(maxStreams), grpc.ConnectionTimeout(handshakeTimeout),
		grpc.UnaryInterceptor(s.unary), grpc.StreamInterceptor(s.stream),
	)
	agentv1.RegisterAgentServiceServer(s.grpc, &agentService{about: o.About, workloads: o.Workloads})
	debugv1.RegisterDebugServer(s.grpc, &debugService{started: o.About.Started, workloads: o.Workloads, heard: o.Heard})
	loggerv1.RegisterLoggerServer(s.grpc, &loggerService{level: o.Level, log: o.Log})
	for _, further := range o.Services {
		further.Register(registrar{s, further.Allow})
	}
	grpc_health_v1.RegisterHealthServer(s.grpc, health.NewServer())
	reflection.Register(s.grpc)
	return s
}

// welcome turns away who may call nothing, where every user gets to the socket.
func (o Options) welcome() func(Peer) error {
	if !o.EveryUser {
		return nil
	}
	return func(p Peer) error {
		refused := administrator(p)
		for _, further := range o.Services {
			if further.Allow != nil && further.Allow(p) == nil {
				return nil
			}
		}
		return refused
	}
}

// registrar notes who may call what is registered through it.
type registrar struct {
	server *Server
	allow  func(Peer) error
}

// RegisterService implements grpc.ServiceRegistrar.
func (r registrar) RegisterService(desc *grpc.ServiceDesc, implementation any) {
	if r.allow != nil {
		r.server.allow[desc.ServiceName] = r.allow
	}
	r.server.grpc.RegisterService(desc, implementation)
}

// Run serves until ctx ends. Call it once.
func (s *Server) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, s.stop)
	defer stop()
	s.log.Info("serving the administrator", "socket", s.listener.Addr().String())
	if err := s.grpc.Serve(s.listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve the admin socket: %w", err)
	}
	return nil
}

// stop tells calls and waits for them a moment.
func (s *Server) stop() {
	s.end(errStopping)
	force := time.AfterFunc(stopGrace, s.grpc.Stop)
	defer force.Stop()
	s.grpc.GracefulStop()
}

// begin is what every call goes through: who is it, may he, and a life that ends with
// the agent's.
func (s *Server) begin(ctx context.Context, method string) (context.Context, context.CancelFunc, *call, error) {
	p, ok := PeerFrom(ctx)
	c := &call{log: s.log.With("method", method, "peer", p), start: time.Now()}
	allow := s.allow[service(method)]
	if allow == nil {
		allow = administrator
	}
	err := errRefused // Never without knowing who it is.
	if ok {
		err = allow(p)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	unhook := context.AfterFunc(s.life, func() { cancel(context.Cause(s.life)) })
	return ctx, func() { unhook(); cancel(nil) }, c, err
}

// service is the name in "/service/method".
func service(method string) string {
	name, _, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
	return name
}

// call is one call, for the log.
type call struct {
	log   *slog.Logger
	start time.Time
}

func (c *call) ended(err error) {
	attributes := []any{"code", status.Code(err).String(), "took", time.Since(c.start)}
	if err != nil {
		attributes = append(attributes, "error", status.Convert(err).Message())
	}
	c.log.Info("admin call", attributes...)
}

func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (resp any, err error) {
	ctx, cancel, c, err := s.begin(ctx, info.FullMethod)
	defer cancel()
	defer func() { err = c.settle(recover(), err) }()
	if err != nil {
		return nil, err
	}
	return handle(ctx, req)
}

func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
	ctx, cancel, c, err := s.begin(ss.Context(), info.FullMethod)
	defer cancel()
	defer func() { err = c.settle(recover(), err) }()
	if err != nil {
		return err
	}
	c.log.Info("admin stream begins")
	return handle(srv, &stream{ss, ctx})
}

// settle gives the call's error its status and logs it. A call that panicked has an
// error and no other consequence.
func (c *call) settle(panicked any, err error) error {
	if panicked != nil {
		c.log.Error("admin call panicked", "panic", panicked, "stack", string(debug.Stack()))
		err = status.Error(codes.Internal, "the agent has made a mistake; its log says more")
	}
	err = statusOf(err)
	c.ended(err)
	return err
}

// stream is a ServerStream with another context.
type stream struct {
	grpc.ServerStream
	ctx context.Context
}

// Context implements grpc.ServerStream.
func (s *stream) Context() context.Context { return s.ctx }
