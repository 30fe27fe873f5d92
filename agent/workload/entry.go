// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/signet-spiffe/signet/agent/issue"
)

// message is an event with what belongs to it and is no business of the Machine.
type message struct {
	event Event
	// volume and id come with Published and whatever a restart brings.
	volume *Volume
	id     spiffeid.ID
	// svid comes with Issued and Restored.
	svid *SVID
	// joins says of Published that it begins no new volume.
	joins bool
	// answer is where Published wants its result, removed where Unpublished does.
	answer, removed chan error
	// finish comes with Issued and Failed; it is called once the event was dealt
	// with.
	finish func(context.Context)
	// attempt comes with Sending, and with whatever a restart brings if it is to be
	// resumed.
	attempt *Attempt
	// kept is where Sending wants to hear whether the attempt was kept.
	kept chan bool
	// begun is where Renew wants to hear what there was before; nil if there is no
	// such volume.
	begun chan *Renewal
}

// entry is one volume. Messages are handled one after the other by whichever
// goroutine drains the mailbox; there is none while it is empty.
type entry struct {
	registry *Registry
	name     string // The volume ID.
	log      *slog.Logger

	mu       sync.Mutex // Guards the next three. Never held during I/O.
	mailbox  []message
	draining bool
	waitsFor string

	standing atomic.Pointer[standing] // For metrics and whoever lists or watches.

	// The rest belongs to the draining goroutine.
	machine   Machine
	volume    Volume
	id        spiffeid.ID
	subject   *subject
	trouble   *trouble // What has failed last; nil if it was made good.
	current   *SVID    // What is stored.
	candidate *SVID    // What is about to be stored.
	shown     *x509bundle.Bundle
	waiters   []chan error
	removals  []chan error
	attempts  int                // That have not ended.
	giveUp    context.CancelFunc // Of the newest attempt.
	flight    chan struct{}      // Closed when the newest attempt has ended.
	before    *Attempt           // Of the agent before, to be resumed.
	sending   *Attempt           // What is about to be sent, and whether
	kept      bool               // the next agent will find it.
}

func (e *entry) post(m message) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mailbox = append(e.mailbox, m)
	if !e.draining {
		e.draining = true
		go e.drain()
	}
}

func (e *entry) drain() {
	for {
		m, ok := e.next()
		if ok {
			e.handle(m)
			continue
		}
		if e.registry.forget(e) {
			return
		}
	}
}

func (e *entry) next() (message, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.mailbox) == 0 {
		e.mailbox = nil // Lets go of the array behind it.
		return message{}, false
	}
	m := e.mailbox[0]
	e.mailbox = e.mailbox[1:]
	return m, true
}

// expected reports whether a publish waits in the mailbox.
func (e *entry) expected() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.ContainsFunc(e.mailbox, func(m message) bool {
		_, publish := m.event.(Published)
		return publish
	})
}

func (e *entry) handle(m message) {
	switch event := m.event.(type) {
	case Published:
		if !e.admit(m) {
			return
		}
	case Restored:
		e.adopt(m)
		e.current = m.svid
	case Resumed, Awaited:
		e.adopt(m)
	case Sending:
		e.sending, e.kept = m.attempt, false
	case Issued:
		e.attempts--
		e.candidate = m.svid
	case BundleChanged:
		bundle, _ := e.registry.Trust.Bundle()
		if bundle == nil {
			return
		}
		if bundle.Equal(e.shown) { // A store that was tried again took it in already.
			e.reconsider()
			return
		}
	case Failed:
		e.attempts--
		e.report(event)
	case nil: // An attempt was left to the next agent.
		e.attempts--
		return
	case Renew:
		e.renew(m.begun)
		return
	case Unpublished:
		e.removals = append(e.removals, m.removed)
	}
	if _, asked := m.event.(Reissue); !asked {
		e.step(m.event)
	}
	e.candidate, e.sending = nil, nil // Stored, or not wanted.
	if m.kept != nil {
		m.kept <- e.kept // Buffered.
	}
	switch m.event.(type) {
	case Restored, Issued, BundleChanged, Reissue, Tick:
		e.reconsider()
	}
	if m.finish != nil {
		go e.finish(m.finish)
	}
}

