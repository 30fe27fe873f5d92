// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/signet-spiffe/signet/agent/workload"
	"github.com/signet-spiffe/signet/csi"
	"github.com/signet-spiffe/signet/internal/failpoint"
	"github.com/signet-spiffe/signet/internal/pki"
	"github.com/signet-spiffe/signet/workloadapi"
)

// volumes implements workload.Volumes: what the lifecycle decides becomes files
// and state in the volume's tmpfs (csi.Dir) and messages on its socket
// (workloadapi.Server).
type volumes struct {
	store       *csi.Store
	server      *workloadapi.Server
	names       fileNames
	trustDomain spiffeid.TrustDomain
	log         *slog.Logger
	pods        podsDir

	mu    sync.Mutex // Guards the rest; not held during I/O.
	feeds map[string]*feed
	// changed is closed, and replaced, when a volume came, went or got an SVID.
	changed chan struct{}
	// alone says why a volume of the agent before could not be taken up.
	alone map[string]error
}

func newVolumes(store *csi.Store, server *workloadapi.Server, names fileNames, td spiffeid.TrustDomain, log *slog.Logger) *volumes {
	return &volumes{store: store, server: server, names: names, trustDomain: td, log: log, feeds: map[string]*feed{}, changed: make(chan struct{}), alone: map[string]error{}}
}

// Prepare implements workload.Volumes.
func (v *volumes) Prepare(volume workload.Volume) error {
	dir, err := v.store.Create(volume.ID)
	if err != nil {
		return err
	}
	failpoint.Here("prepare/created")
	if err := rememberUnissued(dir, volume); err != nil {
		return err
	}
	failpoint.Here("prepare/remembered")
	if v.feed(volume.ID) != nil {
		return nil
	}
	f := newFeed(volume, v.trustDomain)
	if err := v.serve(dir, f); err != nil {
		return err
	}
	failpoint.Here("prepare/served")
	v.mu.Lock()
	defer v.mu.Unlock()
	v.feeds[volume.ID] = f
	v.tell()
	return nil
}

// serve answers on the volume's socket, if it has one.
func (v *volumes) serve(dir *csi.Dir, f *feed) error {
	delivery := f.volume.Attributes.Delivery
	if delivery.NoSocket {
		return nil
	}
	listener, err := dir.Listen(v.names.with(delivery).socket)
	if err != nil {
		return err
	}
	if err := v.server.Start(listener, f); err != nil {
		return fmt.Errorf("serve the Workload API for volume %s: %w", f.volume.ID, err)
	}
	return nil
}

// tell lets those who watch all volumes look again. The caller holds mu.
func (v *volumes) tell() {
	close(v.changed)
	v.changed = make(chan struct{})
}

func (v *volumes) feed(id string) *feed {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.feeds[id]
}

// Store implements workload.Volumes. State goes first: were the agent killed
// between the two writes, it would find the newer SVID in the state and write
// the files again.
func (v *volumes) Store(volume workload.Volume, c workload.Content) error {
	if c.Bundle == nil {
		return fmt.Errorf("store SVID of volume %s: there is no trust bundle yet", volume.ID)
	}
	dir, ok := v.store.Get(volume.ID)
	if !ok {
		return fmt.Errorf("store SVID of volume %s: the volume's storage is gone", volume.ID)
	}
	key, err := c.SVID.Key.MarshalPEM()
	if err != nil {
		return fmt.Errorf("store SVID of volume %s: %w", volume.ID, err)
	}
	state, err := marshalState(volume, c, key)
	if err != nil {
		return err
	}
	if err := dir.WriteState(state); err != nil {
		return err
	}
	failpoint.Here("store/state-written")
	if volume.Attributes.Delivery.NoFiles {
		return nil // The state is all that holds the key.
	}
	names := v.names.with(volume.Attributes.Delivery)
	err = dir.Write(csi.Files{
		Payload: map[string][]byte{
			names.certificate: pki.MarshalCertificates(c.SVID.Chain),
			names.key:         key,
			names.ca:          pki.MarshalCertificates(c.Bundle.X509Authorities()),
		},
		UID: volume.UID, GID: volume.GID,
	})
	if err != nil {
		return err
	}
	failpoint.Here("store/files-written")
	return nil
}

// Push implements workload.Volumes.
func (v *volumes) Push(volume workload.Volume, c workload.Content) {
	if f := v.feed(volume.ID); f != nil && c.SVID != nil && c.Bundle != nil {
		f.Set(entitled(c))
		v.mu.Lock()
		v.tell()
		v.mu.Unlock()
	}
	failpoint.Here("push/done")
}

