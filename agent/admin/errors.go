// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/signet-spiffe/signet/agent/issue"
	"github.com/signet-spiffe/signet/agent/workload"
)

// errInvalid says that a request makes no sense.
var errInvalid = errors.New("invalid request")

// errStopping ends streams when the agent stops.
var errStopping = errors.New("the agent is stopping; call the next one")

// statusOf maps every error of this package's services to a gRPC status. What has a
// status already keeps it.
func statusOf(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	for _, known := range []struct {
		err  error
		code codes.Code
	}{
		{errInvalid, codes.InvalidArgument},
		{errRefused, codes.PermissionDenied},
		{workload.ErrUnknown, codes.NotFound},
		{errStopping, codes.Unavailable},
		{issue.ErrUnavailable, codes.Unavailable},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
		{context.Canceled, codes.Canceled},
	} {
		if errors.Is(err, known.err) {
			return status.Error(known.code, err.Error())
		}
	}
	return status.Error(codes.Internal, err.Error())
}
