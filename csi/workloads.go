// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import "context"

// Workloads is what the node server needs of the agent.
type Workloads interface {
	// Publish returns nil once the volume's files are stored (Store.Create, Dir.Write) and its socket
	// listens; for a volume with Attributes.NoWait, once its storage is there and its socket listens. What
	// the volume is not to hold (Attributes.Delivery) is not made. Publishing a published volume is quick and
	// keeps everything; at most it takes the fresher token. It may be called concurrently for one volume:
	// every call gets the same result.
	//
	// An error that wraps ErrPending, ErrAborted or ErrUnavailable, or that is ctx's own, keeps what
	// Publish has begun: kubelet comes back for it, or unpublishes. After any other error kubelet takes
	// the volume for never mounted and will not unpublish it, so the node server itself calls Unpublish
	// and removes the volume.
	Publish(ctx context.Context, v Volume) error
	// Unpublish ends the volume's identity: Publish calls in flight for it fail with ErrAborted, and
	// nothing is written to the volume after Unpublish has returned. An unknown volume is no error.
	Unpublish(ctx context.Context, volumeID string) error
}
