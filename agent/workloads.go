// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/signet-spiffe/signet/agent/issue"
	"github.com/signet-spiffe/signet/agent/workload"
	"github.com/signet-spiffe/signet/csi"
)

// workloads implements csi.Workloads: kubelet's calls become events of the
// lifecycle, and the lifecycle's errors become what the CSI edge understands.
type workloads struct {
	registry *workload.Registry
	limits   attributeLimits
	storage  *volumes
}

// Publish implements csi.Workloads.
func (w workloads) Publish(ctx context.Context, v csi.Volume) error {
	// Were it treated as new, a refusal would take the files away that the pod has.
	if err := w.storage.leftAlone(v.ID); err != nil {
		return fmt.Errorf("%w: volume %s is of an agent before and cannot be taken up: %w; replace the pod", csi.ErrUnavailable, v.ID, err)
	}
	chosen := attributesOf(v.Attributes)
	// A republish may bring the token without which renewals end.
	if err := w.limits.check(chosen); err != nil && !w.registry.Holds(v.ID) {
		return err
	}
	err := w.registry.Publish(ctx, workload.Volume{
		ID: v.ID, Pod: issue.Pod(v.Pod), GID: v.FSGroup, Token: issue.NewToken(v.Token.Value()), Attributes: chosen,
	})
	return edgeError(err)
}

// Unpublish implements csi.Workloads.
func (w workloads) Unpublish(ctx context.Context, volumeID string) error {
	return edgeError(w.registry.Unpublish(ctx, volumeID))
}

// edgeError adds to err what the CSI edge maps to a status code.
func edgeError(err error) error {
	for _, pair := range []struct{ inner, edge error }{
		{workload.ErrPending, csi.ErrPending},
		{workload.ErrUnpublished, csi.ErrAborted},
		{workload.ErrInvalid, csi.ErrInvalid},
		{issue.ErrDenied, csi.ErrDenied},
		{issue.ErrUnavailable, csi.ErrUnavailable},
		{issue.ErrNoToken, csi.ErrInvalid},
	} {
		if errors.Is(err, pair.inner) {
			return fmt.Errorf("%w: %w", pair.edge, err)
		}
	}
	return err
}
