// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package dev

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/signet-spiffe/signet/agent/trust"
	"github.com/signet-spiffe/signet/agent/workload"
	"github.com/signet-spiffe/signet/internal/pki"
	"github.com/signet-spiffe/signet/workloadapi"
)

// volumes implements workload.Volumes with directories. A volume's ID is the name of
// its identity.
type volumes struct {
	place  *place
	server *workloadapi.Server
	files  bool
	// bundles are those of all trust domains.
	bundles *trust.Bundles

	mu    sync.Mutex // Guards rooms and feeds; not held during I/O.
	rooms map[string]*room
	feeds map[string]*feed
}

var _ workload.Volumes = (*volumes)(nil)

func newVolumes(p *place, server *workloadapi.Server, files bool, bundles *trust.Bundles) *volumes {
	return &volumes{place: p, server: server, files: files, bundles: bundles, rooms: map[string]*room{}, feeds: map[string]*feed{}}
}

// Prepare implements workload.Volumes.
func (v *volumes) Prepare(volume workload.Volume) error {
	if _, f := v.get(volume.ID); f != nil {
		return nil
	}
	r, err := v.place.openRoom(volume.ID)
	if err != nil {
		return err
	}
	f := newFeed(volume.ID)
	if err := v.serve(r, f); err != nil {
		return errors.Join(err, r.root.Close(), v.place.removeRoom(volume.ID))
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.rooms[volume.ID], v.feeds[volume.ID] = r, f
	return nil
}

func (v *volumes) serve(r *room, f *feed) error {
	l, err := r.listen()
	if err != nil {
		return err
	}
	if err := v.server.Start(l, f); err != nil {
		return fmt.Errorf("serve the Workload API for %s: %w", f.name, err)
	}
	return nil
}

func (v *volumes) get(id string) (*room, *feed) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.rooms[id], v.feeds[id]
}

// Store implements workload.Volumes.
func (v *volumes) Store(volume workload.Volume, c workload.Content) error {
	r, _ := v.get(volume.ID)
	switch {
	case r == nil:
		return fmt.Errorf("store SVID of %s: its directory is gone", volume.ID)
	case c.Bundle == nil:
		return fmt.Errorf("store SVID of %s: there is no trust bundle yet", volume.ID)
	case !v.files:
		return nil
	}
	key, err := c.SVID.Key.MarshalPEM()
	if err != nil {
		return fmt.Errorf("store SVID of %s: %w", volume.ID, err)
	}
	err = r.write(map[string][]byte{
		certificateName: pki.MarshalCertificates(c.SVID.Chain),
		keyName:         key,
		caName:          pki.MarshalCertificates(c.Bundle.X509Authorities()),
	})
	if err != nil {
		return fmt.Errorf("write files of %s: %w", volume.ID, err)
	}
	return nil
}

// Push implements workload.Volumes.
func (v *volumes) Push(volume workload.Volume, c workload.Content) {
	if _, f := v.get(volume.ID); f != nil && c.SVID != nil && c.Bundle != nil {
		set, _ := v.bundles.Set()
		f.set(&c, set)
	}
}

// refresh shows every feed the bundles of all trust domains as they are now.
func (v *volumes) refresh() {
	v.mu.Lock()
	feeds := make([]*feed, 0, len(v.feeds))
	for _, f := range v.feeds {
		feeds = append(feeds, f)
	}
	v.mu.Unlock()
	set, _ := v.bundles.Set()
	for _, f := range feeds {
		f.set(nil, set)
	}
}

// Remove implements workload.Volumes.
func (v *volumes) Remove(id string) error {
	r, f := v.get(id)
	v.mu.Lock()
	delete(v.rooms, id)
	delete(v.feeds, id)
	v.mu.Unlock()
	if f != nil {
		v.server.Detach(f)
	}
	if r == nil {
		return nil
	}
	return errors.Join(r.root.Close(), v.place.removeRoom(id))
}

// feed is the identity behind one socket (workloadapi.Workload).
type feed struct {
	*workloadapi.Feed
	name string

	mu      sync.Mutex // Guards content, and keeps identities in its order.
	content workload.Content
}

func newFeed(name string) *feed {
	return &feed{Feed: workloadapi.NewFeed(workloadapi.Identity{Status: workloadapi.Pending}), name: name}
}

// set takes content, unless it is nil, and the bundles of other trust domains. The
// own bundle is the content's, which the SVID was verified with.
func (f *feed) set(content *workload.Content, bundles *x509bundle.Set) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if content != nil {
		f.content = *content
	}
	c := f.content
	if c.SVID == nil {
		return // Pending; Push comes.
	}
	bundles = x509bundle.NewSet(bundles.Bundles()...)
	bundles.Add(c.Bundle)
	f.Set(workloadapi.Identity{
		Status:      workloadapi.Entitled,
		SVIDs:       []*x509svid.SVID{{ID: c.SVID.ID, Certificates: c.SVID.Chain, PrivateKey: c.SVID.Key.Signer()}},
		Bundles:     bundles,
		TrustDomain: c.SVID.ID.TrustDomain(),
	})
}

// LogValue names the workload in the Workload API's log.
func (f *feed) LogValue() slog.Value { return slog.StringValue(f.name) }