func entitled(c workload.Content) workloadapi.Identity {
	return workloadapi.Identity{
		Status:      workloadapi.Entitled,
		SVIDs:       []*x509svid.SVID{{ID: c.SVID.ID, Certificates: c.SVID.Chain, PrivateKey: c.SVID.Key.Signer()}},
		Bundles:     x509bundle.NewSet(c.Bundle),
		TrustDomain: c.SVID.ID.TrustDomain(),
	}
}

// Remove implements workload.Volumes.
func (v *volumes) Remove(id string) error {
	v.mu.Lock()
	f := v.feeds[id]
	delete(v.feeds, id)
	delete(v.alone, id)
	v.tell()
	v.mu.Unlock()
	if f != nil {
		v.server.Detach(f)
	}
	failpoint.Here("remove/detached")
	return v.store.Remove(id)
}

// rememberUnissued makes a volume that does not wait for its SVID known to the
// next agent: kubelet will take it for published, and not publish it again.
func rememberUnissued(dir *csi.Dir, volume workload.Volume) error {
	if !volume.Attributes.NoWait {
		return nil
	}
	if _, err := dir.ReadState(); !errors.Is(err, fs.ErrNotExist) {
		return err // There is more to know already, or the storage is broken.
	}
	state, err := marshalUnissued(volume)
	if err != nil {
		return err
	}
	return dir.WriteState(state)
}

// recovered is a volume whose state survived a restart. svid and bundle are nil
// when it had no SVID yet; attempt is nil when none was under way.
type recovered struct {
	volume  workload.Volume
	svid    *workload.SVID
	bundle  *x509bundle.Bundle
	attempt *workload.Attempt
}

// awaited says that kubelet waits for the volume: it was never published.
func (r recovered) awaited() bool { return r.svid == nil && !r.volume.Attributes.NoWait }

// recover reads the state of every volume that is still mounted, and the attempts
// that were under way. A volume with neither was never published, so kubelet will
// publish it anew: it is removed. A
// state that cannot be read, or is of another trust domain, leaves its volume
// alone, since a pod may be using the files; it is logged. A volume whose pod is
// gone is removed (dropLeftovers).
func (v *volumes) recover() []recovered {
	dirs, problems := v.store.Volumes()
	for _, err := range problems {
		v.log.Warn("left alone what is not a volume of this agent", "error", err)
	}
	var found []recovered
	for _, dir := range dirs {
		r, err := v.recoverOne(dir)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			if err := v.store.Remove(dir.ID()); err != nil {
				v.log.Warn("could not remove a volume that was never published", "volume", dir.ID(), "error", err)
			}
		case err != nil:
			v.log.Error("could not take up a volume of the agent before; its pod keeps the files it has", "volume", dir.ID(), "error", err)
			v.mu.Lock()
			v.alone[dir.ID()] = err
			v.mu.Unlock()
		default:
			found = append(found, r)
		}
	}
	return v.dropLeftovers(found)
}

// leftAlone says why a volume of the agent before was left as it is; nil if it
// was not.
func (v *volumes) leftAlone(id string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.alone[id]
}

func (v *volumes) recoverOne(dir *csi.Dir) (recovered, error) {
	b, err := dir.ReadState()
	if errors.Is(err, fs.ErrNotExist) {
		return v.recoverMount(dir)
	}
	if err != nil {
		return recovered{}, err
	}
	r, err := unmarshalState(b)
	if err != nil {
		return recovered{}, err
	}
	if r.volume.ID != dir.ID() {
		return recovered{}, fmt.Errorf("state is of volume %q", r.volume.ID)
	}
	if attribute, name, taken := v.names.with(r.volume.Attributes.Delivery).collision(r.volume.Attributes.Delivery); taken {
		return recovered{}, fmt.Errorf("its attribute %s is %q, which is now another file's name too: change the agent's --file-name flags, or replace the pod", attribute, name)
	}
	if r.svid != nil && r.svid.ID.TrustDomain() != v.trustDomain {
		return recovered{}, fmt.Errorf("state is of trust domain %q, this agent's is %q", r.svid.ID.TrustDomain(), v.trustDomain)
	}
	r.attempt = v.recoverAttempt(dir, r)
	return r, nil
}

// feed is the identity behind one volume's socket (workloadapi.Workload).
type feed struct {
	*workloadapi.Feed
	volume workload.Volume
}

func newFeed(volume workload.Volume, td spiffeid.TrustDomain) *feed {
	return &feed{Feed: workloadapi.NewFeed(workloadapi.Identity{Status: workloadapi.Pending, TrustDomain: td}), volume: volume}
}

// LogValue names the workload in the Workload API's log.
func (f *feed) LogValue() slog.Value {
	return slog.GroupValue(slog.String("namespace", f.volume.Pod.Namespace), slog.String("pod", f.volume.Pod.Name), slog.String("volume", f.volume.ID))
}
