// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"fmt"
	"time"
)

// Phase is where a volume stands.
type Phase int

const (
	// Absent: there is nothing, and nobody asked for anything.
	Absent Phase = iota
	// Pending: somebody asked; there is no SVID yet.
	Pending
	// Ready: an SVID is stored. It may be renewing at the same time.
	Ready
)

// String names the phase for logs and metrics.
func (p Phase) String() string {
	switch p {
	case Absent:
		return "absent"
	case Pending:
		return "pending"
	case Ready:
		return "ready"
	}
	return fmt.Sprintf("phase(%d)", int(p))
}

// Event is something that happened to a volume.
type Event interface{ event() }

type (
	// Published: kubelet asked for the volume. The terms are those of the first
	// time; they do not change while the volume is published.
	Published struct{ Terms }
	// Prepared answers Prepare.
	Prepared struct {
		Err error
		// Jitter in [0, 1) spreads the retry after an error.
		Jitter float64
	}
	// Issued: attempt brought a certificate that passed verification.
	Issued struct {
		Attempt             uint64
		NotBefore, NotAfter time.Time
		// Jitter in [0, 1) spreads the renewal.
		Jitter float64
	}
	// Failed: attempt brought no certificate.
	Failed struct {
		Attempt uint64
		Err     error
		// Final says that trying the same again is of no use before somebody
		// changes something: a denial, for instance.
		Final bool
		// Lost says that a resumed attempt has no answer: its request is gone, or
		// asks for what is no longer wanted.
		Lost bool
		// Jitter in [0, 1) spreads the retry.
		Jitter float64
	}
	// Stored answers Store.
	Stored struct {
		Err error
		// Jitter in [0, 1) spreads the retry after an error.
		Jitter float64
	}
	// Tick: the time given in Schedule has come (or is thought to have).
	Tick struct{}
	// BundleChanged: the trust bundle is another one.
	BundleChanged struct{}
	// Reissue: what the SVID was issued with is no longer what is configured. It
	// is to be replaced within Window, at the point of it that Jitter says.
	Reissue struct {
		Window time.Duration
		// Jitter in [0, 1) spreads the volumes of a node over the window.
		Jitter float64
	}
	// TokenRefreshed: kubelet brought a fresh service account token.
	TokenRefreshed struct{}
	// Restored: the volume was found with a valid SVID after a restart.
	Restored struct {
		Terms
		NotBefore, NotAfter time.Time
		Jitter              float64
		// InFlight says that an attempt was under way and is to be resumed.
		InFlight bool
	}
	// Resumed: the volume was found after a restart, published without waiting
	// for an SVID and still without one.
	Resumed struct {
		Terms
		// InFlight is as in Restored.
		InFlight bool
	}
	// Unpublished: kubelet wants the volume gone.
	Unpublished struct{}
)

func (Published) event()      {}
func (Prepared) event()       {}
func (Issued) event()         {}
func (Failed) event()         {}
func (Stored) event()         {}
func (Tick) event()           {}
func (BundleChanged) event()  {}
func (Reissue) event()        {}
func (TokenRefreshed) event() {}
func (Restored) event()       {}
func (Resumed) event()        {}
func (Unpublished) event()    {}

// Terms are what the lifecycle of a volume depends on beside events. The zero
// value is usual.
type Terms struct {
	// NoWait: Publish is answered as soon as the volume is prepared.
	NoWait bool
	// RenewBefore is how long before expiry an SVID is renewed; zero for a third
	// of its lifetime.
	RenewBefore time.Duration
}

// Action is something to be done for a volume, in the order given.
type Action interface{ action() }

type (
	// Prepare makes the volume's storage and socket. Its result comes back as
	// Prepared before any other event.
	Prepare struct{}
	// Request starts attempt. Its result comes back as Issued or Failed, later.
	Request struct {
		Attempt uint64
		// Resume has it take the answer to the attempt of the agent before.
		Resume bool
	}
	// Cancel gives attempt up; its result is no longer wanted.
	Cancel struct{ Attempt uint64 }
	// Store writes key, certificate and bundle, all at once. Its result comes
	// back as Stored before any other event.
	Store struct{}
	// Push shows streams what was stored.
	Push struct{}
	// Schedule asks for a Tick at At, in place of any earlier wish.
	Schedule struct{ At time.Time }
	// Answer ends the wait of every Publish call.
	Answer struct{ Err error }
	// Remove ends streams and timers, wipes the key and removes the storage.
	Remove struct{}
	// Notify tells the pod's owner. Err is why, of NoticeFailed.
	Notify struct {
		Notice Notice
		Err    error
	}
)