// admit takes a Publish call in, unless it contradicts what is there.
func (e *entry) admit(m message) bool {
	v := *m.volume
	if err := e.contradiction(v); e.machine.Phase() != Absent && err != nil {
		m.answer <- err
		return false
	}
	switch {
	case e.machine.Phase() != Absent:
	case m.joins:
		m.answer <- fmt.Errorf("volume %s of pod %s/%s ended while it was published again: %w", v.ID, v.Pod.Namespace, v.Pod.Name, ErrUnpublished)
		return false
	default:
		e.adopt(m)
	}
	if !v.Token.IsZero() && !v.Token.Equal(e.volume.Token) {
		e.volume.Token = v.Token
		e.step(TokenRefreshed{})
	}
	e.waiters = append(e.waiters, m.answer)
	return true
}

// contradiction says in what v is another volume than the one published under its
// ID. Kubelet never sends such a thing: a pod's volumes do not change.
func (e *entry) contradiction(v Volume) error {
	sameGroup := v.GID == e.volume.GID || v.GID != nil && e.volume.GID != nil && *v.GID == *e.volume.GID
	switch {
	case v.Pod != e.volume.Pod:
		return fmt.Errorf("%w: volume %s belongs to pod %s/%s (%s), not to %s/%s (%s)", ErrInvalid, v.ID,
			e.volume.Pod.Namespace, e.volume.Pod.Name, e.volume.Pod.UID, v.Pod.Namespace, v.Pod.Name, v.Pod.UID)
	case v.Attributes != e.volume.Attributes || !sameGroup:
		return fmt.Errorf("%w: volume %s of pod %s/%s is published with other attributes or another group; they cannot change while it is",
			ErrInvalid, v.ID, v.Pod.Namespace, v.Pod.Name)
	}
	return nil
}

func (e *entry) adopt(m message) {
	e.volume, e.id, e.before = *m.volume, m.id, m.attempt
	e.subject, e.trouble = &subject{pod: e.volume.Pod, id: e.id, keyType: e.registry.keyType(e.volume.Attributes)}, nil
	e.log = e.registry.Log.With("volume", e.volume.ID, "namespace", e.volume.Pod.Namespace, "pod", e.volume.Pod.Name,
		"uid", e.volume.Pod.UID, "spiffe_id", e.id.String())
}

// step feeds the machine and does what it says. Results of actions that are done
// here and now go back in before the next action.
func (e *entry) step(event Event) {
	for _, action := range e.machine.Step(time.Now(), event) {
		switch a := action.(type) {
		case Prepare:
			e.step(Prepared{Err: e.prepare(), Jitter: jitter()})
		case Request:
			e.request(a)
		case Keep:
			e.keepAttempt()
		case Drop:
			e.dropAttempt()
		case Cancel:
			e.giveUp()
		case Store:
			e.step(Stored{Err: e.store(), Jitter: jitter()})
		case Push:
			e.registry.Volumes.Push(e.volume, Content{SVID: e.current, Bundle: e.shown})
		case Schedule:
			e.registry.timers.set(e, a.At)
		case Answer:
			e.publishStanding() // Whoever is answered may look.
			e.answer(a.Err)
		case Remove:
			e.remove()
		case Notify:
			e.notify(a)
		}
	}
	e.publishStanding()
}

// request starts an attempt in a goroutine of its own. It begins when the one
// before it has ended, so that a volume never has two requests.
func (e *entry) request(r Request) {
	ctx, cancel := context.WithCancel(e.registry.life)
	before, done := e.flight, make(chan struct{})
	e.giveUp, e.flight = cancel, done
	e.attempts++
	a := &ask{number: r.Attempt, volume: e.volume, id: e.id}
	if r.Resume {
		a.resume, e.before = e.before, nil
	}
	purpose := purposeMount
	if e.machine.Phase() == Ready {
		purpose = purposeRenewal
	}
	go func() {
		defer close(done)
		defer cancel()
		if before != nil {
			<-before
		}
		svid, finish, err := e.obtain(ctx, purpose, a)
		m := message{svid: svid, finish: finish}
		switch {
		case err != nil && a.left(err):
		case err != nil:
			m.event = Failed{Attempt: a.number, Err: err, Final: final(err), Lost: errors.Is(err, issue.ErrGone), Jitter: jitter()}
		default:
			m.event = Issued{Attempt: a.number, NotBefore: svid.NotBefore(), NotAfter: svid.NotAfter(), Jitter: jitter()}
		}
		e.post(m)
	}()
}

