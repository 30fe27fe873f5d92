// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"
	"errors"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// What an error of Workloads.Publish may wrap to tell kubelet (and the pod's Event) what happened.
// Everything else becomes Internal.
var (
	// ErrInvalid says that what the pod asked for cannot be had (InvalidArgument).
	ErrInvalid = errors.New("invalid request")
	// ErrDenied says that the approver refused (PermissionDenied).
	ErrDenied = errors.New("denied")
	// ErrPending says that nothing is issued yet and that a retry resumes (DeadlineExceeded).
	ErrPending = errors.New("not issued yet")
	// ErrAborted says that the volume was unpublished, or is being unpublished (Aborted).
	ErrAborted = errors.New("aborted")
	// ErrUnavailable says that something the agent needs cannot be reached (Unavailable).
	ErrUnavailable = errors.New("unavailable")

	// errForeign is a mount or file in our way that is not ours to touch (FailedPrecondition).
	errForeign = errors.New("not ours")
)

// code is the one place where an error becomes a gRPC code. Order matters: what the agent says about the
// volume goes before what the context or the kernel said underneath.
func code(err error) codes.Code {
	for _, m := range []struct {
		is   error
		code codes.Code
	}{
		{nil, codes.OK},
		{ErrAborted, codes.Aborted},
		{ErrInvalid, codes.InvalidArgument},
		{ErrDenied, codes.PermissionDenied},
		{ErrPending, codes.DeadlineExceeded},
		{ErrUnavailable, codes.Unavailable},
		{errForeign, codes.FailedPrecondition},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
		{context.Canceled, codes.Canceled},
		{unix.ENOSPC, codes.ResourceExhausted},
		{unix.ENOMEM, codes.ResourceExhausted},
		{unix.EMFILE, codes.ResourceExhausted},
		{unix.ENFILE, codes.ResourceExhausted},
	} {
		if errors.Is(err, m.is) {
			return m.code
		}
	}
	return codes.Internal
}

// final reports whether kubelet, seeing this code, takes the volume for not mounted. It then never sends
// NodeUnpublishVolume for it (isFinalError in kubelet's CSI client), so we clean up ourselves.
func final(c codes.Code) bool {
	switch c {
	case codes.OK, codes.Canceled, codes.DeadlineExceeded, codes.Unavailable, codes.ResourceExhausted, codes.Aborted:
		return false
	default:
		return true
	}
}

// toStatus makes a gRPC error of err, unless it is one itself. A status deeper in the chain (of a call that
// the agent made) does not count: it is about something else than this RPC.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := err.(interface{ GRPCStatus() *status.Status }); ok { //nolint:errorlint // see above
		return err
	}
	// The text ends up in an Event of the pod: one line, also when errors were joined.
	return status.Error(code(err), strings.ReplaceAll(err.Error(), "\n", "; "))
}