func (Prepare) action()  {}
func (Request) action()  {}
func (Cancel) action()   {}
func (Store) action()    {}
func (Push) action()     {}
func (Schedule) action() {}
func (Answer) action()   {}
func (Remove) action()   {}
func (Notify) action()   {}

// Machine is the lifecycle of one volume. The zero value is a volume that is
// Absent. It is not safe for concurrent use; its Registry entry owns it.
type Machine struct {
	phase Phase
	terms Terms
	// promised says that kubelet was told that the volume is published although
	// it may have no SVID yet. From then on only Unpublished takes it away: a
	// container may be using it, and kubelet will not ask for it again.
	promised bool
	// unprepared says that the next attempt has to begin with Prepare.
	unprepared bool
	// attempt numbers requests, over the life of the Machine. inFlight says that
	// the newest has not ended.
	attempt  uint64
	inFlight bool
	// resume says that the next request resumes the attempt of the agent before,
	// kept that the newest attempt is known to the next agent.
	resume, kept bool
	// unclaimed is when a mount that an agent before has begun is given up; zero
	// once kubelet has asked for it again.
	unclaimed time.Time
	// failures counts failed attempts and failed stores since the last success.
	failures int
	// renew is when the next attempt is to start, restore when the next attempt
	// to store what is known already; zero means not planned.
	renew, restore time.Time
	// early says that renew was brought forward by Reissue, retrying that it is
	// another try after a failure.
	early, retrying bool
	// notAfter is the expiry of the SVID in use; issued is the one that is being
	// stored, if any.
	notAfter time.Time
	issued   *Issued
	// late is what was told of the SVID in use, overdue when it will be told that
	// its renewal is.
	late    Lateness
	overdue time.Time
}

// Phase tells where the volume stands.
func (m *Machine) Phase() Phase { return m.phase }

// Step takes one event at time now and returns what to do. Events that come too
// late (an attempt given up, a volume removed) are no events: nothing is done.
//
// Certificates expire by the wall clock, so that is what all plans are made in. A
// monotonic reading in now would stand still while the machine is suspended.
func (m *Machine) Step(now time.Time, event Event) []Action {
	now = now.Round(0)
	switch e := event.(type) {
	case Published:
		return m.published(e)
	case Prepared:
		return m.prepared(now, e)
	case Issued:
		return m.obtained(e)
	case Failed:
		return m.failed(now, e)
	case Stored:
		return m.stored(now, e)
	case Tick:
		return m.tick(now)
	case BundleChanged:
		return m.bundleChanged()
	case Reissue:
		return m.reissue(now, e)
	case TokenRefreshed:
		return m.tokenRefreshed()
	case Renew:
		return m.renewNow()
	case Restored:
		return m.restored(now, e)
	case Resumed:
		return m.resumed(e)
	case Awaited:
		return m.awaited(now, e)
	case Sending:
		return m.sending(e)
	case Unpublished:
		return m.unpublished()
	}
	return nil
}

func (m *Machine) published(e Published) []Action {
	m.unclaimed = time.Time{}
	switch {
	case m.phase == Absent:
		m.phase, m.terms = Pending, e.Terms
		return []Action{Prepare{}}
	case m.phase == Ready || m.promised:
		return []Action{Answer{}}
	}
	return nil // Pending: the one that is under way answers both.
}

func (m *Machine) prepared(now time.Time, e Prepared) []Action {
	switch {
	case m.phase == Absent:
		return nil
	case m.phase == Ready && e.Err != nil:
		// Restored without a socket, perhaps: the files are renewed all the same.
		m.failures++
		m.unprepared = true
		m.restore = now.Add(m.delay(now, e.Jitter))
		return m.schedule()
	case m.phase == Ready:
		m.unprepared = false
		return nil
	case e.Err != nil && m.promised:
		m.unprepared = true
		return m.retry(now, e.Jitter)
	case e.Err != nil:
		return m.giveUp(e.Err)
	case m.terms.NoWait:
		m.unprepared, m.promised = false, true
		return append([]Action{Answer{}}, m.request()...)
	}
	return append(m.request(), m.schedule()...)
}

func (m *Machine) request() []Action {
	m.attempt++
	m.inFlight = true
	m.renew, m.early, m.retrying = time.Time{}, false, false
	resume := m.resume
	m.resume = false
	return []Action{Request{Attempt: m.attempt, Resume: resume}}
}

// giveUp ends a volume that never had an SVID. Kubelet was told and will ask
// again; it will not unpublish what it does not believe to be mounted, so
// nothing may stay behind.
func (m *Machine) giveUp(err error) []Action {
	m.reset()
	return []Action{Remove{}, Answer{Err: err}}
}

func (m *Machine) reset() { *m = Machine{attempt: m.attempt} }

