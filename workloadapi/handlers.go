// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"bytes"
	"context"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Texts that clients and operators search for are those that SPIRE's agent uses.
var (
	errNotEntitled  = status.Error(codes.PermissionDenied, "no identity issued")
	errInitializing = status.Error(codes.Unavailable, "workload api is starting: identity not known yet")
	errUnserialized = status.Error(codes.Unavailable, "could not serialize response: identity is incomplete, see the log of the agent")
	errNoWIT        = status.Error(codes.Unimplemented, "fetching WIT-SVIDs is not implemented")
	errNoWITBundles = status.Error(codes.Unimplemented, "fetching WIT bundles is not implemented")
)

// handler implements the SPIFFE Workload API.
type handler struct {
	workload.UnsafeSpiffeWorkloadAPIServer
	jwt JWTSource // nil: the JWT profile is disabled
}

// guardedByHeader marks the service whose requests must carry the security header.
func (handler) guardedByHeader() {}

// FetchX509SVID implements Workload API §5.2.1.
func (handler) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	return push(stream, func(v *view) (*message, error) { return v.x509SVIDs() })
}

// FetchX509Bundles implements Workload API §5.2.2.
func (handler) FetchX509Bundles(_ *workload.X509BundlesRequest, stream grpc.ServerStreamingServer[workload.X509BundlesResponse]) error {
	return push(stream, func(v *view) (*message, error) { return v.x509Bundles() })
}

// FetchWITSVID is not supported (Workload API §7).
func (handler) FetchWITSVID(*workload.WITSVIDRequest, grpc.ServerStreamingServer[workload.WITSVIDResponse]) error {
	return errNoWIT
}

// FetchWITBundles is not supported (Workload API §7).
func (handler) FetchWITBundles(*workload.WITBundlesRequest, grpc.ServerStreamingServer[workload.WITBundlesResponse]) error {
	return errNoWITBundles
}

// push sends the message that build makes of the identity, now and after every change of it, until the identity, the
// endpoint or the caller ends. It never returns nil: a stream must not end with OK.
func push(stream grpc.ServerStream, build func(*view) (*message, error)) error {
	ctx := stream.Context()
	ep, err := endpointOf(ctx)
	if err != nil {
		return err
	}
	if err := ep.begin(); err != nil {
		return err
	}
	defer ep.finish()

	var sent *message
	for {
		v := ep.current()
		if sent, err = sendIfNew(stream, v, build, sent); err != nil {
			return err
		}
		if err := ep.wait(ctx, v); err != nil {
			return err
		}
	}
}

// sendIfNew sends what v has to say unless it equals sent. It returns what the caller has been told by now.
func sendIfNew(stream grpc.ServerStream, v *view, build func(*view) (*message, error), sent *message) (*message, error) {
	if held, err := v.verdict(); held || err != nil {
		return sent, err
	}
	m, err := build(v)
	if err != nil {
		if sent == nil {
			return nil, errUnserialized
		}
		return sent, nil // what the workload has is better than an error
	}
	if sent != nil && bytes.Equal(m.bytes, sent.bytes) {
		return sent, nil
	}
	if err := stream.SendMsg(m); err != nil {
		return nil, err
	}
	return m, nil
}

// verdict says what becomes of a caller that wants something of the identity: it is to be answered (false, nil), to be held
// until the view is superseded (true, nil), or refused with a gRPC status.
func (v *view) verdict() (held bool, err error) {
	switch v.identity.Status {
	case Entitled:
		return false, nil
	case Pending:
		return true, nil
	case NotEntitled:
		return false, errNotEntitled
	default:
		return false, errInitializing
	}
}

// entitled returns the view of an identity that is complete, and waits for it while it is pending. Errors are gRPC statuses.
func (e *endpoint) entitled(ctx context.Context) (*view, error) {
	for {
		v := e.current()
		if held, err := v.verdict(); !held {
			return v, err
		}
		if err := e.wait(ctx, v); err != nil {
			return nil, err
		}
	}
}

// wait returns nil once v has been superseded, or the status that the stream must end with.
func (e *endpoint) wait(ctx context.Context, v *view) error {
	select {
	case <-e.ended:
		return e.reason
	default: // an end that has come counts for more than a change
	}
	select {
	case <-e.ended:
		return e.reason
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	case <-v.superseded:
	}
	if e.hasEnded() {
		return e.reason
	}
	return nil
}