// obtain waits for the attempt's turn and obtains an SVID.
func (e *entry) obtain(ctx context.Context, p purpose, a *ask) (svid *SVID, finish func(context.Context), err error) {
	if err := e.registry.turns.take(ctx, p, e.progress); err != nil {
		if !a.left(err) {
			e.registry.abandon(a.resume)
		}
		return nil, nil, err
	}
	defer e.registry.turns.end(p)
	limit := e.registry.patience(e.registry.duration(a.volume.Attributes))
	silence := fmt.Errorf("%w: no answer within %s", issue.ErrUnavailable, limit)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, silence)
	defer cancel()
	start := time.Now()
	if a.resume != nil {
		svid, finish, err = e.registry.resume(ctx, a, e.progress)
	} else {
		svid, finish, err = e.registry.obtain(ctx, a, e.progress, func(made Attempt) bool { return e.keep(ctx, a, made) })
	}
	if err != nil && context.Cause(ctx) == silence && !errors.Is(err, silence) {
		err = fmt.Errorf("%w: %w", silence, err)
	}
	e.registry.metrics.issuance(p, err, time.Since(start), a.resume != nil)
	return svid, finish, err
}

// attemptTimeout bounds one attempt for an SVID of the given lifetime. Somebody
// who is away is waited for, since an answer that comes is the quickest recovery
// there is; but an issuer that never answers, one that was deleted for instance,
// must not hold its turn for ever, nor keep a volume from asking the issuer that
// took its place.
func attemptTimeout(lifetime time.Duration) time.Duration {
	return max(time.Minute, min(lifetime/6, 5*time.Minute))
}

func (e *entry) prepare() error {
	err := e.registry.Volumes.Prepare(e.volume)
	if err != nil {
		e.log.Error("could not prepare the volume", "error", err)
		e.failed(fmt.Errorf("prepare the volume: %w", err), true)
	}
	return err
}

func (e *entry) store() error {
	svid := e.candidate
	if svid == nil {
		svid = e.current
	}
	bundle, _ := e.registry.Trust.Bundle()
	if err := e.registry.Volumes.Store(e.volume, Content{SVID: svid, Bundle: bundle}); err != nil {
		e.log.Error("could not store the SVID", "error", err)
		e.failed(err, true)
		return err
	}
	e.recovered(svid != e.current)
	if svid != e.current {
		leaf := svid.Chain[0]
		e.log.Info("SVID stored", "serial", leaf.SerialNumber.Text(16), "not_after", leaf.NotAfter)
	}
	e.current, e.shown = svid, bundle
	return nil
}

func (e *entry) remove() {
	e.registry.timers.unset(e)
	if forgetter, ok := e.registry.Issuer.(issue.Forgetter); ok {
		forgetter.Forget(e.volume.ID)
	}
	e.registry.abandon(e.before)
	e.before = nil
	err := e.registry.Volumes.Remove(e.volume.ID)
	if err != nil {
		e.log.Error("could not remove the volume's storage", "error", err)
	}
	e.current, e.candidate, e.shown, e.trouble = nil, nil, nil, nil
	e.volume.Token = issue.Token{}
	e.publishStanding()
	for _, removed := range e.removals {
		removed <- err
	}
	e.removals = nil
}

func (e *entry) answer(err error) {
	for _, waiter := range e.waiters {
		waiter <- err // Buffered; nobody may be there any more.
	}
	e.waiters = nil
}

// report makes a failed attempt visible: in the log, and to whoever waits.
func (e *entry) report(failed Failed) {
	if givenUp(failed.Err) {
		return
	}
	if failed.Lost {
		e.log.Info("the request of the agent before is of no use any more", "reason", failed.Err)
		return
	}
	e.failed(failed.Err, false)
	attributes := []any{"error", failed.Err}
	if e.current != nil {
		attributes = append(attributes, "not_after", e.current.NotAfter())
	}
	e.log.Warn("no SVID from this attempt", attributes...)
}

// givenUp says that an attempt ended because somebody wanted that.
func givenUp(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, issue.ErrStopping)
}

func (e *entry) progress(what string) {
	e.mu.Lock()
	e.waitsFor = what
	e.mu.Unlock()
	e.registry.watchers.changed(e.name)
}

func (e *entry) status() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.waitsFor == "" {
		return "not requested yet"
	}
	return e.waitsFor
}

// finishTimeout bounds the clean-up of one request; its owner reference is the
// backstop.
const finishTimeout = time.Minute

func (e *entry) finish(f func(context.Context)) {
	ctx, cancel := context.WithTimeout(e.registry.life, finishTimeout)
	defer cancel()
	f(ctx)
}

func jitter() float64 { return rand.Float64() }