func (m *Machine) obtained(e Issued) []Action {
	if !m.inFlight || e.Attempt != m.attempt {
		return nil
	}
	m.inFlight = false
	m.issued = &e
	return []Action{Store{}}
}

func (m *Machine) stored(now time.Time, e Stored) []Action {
	issued := m.issued
	m.issued = nil
	switch {
	case m.phase == Absent:
		return nil
	case e.Err != nil && m.phase == Pending && !m.promised:
		return m.giveUp(e.Err)
	case e.Err != nil && issued != nil:
		return append(m.retry(now, e.Jitter), m.drop()...)
	case e.Err != nil:
		m.failures++
		m.restore = now.Add(m.delay(now, e.Jitter))
		return m.schedule()
	case issued == nil: // The bundle changed; the SVID is the same.
		m.stowed()
		return append([]Action{Push{}}, m.schedule()...)
	}
	first := m.phase == Pending
	m.phase = Ready
	m.failures = 0
	m.notAfter = issued.NotAfter
	m.stowed()
	m.renew, m.retrying = m.renewAt(now, issued.NotBefore, issued.NotAfter, issued.Jitter), false
	if soonest := now.Add(m.notAfter.Sub(now) / 10); m.renew.Before(soonest) {
		// Issuers may date certificates back, or give less life than renewals are
		// to begin before its end: no reason to ask without end.
		m.renew = soonest
	}
	m.watchOver(issued.NotBefore, issued.NotAfter)
	actions := append(append([]Action{Push{}}, m.schedule()...), Answer{})
	if first {
		actions = append(actions, Notify{Notice: NoticeIssued})
	}
	return append(actions, m.drop()...) // Last: kubelet need not wait for it.
}

// stowed ends the plan to store again, unless there is still a socket to make.
func (m *Machine) stowed() {
	if !m.unprepared {
		m.restore = time.Time{}
	}
}

func (m *Machine) failed(now time.Time, e Failed) []Action {
	if !m.inFlight || e.Attempt != m.attempt {
		return nil
	}
	m.inFlight = false
	switch {
	case e.Lost:
		return m.lost()
	case m.phase == Pending && e.Final && !m.promised:
		return append(m.giveUp(e.Err), Notify{Notice: NoticeFailed, Err: e.Err})
	case m.phase == Pending && !m.unclaimed.IsZero():
		return m.abandon() // There is nothing to resume any more.
	case m.phase == Pending && e.Final:
		m.failures++
		m.renew, m.retrying = now.Add(refusedDelay(m.failures, e.Jitter)), true
	default:
		m.failures++
		m.renew, m.retrying = now.Add(m.delay(now, e.Jitter)), true
	}
	actions := append(m.drop(), m.schedule()...)
	return append(actions, m.tellFailure(e)...)
}

func (m *Machine) retry(now time.Time, jitter float64) []Action {
	m.failures++
	m.renew, m.retrying = now.Add(m.delay(now, jitter)), true
	return m.schedule()
}

func (m *Machine) delay(now time.Time, jitter float64) time.Duration {
	return retryDelay(m.failures, m.notAfter.Sub(now), jitter)
}

// schedule asks for a tick at the earliest of the plans.
func (m *Machine) schedule() []Action {
	var at time.Time
	for _, plan := range []time.Time{m.renew, m.restore, m.alarm(), m.unclaimed} {
		if at.IsZero() || (!plan.IsZero() && plan.Before(at)) {
			at = plan
		}
	}
	if at.IsZero() {
		return nil
	}
	return []Action{Schedule{At: at}}
}

func (m *Machine) tick(now time.Time) []Action {
	if m.phase == Absent {
		return nil
	}
	if reached(m.unclaimed, now) {
		return m.abandon()
	}
	m.heedClock(now)
	actions := m.notices(now)
	if reached(m.renew, now) && !m.inFlight {
		actions = append(actions, m.again()...)
	}
	again := reached(m.restore, now)
	if again {
		m.restore = time.Time{}
	}
	actions = append(actions, m.schedule()...)
	if again && m.unprepared {
		actions = append(actions, Prepare{})
	}
	if again { // Last, since what comes of it may schedule anew.
		actions = append(actions, Store{})
	}
	return actions
}

// heedClock: another try that is further away than any wait there is was planned
// by a clock that has been set back since. Renewals and expiries are left where
// they are: those are times in a certificate, and true by any clock.
func (m *Machine) heedClock(now time.Time) {
	latest := now.Add(longestWait)
	if m.retrying && m.renew.After(latest) {
		m.renew = latest
	}
	if m.restore.After(latest) {
		m.restore = latest
	}
}

// again begins the next attempt where the last one ended.
func (m *Machine) again() []Action {
	if m.unprepared && m.phase == Pending {
		m.renew, m.retrying = time.Time{}, false
		return []Action{Prepare{}}
	}
	return m.request()
}

