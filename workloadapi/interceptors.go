// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// securityHeader must be "true", in exactly this spelling, on every Workload API request (Workload Endpoint §3).
const securityHeader = "workload.spiffe.io"

var errNoHeader = status.Error(codes.InvalidArgument, "security header missing from request")

// guarded is implemented by services that need the security header. The service itself decides, not the path it was called
// by. Health, reflection and Envoy's SDS are called by clients that do not know the header.
type guarded interface{ guardedByHeader() }

func checkHeader(ctx context.Context, service any) error {
	if _, ok := service.(guarded); !ok {
		return nil
	}
	if v := metadata.ValueFromIncomingContext(ctx, securityHeader); len(v) != 1 || v[0] != "true" {
		return errNoHeader
	}
	return nil
}

func (s *Server) interceptUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	finished := s.metrics.begin(info.FullMethod)
	err := checkLimits(ctx)
	if err == nil {
		err = checkHeader(ctx, info.Server)
	}
	if err != nil {
		finished(err)
		return nil, err
	}
	resp, err := next(ctx, req)
	finished(err)
	return resp, err
}

// interceptStream runs before the request is read, so a caller without the header holds nothing.
func (s *Server) interceptStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	finished := s.metrics.begin(info.FullMethod)
	err := s.serveStream(srv, stream, info, next)
	finished(err)
	return err
}

func (s *Server) serveStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if err := checkLimits(stream.Context()); err != nil {
		return err
	}
	if err := checkHeader(stream.Context(), srv); err != nil {
		return err
	}
	ep, err := endpointOf(stream.Context())
	if err != nil {
		return err
	}
	sent := s.metrics.messages[info.FullMethod]
	if !isReflection(info.FullMethod) {
		return next(srv, countedStream{pricedStream{stream, ep}, sent})
	}
	end, err := ep.reflect(stream.Context())
	if err != nil {
		return err
	}
	defer end()
	return next(srv, countedStream{reflectedStream{pricedStream{stream, ep}}, sent})
}

// countedStream counts the messages it sends.
type countedStream struct {
	grpc.ServerStream
	sent prometheus.Counter
}

// SendMsg implements grpc.ServerStream.
func (s countedStream) SendMsg(m any) error {
	err := s.ServerStream.SendMsg(m)
	if err == nil {
		s.sent.Inc()
	}
	return err
}
