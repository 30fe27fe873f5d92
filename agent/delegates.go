// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"

	"github.com/signet-spiffe/signet/agent/delegatedidentity"
	"github.com/signet-spiffe/signet/agent/workload"
)

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