func reached(at, now time.Time) bool { return !at.IsZero() && !now.Before(at) }

func (m *Machine) bundleChanged() []Action {
	if m.phase != Ready {
		return nil // The first Store takes the bundle as it is then.
	}
	return []Action{Store{}}
}

// reissue brings the next attempt forward and never puts it off. One that is in
// flight is left alone: whoever sends Reissue looks again when its result is
// stored. One that was brought forward already keeps its place in the window,
// unless the clock was set back and the window with it.
func (m *Machine) reissue(now time.Time, e Reissue) []Action {
	placed := m.early && !m.renew.After(now.Add(e.Window))
	if m.phase != Ready || m.inFlight || placed {
		return nil
	}
	at := now.Add(time.Duration(e.Jitter * float64(e.Window)))
	if !m.renew.IsZero() && !at.Before(m.renew) {
		return nil
	}
	m.renew, m.early, m.retrying = at, true, false
	return m.schedule()
}

// tokenRefreshed: a volume whose last attempt failed may have failed for want of
// a token.
func (m *Machine) tokenRefreshed() []Action {
	if m.phase == Absent || m.inFlight || m.failures == 0 {
		return nil
	}
	return m.again()
}

func (m *Machine) restored(now time.Time, e Restored) []Action {
	if m.phase != Absent {
		return nil
	}
	m.phase, m.terms = Ready, e.Terms
	m.notAfter = e.NotAfter
	m.renew = m.renewAt(now, e.NotBefore, e.NotAfter, e.Jitter)
	m.watchOver(e.NotBefore, e.NotAfter)
	m.takeUp(e.InFlight)
	// Files and socket are made anew from the state that survived: a crash may
	// have come between the two.
	actions := []Action{Prepare{}, Store{}}
	if e.InFlight {
		actions = append(actions, m.request()...)
	}
	return actions
}

func (m *Machine) resumed(e Resumed) []Action {
	if m.phase != Absent {
		return nil
	}
	m.phase, m.terms, m.promised = Pending, e.Terms, true
	m.terms.NoWait = true
	m.takeUp(e.InFlight)
	return []Action{Prepare{}}
}

func (m *Machine) unpublished() []Action {
	var actions []Action
	if m.inFlight {
		actions = append(actions, Cancel{Attempt: m.attempt})
	}
	m.reset()
	return append(actions, Remove{}, Answer{Err: ErrUnpublished})
}

func (m *Machine) renewAt(now, notBefore, notAfter time.Time, jitter float64) time.Time {
	return renewAt(now, notBefore, notAfter, m.terms.RenewBefore, jitter)
}

// renewAt is renewBefore before the end of the lifetime, less up to a tenth of
// the time until then by jitter. Without renewBefore, or when the lifetime is
// hardly longer than that, it is two thirds into the lifetime, less up to a tenth
// of the lifetime. It is never before now.
func renewAt(now, notBefore, notAfter time.Time, renewBefore time.Duration, jitter float64) time.Time {
	lifetime := notAfter.Sub(notBefore)
	at, spread := lifetime*2/3, lifetime/10
	if renewBefore > 0 && renewBefore <= lifetime/10*9 {
		at = lifetime - renewBefore
		spread = at / 10
	}
	planned := notBefore.Add(at - time.Duration(jitter*float64(spread)))
	if planned.Before(now) {
		return now
	}
	return planned
}

const (
	firstRetry  = time.Second
	longestWait = 5 * time.Minute
	// urgentWait caps the wait when little or nothing of the lifetime is left,
	// so that a recovered issuer is noticed within seconds.
	urgentWait = 5 * time.Second
	// refusedWait caps the wait of a volume that never had an SVID after it was
	// refused one. It is kubelet's own pace with a mount that fails.
	refusedWait = 2 * time.Minute
)

// refusedDelay doubles with each failure. Up to a fifth of the delay is taken off
// by jitter.
func refusedDelay(failures int, jitter float64) time.Duration {
	return backoff(failures, refusedWait, jitter)
}

// retryDelay doubles with each failure, up to an eighth of the remaining life:
// an SVID gets at least a handful of tries before it expires, however short it
// lives. Up to a fifth of the delay is taken off by jitter.
func retryDelay(failures int, remaining time.Duration, jitter float64) time.Duration {
	return backoff(failures, min(max(remaining/8, urgentWait), longestWait), jitter)
}

func backoff(failures int, limit time.Duration, jitter float64) time.Duration {
	delay := limit
	if failures < 10 {
		delay = min(firstRetry<<(failures-1), limit)
	}
	return delay - time.Duration(jitter*float64(delay)/5)
}
