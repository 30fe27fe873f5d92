// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package certmanager

import (
	"cmp"
	"slices"
	"sync"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"

	"github.com/signet-spiffe/signet/internal/request"
)

// ref names a CertificateRequest to delete. Without a UID any object of that
// name is meant, which is safe only for names of our own making.
type ref struct {
	types.NamespacedName
	uid types.UID
}

func refOf(cr *cmapi.CertificateRequest) ref {
	return ref{NamespacedName: nameOf(cr), uid: cr.UID}
}

func nameOf(cr *cmapi.CertificateRequest) types.NamespacedName {
	return types.NamespacedName{Namespace: cr.Namespace, Name: cr.Name}
}

// board is where attempts wait for the watch: pure bookkeeping, no I/O. It
// knows every request that somebody of this process still has a use for. Safe
// for concurrent use; the lock is never held across a call out.
type board struct {
	mu sync.Mutex
	// waiting are the attempts that run, by the name of their request.
	waiting map[types.NamespacedName]*waiter
	// kept are finished requests by volume: issued and not yet Done, or refused
	// and left for the operator to see. At most one per volume.
	kept map[string]ref
	// retained are finished requests of no more use, left for audit: by volume
	// (request.Hash, as in the label), oldest first, at most retain of each.
	retained map[string][]ref
	retain   int
	// listed is the resource version of the last complete list.
	listed string
	// adopting says that requests were adopted and no list has come since.
	adopting bool
}

// waiter is one attempt on the board. Its fields past kept are the board's.
type waiter struct {
	name   types.NamespacedName
	volume string
	// wake holds at most one token: look at the board.
	wake chan struct{}
	// kept says that the next agent can resume the attempt. The attempt's own.
	kept bool

	adopted bool      // an agent before made the request; see adopt
	claimed bool      // an attempt of this agent waits for it
	uid     types.UID // empty until the create has returned, or an adopted request was seen
	version string    // resource version of the created object
	seen    bool      // some event or list has shown the object
	latest  verdict
}

// newBoard makes a board that retains as many finished requests of each volume.
func newBoard(retain int) *board {
	return &board{waiting: map[types.NamespacedName]*waiter{}, kept: map[string]ref{}, retained: map[string][]ref{}, retain: retain}
}

// expect puts an attempt on the board, before its request is sent. It returns
// what is to be deleted of what the volume's last attempt left behind.
func (b *board) expect(name types.NamespacedName, volume string) (*waiter, []ref) {
	w := &waiter{name: name, volume: volume, wake: make(chan struct{}, 1)}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waiting[name] = w
	return w, b.takeKept(volume)
}

// created records what the API server made of the request. If a list that is
// no older than the request has already come by without it, it is gone.
func (b *board) created(w *waiter, uid types.UID, version string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	w.uid, w.version = uid, version
	if w.missingFrom(b.listed) {
		w.latest = verdict{uid: uid, phase: gone}
	}
}

// look returns the latest verdict on an attempt's request.
func (b *board) look(w *waiter) verdict {
	b.mu.Lock()
	defer b.mu.Unlock()
	if w.uid != "" && w.latest.uid != "" && w.latest.uid != w.uid {
		// Somebody deleted our request and made another of the same name.
		return verdict{uid: w.uid, phase: gone}
	}
	return w.latest
}

// identify returns the request of an attempt. ok is false while nobody has seen an
// adopted one: there may be none of that name, or another's.
func (b *board) identify(w *waiter) (r ref, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return w.ref()
}

// drop takes an attempt off the board that leaves nothing worth keeping.
func (b *board) drop(w *waiter) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.waiting, w.name)
}

// keep takes an attempt off the board whose request is still of use, and
// returns what is to be deleted of what it displaces.
func (b *board) keep(w *waiter) []ref {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.waiting, w.name)
	displaced := b.takeKept(w.volume)
	b.kept[w.volume], _ = w.ref()
	return displaced
}

// done ends the use of a kept request and returns what is to be deleted: the
// request itself, or those that it displaces where it is retained. What is to be
// deleted stays kept until release, so that no list shows it as stale meanwhile.
func (b *board) done(volume string, r ref) []ref {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.retain == 0 {
		return []ref{r}
	}
	if b.kept[volume] == r {
		delete(b.kept, volume)
	}
	return b.retire(request.Hash(volume), r)
}

// release forgets a kept request that was deleted.
func (b *board) release(volume string, r ref) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.kept[volume] == r {
		delete(b.kept, volume)
	}
}

// forget returns what is to be deleted of what is kept for a volume, and keeps it
// no more. What is retained goes with the pod.
func (b *board) forget(volume string) []ref {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.takeKept(volume)
}

// takeKept: the caller holds mu.
func (b *board) takeKept(volume string) []ref {
	r, ok := b.kept[volume]
	if !ok {
		return nil
	}
	delete(b.kept, volume)
	return b.retire(request.Hash(volume), r)
}

