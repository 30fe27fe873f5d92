// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"cmp"
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/signet-spiffe/signet/agent/issue"
	"github.com/signet-spiffe/signet/internal/pki"
)

// Standing is how one volume stands, for people. It holds no secret.
type Standing struct {
	// Volume is kubelet's volume ID.
	Volume string
	Pod    issue.Pod
	// ID is the SPIFFE ID that the volume has or is to have.
	ID spiffeid.ID
	// Phase is never Absent.
	Phase    Phase
	Lateness Lateness
	// Serial is that of the certificate in use, lower-case hexadecimal. It, NotBefore,
	// NotAfter and Issuer are zero without an SVID.
	Serial              string
	NotBefore, NotAfter time.Time
	// Issuer is as in issue.Issued; "" if it is not known.
	Issuer string
	// KeyType is that of the SVID in use, or of the one to come; "" if it is not known.
	KeyType pki.KeyType
	// Next is when the next attempt is to start; zero while one is under way.
	Next time.Time
	// InFlight says that an attempt is under way, WaitsFor in plain words what for, if
	// that is known.
	InFlight bool
	WaitsFor string
	// Failures counts failed attempts since the last success or renewal by hand.
	Failures int
	// LastError is why an attempt or a store failed last, and when. Empty once
	// another one has succeeded. At most 1024 bytes, one line.
	LastError   string
	LastErrorAt time.Time
}

// subject is whose volume it is. It does not change.
type subject struct {
	pod issue.Pod
	id  spiffeid.ID
	// keyType is that of the SVID to come.
	keyType pki.KeyType
}

// trouble is a failure that nothing has made good yet.
type trouble struct {
	text string
	at   time.Time
	// storage says that it was one of storing, which the next store makes good.
	storage bool
}

// maxTrouble bounds what is kept of an error, in bytes.
const maxTrouble = 1024

// lastAttempt begins what is said to kubelet of an attempt that has ended.
const lastAttempt = "last attempt: "

// failed keeps what has gone wrong.
func (e *entry) failed(err error, storage bool) {
	e.trouble = &trouble{text: issue.Clip(err.Error(), maxTrouble), at: time.Now(), storage: storage}
	e.progress(lastAttempt + err.Error())
}

// recovered forgets what a store has made good.
func (e *entry) recovered(renewed bool) {
	if e.trouble != nil && (renewed || e.trouble.storage) {
		e.trouble = nil
	}
}

func serial(c *x509.Certificate) string { return c.SerialNumber.Text(16) }

// look is the volume's Standing; false if it has none, or none any more.
func (e *entry) look() (Standing, bool) {
	known := e.standing.Load()
	if known == nil || known.phase == Absent || known.subject == nil {
		return Standing{}, false
	}
	s := Standing{
		Volume: e.name, Pod: known.subject.pod, ID: known.subject.id, Phase: known.phase, Lateness: known.late,
		KeyType: known.subject.keyType, Next: known.next, InFlight: known.inFlight, Failures: known.failures,
	}
	if known.leaf != nil {
		s.Serial, s.NotBefore, s.NotAfter = serial(known.leaf), known.leaf.NotBefore, known.leaf.NotAfter
		s.Issuer, s.KeyType = known.issuer, known.keyType
	}
	if known.trouble != nil {
		s.LastError, s.LastErrorAt = known.trouble.text, known.trouble.at
	}
	if waitsFor := e.awaits(); s.InFlight && !strings.HasPrefix(waitsFor, lastAttempt) {
		s.WaitsFor = issue.Clip(waitsFor, maxTrouble)
	}
	return s, true
}

// List returns how every volume stands, ordered by volume ID. It waits for no
// volume.
func (r *Registry) List() []Standing {
	entries := r.all()
	list := make([]Standing, 0, len(entries))
	for _, e := range entries {
		if s, ok := e.look(); ok {
			list = append(list, s)
		}
	}
	slices.SortFunc(list, func(a, b Standing) int { return cmp.Compare(a.Volume, b.Volume) })
	return list
}

// watchers are told which volumes have changed. Without any that costs one look at
// an atomic number.
type watchers struct {
	n   atomic.Int32
	mu  sync.Mutex // Guards all. Taken before a Watcher's.
	all map[*Watcher]struct{}
}

func (w *watchers) changed(volumeID string) {
	if w.n.Load() == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for watcher := range w.all {
		watcher.mark(volumeID)
	}
}

func (w *watchers) add(watcher *Watcher) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.all == nil {
		w.all = map[*Watcher]struct{}{}
	}
	w.all[watcher] = struct{}{}
	w.n.Store(int32(len(w.all)))
}

func (w *watchers) remove(watcher *Watcher) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.all, watcher)
	w.n.Store(int32(len(w.all)))
}

// Watcher follows the volumes of a Registry. It remembers which have changed and not
// what they were, so however slow it is read, nobody waits for it and it holds one
// entry for each volume at most. Not safe for concurrent use.
type Watcher struct {
	registry *Registry
	known    map[string]struct{} // What Next has returned and not said to be gone.
	wake     chan struct{}       // Buffered; there is something marked.

	mu     sync.Mutex // Guards marked. Held for map operations only.
	marked map[string]struct{}
}

// Watch begins to follow. The first Next returns all volumes there are. Close it.
func (r *Registry) Watch() *Watcher {
	w := &Watcher{registry: r, known: map[string]struct{}{}, wake: make(chan struct{}, 1), marked: map[string]struct{}{}}
	// From here on changes are marked; what there is already is marked after that.
	r.watchers.add(w)
	w.wake <- struct{}{}
	for _, e := range r.all() {
		w.mark(e.name)
	}
	return w
}

// Close ends the following.
func (w *Watcher) Close() { w.registry.watchers.remove(w) }

func (w *Watcher) mark(volumeID string) {
	w.mu.Lock()
	w.marked[volumeID] = struct{}{}
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *Watcher) take() map[string]struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	marked := w.marked
	w.marked = map[string]struct{}{}
	return marked
}

// Next waits until something has changed since the call before and returns how the
// volumes in question stand now, ordered by volume ID, and which that it has returned
// are gone. Both may be empty: in the first call, if there is no volume, and when a
// volume came and went between two calls.
//
// Errors: ctx's cause; one that wraps issue.ErrUnavailable when the agent ends.
func (w *Watcher) Next(ctx context.Context) (changed []Standing, gone []string, err error) {
	select {
	case <-w.wake:
	case <-w.registry.life.Done():
		return nil, nil, fmt.Errorf("watch volumes: %w: %w", issue.ErrUnavailable, context.Cause(w.registry.life))
	case <-ctx.Done():
		return nil, nil, fmt.Errorf("watch volumes: %w", context.Cause(ctx))
	}
	marked := w.take()
	for volumeID := range marked {
		s, ok := w.registry.look(volumeID)
		_, told := w.known[volumeID]
		switch {
		case ok:
			changed = append(changed, s)
			w.known[volumeID] = struct{}{}
		case told:
			gone = append(gone, volumeID)
			delete(w.known, volumeID)
		}
	}
	slices.SortFunc(changed, func(a, b Standing) int { return cmp.Compare(a.Volume, b.Volume) })
	slices.Sort(gone)
	return changed, gone, nil
}

func (r *Registry) look(volumeID string) (Standing, bool) {
	r.mu.Lock()
	e, ok := r.entries[volumeID]
	r.mu.Unlock()
	if !ok {
		return Standing{}, false
	}
	return e.look()
}
