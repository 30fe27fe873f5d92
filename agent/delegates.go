// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"slices"

	"github.com/spf13/pflag"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/signet-spiffe/signet/agent/admin"
	"github.com/signet-spiffe/signet/agent/delegatedidentity"
	"github.com/signet-spiffe/signet/agent/workload"
	"github.com/signet-spiffe/signet/internal/observe"
)

// delegateFlags say who gets the identities of all pods of the node.
type delegateFlags struct {
	given []int64
	uids  []uint32
}

func (d *delegateFlags) addFlags(flags *pflag.FlagSet) {
	flags.Int64SliceVar(&d.given, "authorized-delegates", nil, "User IDs of node proxies that may have the SVIDs, with keys, of every pod of this node that mounts a volume, by SPIRE's Delegated Identity API on the admin socket (docs/admin.md). None: nobody may, root neither")
}

func (d *delegateFlags) check(adminSocket string) error {
	d.uids = nil
	for _, uid := range d.given {
		if uid < 0 || uid >= 1<<32-1 { // The last is "no user".
			return observe.Usagef("--authorized-delegates %d: is no user ID", uid)
		}
		d.uids = append(d.uids, uint32(uid))
	}
	if len(d.uids) > 0 && adminSocket == "" {
		return observe.Usagef("--authorized-delegates needs an --admin-socket-path: that is where delegates call")
	}
	return nil
}

// services are what delegates may call; none without a delegate.
func (d *delegateFlags) services(o *options, v *volumes, trust workload.Trust) []admin.Service {
	if len(d.uids) == 0 {
		return nil
	}
	return []admin.Service{{
		Register: delegatedidentity.New(delegated{v, trust}, o.trustDomain).Register,
		Allow:    d.allow,
	}}
}

// strangers says whether one of the delegates is neither root nor the agent's own
// user: only then has the socket to be open to other users.
func (d *delegateFlags) strangers() bool {
	return slices.ContainsFunc(d.uids, func(uid uint32) bool { return uid != 0 && int64(uid) != int64(os.Geteuid()) })
}

// allow goes by the kernel's word for the caller's user. Root is a delegate only if
// it was named: what the operator did not switch on is off for everybody.
func (d *delegateFlags) allow(p admin.Peer) error {
	if slices.Contains(d.uids, p.UID) {
		return nil
	}
	return status.Error(codes.PermissionDenied, fmt.Sprintf("user %d is no delegate (--authorized-delegates)", p.UID))
}

// delegated implements delegatedidentity.Source: the volumes that are mounted, and
// the bundle that they hold.
type delegated struct {
	volumes *volumes
	trust   workload.Trust
}

// Workloads implements delegatedidentity.Source. A volume that shows its pod no
// socket has an identity all the same.
func (d delegated) Workloads() ([]delegatedidentity.Workload, <-chan struct{}) {
	feeds, changed := d.volumes.all()
	workloads := make([]delegatedidentity.Workload, 0, len(feeds))
	for _, f := range feeds {
		w := delegatedidentity.Workload{
			Namespace: f.volume.Pod.Namespace, ServiceAccount: f.volume.Pod.ServiceAccount,
			Pod: f.volume.Pod.Name, PodUID: f.volume.Pod.UID, Volume: f.volume.ID,
		}
		if identity, _ := f.Identity(); len(identity.SVIDs) > 0 {
			w.SVID = identity.SVIDs[0]
		}
		workloads = append(workloads, w)
	}
	return workloads, changed
}

// Bundles implements delegatedidentity.Source.
func (d delegated) Bundles() (*x509bundle.Set, <-chan struct{}) {
	bundle, superseded := d.trust.Bundle()
	if bundle == nil {
		return nil, superseded
	}
	return x509bundle.NewSet(bundle), superseded
}

// all returns what is behind every volume of the node, and a channel that is closed
// when a volume came or went, or one of them got an SVID.
func (v *volumes) all() ([]*feed, <-chan struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	feeds := make([]*feed, 0, len(v.feeds))
	for _, f := range v.feeds {
		feeds = append(feeds, f)
	}
	return feeds, v.changed
}