// retire retains a finished request and returns what is too old for that, all of
// it where nothing is retained. The caller holds mu.
func (b *board) retire(volume string, refs ...ref) []ref {
	all := append(b.retained[volume], refs...)
	old := max(len(all)-b.retain, 0)
	if b.retain > 0 {
		b.retained[volume] = slices.Clone(all[old:])
	}
	return slices.Clone(all[:old])
}

// unretain forgets a retained request that somebody deleted: the garbage
// collector when its pod went, or a person. The caller holds mu.
func (b *board) unretain(volume string, r ref) {
	left := slices.DeleteFunc(b.retained[volume], func(have ref) bool { return have == r })
	if len(left) == 0 {
		delete(b.retained, volume)
		return
	}
	b.retained[volume] = left
}

// observe takes in the present state of a request.
func (b *board) observe(cr *cmapi.CertificateRequest) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if w, ok := b.waiting[nameOf(cr)]; ok {
		w.learn(judge(cr))
	}
}

// removed takes in the last state of a request that is gone. If it had come to
// its end before that, the end is what counts.
func (b *board) removed(cr *cmapi.CertificateRequest) {
	b.mu.Lock()
	defer b.mu.Unlock()
	w, ok := b.waiting[nameOf(cr)]
	if !ok {
		b.unretain(cr.Labels[request.LabelVolume], refOf(cr))
		return
	}
	v := judge(cr)
	if !v.phase.final() {
		v.phase = gone
	}
	w.learn(v)
}

// replace takes in a complete list of this agent's requests as of a resource
// version and returns those that nobody has a use for.
func (b *board) replace(list []*cmapi.CertificateRequest, version string) (stale []ref) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.listed = version
	kept := make(map[ref]bool, len(b.kept))
	for _, r := range b.kept {
		kept[r] = true
	}
	present := make(map[types.NamespacedName]bool, len(list))
	var finished []*cmapi.CertificateRequest
	for _, cr := range list {
		present[nameOf(cr)] = true
		if w, ok := b.waiting[nameOf(cr)]; ok {
			w.learn(judge(cr))
		} else if !kept[refOf(cr)] {
			if b.retain > 0 && judge(cr).phase.final() {
				finished = append(finished, cr)
				continue
			}
			stale = append(stale, refOf(cr))
		}
	}
	stale = append(stale, b.retainListed(finished)...)
	for name, w := range b.waiting {
		if !present[name] && (w.seen || w.missingFrom(version)) {
			w.learn(verdict{uid: w.uid, phase: gone})
		}
	}
	b.adopting = false
	return stale
}

// retainListed retains the newest of each volume among the finished requests that
// a list has shown, those of the agent before included, and returns the others. The
// caller holds mu.
func (b *board) retainListed(finished []*cmapi.CertificateRequest) (stale []ref) {
	clear(b.retained)
	slices.SortFunc(finished, byAge)
	for _, cr := range finished {
		stale = append(stale, b.retire(cr.Labels[request.LabelVolume], refOf(cr))...)
	}
	return stale
}

// byAge orders requests by creation, and those of the same second by their last
// change: a volume's requests follow one another.
func byAge(x, y *cmapi.CertificateRequest) int {
	changed, err := resourceversion.CompareResourceVersion(x.ResourceVersion, y.ResourceVersion)
	if err != nil {
		changed = cmp.Compare(x.Name, y.Name)
	}
	return cmp.Or(x.CreationTimestamp.Compare(y.CreationTimestamp.Time), changed)
}

// ref names the request; not ok while an adopted one has not been seen. The caller
// holds the board's lock.
func (w *waiter) ref() (r ref, ok bool) {
	return ref{NamespacedName: w.name, uid: w.uid}, w.uid != "" || !w.adopted
}

// missingFrom says that a list of the given resource version would hold the
// request had it not been deleted, and yet nothing has shown it. Versions that
// do not compare prove nothing. An adopted request is older than any list of this
// agent. The caller holds the board's lock.
func (w *waiter) missingFrom(version string) bool {
	if w.adopted {
		return !w.seen
	}
	if w.uid == "" || w.seen {
		return false
	}
	order, err := resourceversion.CompareResourceVersion(w.version, version)
	return err == nil && order <= 0
}

// learn records a verdict, unless a final one stands, and wakes the attempt.
// The caller holds the board's lock.
func (w *waiter) learn(v verdict) {
	w.seen = true
	if w.adopted && w.uid == "" {
		// Nobody could keep the UID, which the API server chose. Should this be
		// another object that has taken the name, its certificate is for another
		// key, and the verification refuses it.
		w.uid = v.uid
	}
	if w.latest.phase.final() {
		return
	}
	w.latest = v
	select {
	case w.wake <- struct{}{}:
	default:
	}
}
