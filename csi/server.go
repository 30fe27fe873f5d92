// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// stopGrace is how long a stopping server waits for calls in flight. Kubelet repeats what is cut off.
	stopGrace = 5 * time.Second
	// endpointMode keeps everybody but root (kubelet) away: who can call this socket can mount.
	endpointMode = 0o600
	// maxSocketPath is what fits in sun_path, for kubelet to connect.
	maxSocketPath = 107
)

// ServerOptions configure the CSI server.
type ServerOptions struct {
	// Endpoint is unix:///path; unix://path means the same, as csi-driver-spiffe has it.
	Endpoint string
	// DriverName is the CSI driver's name, as in the CSIDriver object.
	DriverName string
	// Version is the program's version, not empty.
	Version string
	// NodeID is the node's name.
	NodeID string
	// Workloads is the agent.
	Workloads Workloads
	// Store holds the volumes.
	Store *Store
	// Ready answers Probe; nil means always ready.
	Ready func() error
	// Log takes what happens; nil discards. Requests are never logged, since they carry tokens: only the
	// method, the volume, the pod and the result are.
	Log *slog.Logger
}

// Server is the CSI identity and node server of one driver.
type Server struct {
	path string
	grpc *grpc.Server
	log  *slog.Logger
}

// NewServer checks the options and makes a server that does not listen yet.
func NewServer(o ServerOptions) (*Server, error) {
	path, err := ParseEndpoint(o.Endpoint)
	if err != nil {
		return nil, err
	}
	switch {
	case !driverNamePattern.MatchString(o.DriverName):
		return nil, fmt.Errorf("%w: CSI driver name %q must be at most 63 letters, digits, '-' and '.'", ErrInvalid, o.DriverName)
	case o.Version == "":
		return nil, fmt.Errorf("%w: version is empty", ErrInvalid)
	case o.NodeID == "" || len(o.NodeID) > 256:
		return nil, fmt.Errorf("%w: node ID must have 1 to 256 bytes", ErrInvalid)
	case o.Workloads == nil || o.Store == nil:
		return nil, fmt.Errorf("%w: CSI server needs workloads and a store", ErrInvalid)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Ready == nil {
		o.Ready = func() error { return nil }
	}
	s := &Server{path: path, log: o.Log}
	s.grpc = grpc.NewServer(grpc.ChainUnaryInterceptor(s.intercept))
	csipb.RegisterIdentityServer(s.grpc, &identity{driverName: o.DriverName, version: o.Version, ready: o.Ready, log: o.Log})
	csipb.RegisterNodeServer(s.grpc, &node{
		nodeID:    o.NodeID,
		validate:  validator{driverName: o.DriverName, storeRoot: o.Store.root},
		workloads: o.Workloads,
		store:     o.Store,
		log:       o.Log,
	})
	return s, nil
}

// ParseEndpoint returns the path of a CSI endpoint. Only Unix sockets are possible: whoever can call the
// server can mount on the node.
func ParseEndpoint(endpoint string) (string, error) {
	rest, ok := strings.CutPrefix(endpoint, "unix://")
	if !ok || strings.Trim(rest, "/") == "" {
		return "", fmt.Errorf("%w: endpoint %q must be a Unix socket, as in unix:///var/lib/kubelet/plugins/<driver>/csi.sock", ErrInvalid, endpoint)
	}
	path := filepath.Clean("/" + rest)
	if len(path) > maxSocketPath {
		return "", fmt.Errorf("%w: endpoint %q is too long for a socket: %d bytes, at most %d", ErrInvalid, endpoint, len(path), maxSocketPath)
	}
	return path, nil
}

// Run listens on the endpoint, replacing a socket that is there, and serves until ctx ends; calls in flight
// then have a few seconds to finish. The error is nil when ctx ended it.
func (s *Server) Run(ctx context.Context) error {
	l, _, remove, err := listenPath(s.path, endpointMode)
	if err != nil {
		return fmt.Errorf("serve CSI: %w", err)
	}
	s.log.Info("CSI server listens", "endpoint", "unix://"+s.path)
	return errors.Join(serve(ctx, s.grpc, l), remove())
}

// serve serves until ctx ends, then stops gracefully, then forcibly.
func serve(ctx context.Context, server *grpc.Server, l net.Listener) error {
	stopped := make(chan struct{})
	unhook := context.AfterFunc(ctx, func() {
		defer close(stopped)
		force := time.AfterFunc(stopGrace, server.Stop)
		defer force.Stop()
		server.GracefulStop()
	})
	err := server.Serve(l)
	if !unhook() {
		<-stopped
		return nil
	}
	return fmt.Errorf("serve on %s: %w", l.Addr(), err)
}

// intercept is around every call: it turns errors into statuses and panics into errors, and it logs.
func (s *Server) intercept(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (response any, err error) {
	begin := time.Now()
	defer func() {
		if p := recover(); p != nil {
			// The stack, not the value: a value may hold part of a request.
			s.log.Error("panic in CSI call", "method", info.FullMethod, "stack", string(debug.Stack()))
			response, err = nil, status.Error(codes.Internal, "internal error; see the agent's log")
		}
		s.logCall(ctx, info.FullMethod, request, time.Since(begin), err)
	}()
	response, err = handler(ctx, request)
	if err != nil {
		return nil, toStatus(err)
	}
	return response, nil
}

func (s *Server) logCall(ctx context.Context, method string, request any, took time.Duration, err error) {
	attrs := append(callAttrs(request), slog.String("method", filepath.Base(method)), slog.Duration("took", took))
	level, message := slog.LevelDebug, "CSI call"
	if err != nil {
		level, message = slog.LevelWarn, "CSI call failed"
		attrs = append(attrs, slog.String("code", status.Code(err).String()), slog.String("error", status.Convert(err).Message()))
	}
	s.log.LogAttrs(ctx, level, message, attrs...)
}

// callAttrs is the part of a request that may be logged: a positive list, so that whatever CSI adds stays
// out of the log.
func callAttrs(request any) []slog.Attr {
	switch r := request.(type) {
	case *csipb.NodePublishVolumeRequest:
		attributes := r.GetVolumeContext()
		return []slog.Attr{
			slog.String("volume", r.GetVolumeId()),
			slog.String("target", r.GetTargetPath()),
			slog.String("namespace", attributes[keyPodNamespace]),
			slog.String("pod", attributes[keyPodName]),
			slog.String("uid", attributes[keyPodUID]),
		}
	case *csipb.NodeUnpublishVolumeRequest:
		return []slog.Attr{slog.String("volume", r.GetVolumeId()), slog.String("target", r.GetTargetPath())}
	default:
		return nil
	}
}
