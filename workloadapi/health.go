// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"context"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// healthHandler implements grpc.health.v1 for the workload whose socket is asked. Healthy means that a Workload API call
// would be answered at once: with an SVID, or with a definite "no identity issued". While the SVID is pending it is not.
type healthHandler struct {
	healthpb.UnimplementedHealthServer
}

// healthServices are the names that can be asked for; "" is the whole endpoint. Both have the same answer.
var healthServices = map[string]bool{"": true, workload.SpiffeWorkloadAPI_ServiceDesc.ServiceName: true}

func (v *view) health() healthpb.HealthCheckResponse_ServingStatus {
	if s := v.identity.Status; s == Entitled || s == NotEntitled {
		return healthpb.HealthCheckResponse_SERVING
	}
	return healthpb.HealthCheckResponse_NOT_SERVING
}

// Check implements grpc.health.v1.
func (healthHandler) Check(ctx context.Context, r *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	ep, err := endpointOf(ctx)
	if err != nil {
		return nil, err
	}
	if !healthServices[r.GetService()] {
		return nil, status.Errorf(codes.NotFound, "unknown service %q", clip(r.GetService()))
	}
	return &healthpb.HealthCheckResponse{Status: ep.current().health()}, nil
}

// List implements grpc.health.v1.
func (healthHandler) List(ctx context.Context, _ *healthpb.HealthListRequest) (*healthpb.HealthListResponse, error) {
	ep, err := endpointOf(ctx)
	if err != nil {
		return nil, err
	}
	s := ep.current().health()
	r := &healthpb.HealthListResponse{Statuses: make(map[string]*healthpb.HealthCheckResponse, len(healthServices))}
	for name := range healthServices {
		r.Statuses[name] = &healthpb.HealthCheckResponse{Status: s}
	}
	return r, nil
}

// Watch implements grpc.health.v1: the state now and after every change.
func (healthHandler) Watch(r *healthpb.HealthCheckRequest, stream grpc.ServerStreamingServer[healthpb.HealthCheckResponse]) error {
	ctx := stream.Context()
	ep, err := endpointOf(ctx)
	if err != nil {
		return err
	}
	if err := ep.begin(); err != nil {
		return err
	}
	defer ep.finish()

	sent := healthpb.HealthCheckResponse_UNKNOWN
	for {
		v := ep.current()
		now := healthpb.HealthCheckResponse_SERVICE_UNKNOWN
		if healthServices[r.GetService()] {
			now = v.health()
		}
		if now != sent {
			if err := stream.Send(&healthpb.HealthCheckResponse{Status: now}); err != nil {
				return err
			}
			sent = now
		}
		if err := ep.wait(ctx, v); err != nil {
			return err
		}
	}
}
