// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/signet-spiffe/signet/internal/failpoint"
)

// discardTimeout bounds how long a failed publish waits for the agent to let go of the volume.
const discardTimeout = 10 * time.Second

// node is the CSI node service.
type node struct {
	csipb.UnimplementedNodeServer
	nodeID    string
	validate  validator
	workloads Workloads
	store     *Store
	gates     gates
	log       *slog.Logger
}

// NodeGetInfo names the node. There is no limit of volumes and no topology.
func (n *node) NodeGetInfo(context.Context, *csipb.NodeGetInfoRequest) (*csipb.NodeGetInfoResponse, error) {
	return &csipb.NodeGetInfoResponse{NodeId: n.nodeID}, nil
}

// NodeGetCapabilities offers VOLUME_MOUNT_GROUP alone: kubelet then passes the pod's fsGroup on instead of
// walking the volume itself.
func (n *node) NodeGetCapabilities(context.Context, *csipb.NodeGetCapabilitiesRequest) (*csipb.NodeGetCapabilitiesResponse, error) {
	return &csipb.NodeGetCapabilitiesResponse{Capabilities: []*csipb.NodeServiceCapability{{
		Type: &csipb.NodeServiceCapability_Rpc{Rpc: &csipb.NodeServiceCapability_RPC{
			Type: csipb.NodeServiceCapability_RPC_VOLUME_MOUNT_GROUP,
		}},
	}}}, nil
}

// NodePublishVolume returns once the pod's identity exists and can be seen at the target path.
func (n *node) NodePublishVolume(ctx context.Context, r *csipb.NodePublishVolumeRequest) (*csipb.NodePublishVolumeResponse, error) {
	v, err := n.validate.publish(r)
	if err != nil {
		return nil, err
	}
	call, err := n.gates.publish(v.ID)
	if err != nil {
		return nil, err
	}
	defer call.done()
	if err := n.publish(ctx, call, v); err != nil {
		n.discardAfter(ctx, call, v, err)
		return nil, err
	}
	return &csipb.NodePublishVolumeResponse{}, nil
}

func (n *node) publish(ctx context.Context, call *publishCall, v Volume) error {
	if err := n.checkTargetFree(v); err != nil {
		return err
	}
	refused := n.workloads.Publish(ctx, v)
	failpoint.Here("publish/answered")

	call.gate.mount.Lock()
	defer call.gate.mount.Unlock()
	if err := call.overtaken(); err != nil {
		return err
	}
	if refused != nil {
		return n.forgive(v, refused)
	}
	dir, ok := n.store.Get(v.ID)
	if !ok {
		return fmt.Errorf("%w: volume %s is gone", ErrAborted, v.ID)
	}
	if bound, err := dir.IsBoundAt(v.TargetPath); bound || err != nil {
		return err
	}
	if err := dir.BindTo(v.TargetPath); err != nil {
		return err
	}
	n.log.Info("volume published", "volume", v)
	return nil
}

// checkTargetFree finds out before anything is issued that the target path cannot be ours.
func (n *node) checkTargetFree(v Volume) error {
	at, err := lookAt(v.TargetPath)
	if err != nil || !at.mountRoot {
		return nil // made, or refused, when it is mounted
	}
	if id, live := n.store.volumeOn(at); live && id == v.ID {
		return nil
	}
	return n.store.checkStale(v.TargetPath, at)
}

// forgive makes a republish that cannot succeed harmless: the pod runs on what it has, and the renewal goes
// on by itself. Kubelet would answer an error with Events at best, and with removing the mount directory at
// worst (kubernetes/kubernetes#121271).
func (n *node) forgive(v Volume, refused error) error {
	dir, ok := n.store.Get(v.ID)
	if !ok {
		return refused
	}
	if bound, err := dir.IsBoundAt(v.TargetPath); err != nil || !bound {
		return refused
	}
	n.log.Warn("republish failed; the published volume stays as it is", "volume", v, "error", refused)
	return nil
}

// discardAfter removes what a publish has begun when kubelet will not come back for it.
func (n *node) discardAfter(ctx context.Context, call *publishCall, v Volume, cause error) {
	if !final(code(cause)) {
		return
	}
	leave := call.discard()
	if leave == nil {
		return
	}
	defer leave()
	call.gate.mount.Lock()
	defer call.gate.mount.Unlock()
	if dir, ok := n.store.Get(v.ID); ok {
		if bound, err := dir.IsBoundAnywhere(); bound || err != nil {
			return // published before: stays, whatever this call met
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), discardTimeout)
	defer cancel()
	err := n.workloads.Unpublish(ctx, v.ID)
	if err == nil {
		err = n.store.Remove(v.ID)
	}
	if err != nil {
		n.log.Error("volume of a failed publish was not removed", "volume", v, "error", err)
	}
}

// NodeUnpublishVolume ends the volume. It is OK as often as kubelet asks.
func (n *node) NodeUnpublishVolume(ctx context.Context, r *csipb.NodeUnpublishVolumeRequest) (*csipb.NodeUnpublishVolumeResponse, error) {
	if err := n.validate.unpublish(r); err != nil {
		return nil, err
	}
	id := r.GetVolumeId()
	gate, leave := n.gates.unpublish(id)
	defer leave()
	failpoint.Here("unpublish/called")
	// Before the lock: a publish may be waiting for its identity, and this is what makes it give up.
	if err := n.workloads.Unpublish(ctx, id); err != nil {
		return nil, fmt.Errorf("end identity of volume %s: %w", id, err)
	}
	failpoint.Here("unpublish/identity-ended")
	gate.mount.Lock()
	defer gate.mount.Unlock()
	if err := n.store.unbind(r.GetTargetPath(), id); err != nil {
		return nil, err
	}
	failpoint.Here("unpublish/target-removed")
	if err := n.store.Remove(id); err != nil {
		return nil, err
	}
	n.log.Info("volume unpublished", "volume", id)
	return &csipb.NodeUnpublishVolumeResponse{}, nil
}
