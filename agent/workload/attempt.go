// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/signet-spiffe/signet/agent/issue"
	"github.com/signet-spiffe/signet/internal/pki"
)

// Attempt is a request for an SVID that an agent has kept before it was sent, so
// that the next agent takes the answer: an approval that somebody gave by hand, say,
// while the agent was being upgraded. It prints without the key (pki.PrivateKey) and
// holds no token.
type Attempt struct {
	// Request names it in the issuer's words (issue.Sent).
	Request string
	// ID and Key are what the certificate must be for.
	ID  spiffeid.ID
	Key pki.PrivateKey
	// Basis is what was asked with.
	Basis Basis
}

// Attempts keeps the newest attempt of each volume, if it has not ended, as long as
// the volume's storage exists. Calls come in the order of those to Volumes.
type Attempts interface {
	// Keep writes a in place of the attempt before.
	Keep(v Volume, a Attempt) error
	// Drop overwrites and removes what Keep wrote. Idempotent.
	Drop(volumeID string) error
}

// unclaimedFor is how long a mount that an agent before has begun waits for kubelet
// to ask again. Kubelet does so within two and a half minutes, however often it
// failed; and it will not unpublish what it does not believe to be mounted.
const unclaimedFor = 10 * time.Minute

type (
	// Sending: attempt is about to be sent.
	Sending struct{ Attempt uint64 }
	// Awaited: the volume was found after a restart with an attempt under way and
	// without an SVID. Kubelet was not answered and will ask again.
	Awaited struct{ Terms }
)

func (Sending) event() {}
func (Awaited) event() {}

type (
	// Keep makes the attempt known to the next agent.
	Keep struct{ Attempt uint64 }
	// Drop ends that: the attempt has ended.
	Drop struct{}
)

func (Keep) action() {}
func (Drop) action() {}

func (m *Machine) sending(e Sending) []Action {
	if !m.inFlight || e.Attempt != m.attempt {
		return nil
	}
	m.kept = true
	return []Action{Keep(e)}
}

// drop ends the keeping of an attempt that has ended.
func (m *Machine) drop() []Action {
	if !m.kept {
		return nil
	}
	m.kept = false
	return []Action{Drop{}}
}

func (m *Machine) awaited(now time.Time, e Awaited) []Action {
	if m.phase != Absent {
		return nil
	}
	m.phase, m.terms = Pending, e.Terms
	m.unclaimed = now.Add(unclaimedFor)
	m.takeUp(true)
	return []Action{Prepare{}}
}

// takeUp has the next request resume the attempt of the agent before.
func (m *Machine) takeUp(inFlight bool) { m.resume, m.kept = inFlight, inFlight }

// lost is the end of a resumed attempt without an answer that counts: the request is
// gone, or is not what would be asked for now. Nothing is wrong, so nobody is told,
// and it is asked for anew at once, unless nobody waits for it.
func (m *Machine) lost() []Action {
	if !m.unclaimed.IsZero() {
		return m.abandon()
	}
	return append(m.drop(), m.request()...)
}

// abandon ends a mount that kubelet did not come back for.
func (m *Machine) abandon() []Action {
	var actions []Action
	if m.inFlight {
		actions = append(actions, Cancel{Attempt: m.attempt})
	}
	m.reset()
	return append(actions, Remove{})
}

// Await takes up a volume that survived a restart while its first attempt was under
// way and kubelet waited. Kubelet asks again, and joins the attempt; where it does
// not within ten minutes, nothing stays. Call it before Run, and before the issuer
// runs. The only error is a pod that can have no SPIFFE ID.
func (r *Registry) Await(v Volume, attempt Attempt) error {
	id, err := r.ID(v.Pod)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	r.post(v.ID, message{event: Awaited{v.terms()}, volume: &v, id: id, attempt: r.expect(v.ID, &attempt)})
	return nil
}

// expect has the issuer leave a kept request alone until it is resumed. The result
// is nil if there is nothing to resume.
func (r *Registry) expect(volumeID string, a *Attempt) *Attempt {
	if a == nil {
		return nil
	}
	if resumer, ok := r.Issuer.(issue.Resumer); !ok || !resumer.Expect(volumeID, a.Request) {
		r.Log.Warn("an attempt of the agent before cannot be resumed", "volume", volumeID, "request", a.Request)
		return nil
	}
	return a
}

func (r *Registry) abandon(a *Attempt) {
	if resumer, ok := r.Issuer.(issue.Resumer); ok && a != nil {
		resumer.Abandon(a.Request)
	}
}

// current says that an attempt asks for what would be asked for now.
func (r *Registry) current(v Volume, id spiffeid.ID, a *Attempt) bool {
	wanted := r.wanted(v)
	return a.ID == id && !differ(a.Basis.Issuer, wanted.Issuer) && a.Basis.KeyType == wanted.KeyType && a.Basis.Duration == wanted.Duration
}

// ask is one attempt as its goroutine has it.
type ask struct {
	number uint64
	volume Volume
	id     spiffeid.ID
	// resume is the attempt of the agent before to be resumed, if any.
	resume *Attempt
	// kept says that the next agent will find the attempt.
	kept bool
}

// resume waits for the answer to a kept request and verifies it against the kept
// key: whatever has come under that name, it is used only if it is for this key and
// this identity.
func (r *Registry) resume(ctx context.Context, a *ask, progress func(string)) (svid *SVID, finish func(context.Context), err error) {
	if !r.current(a.volume, a.id, a.resume) {
		r.abandon(a.resume)
		return nil, nil, fmt.Errorf("request %s asks for what is no longer wanted: %w", a.resume.Request, issue.ErrGone)
	}
	issued, err := r.Issuer.Issue(ctx, issue.IssueRequest{
		Volume: a.volume.ID, Pod: a.volume.Pod, ID: a.id, Resume: a.resume.Request, Progress: progress,
	})
	if err != nil {
		return nil, nil, err
	}
	return r.verified(issued, a, a.resume.Key, a.resume.Basis)
}

// keep has the attempt kept by the volume's one writer. Without it the attempt goes
// on all the same: it ends with this agent.
func (e *entry) keep(ctx context.Context, a *ask, attempt Attempt) bool {
	if e.registry.Attempts == nil {
		return false
	}
	answer := make(chan bool, 1)
	e.post(message{event: Sending{Attempt: a.number}, attempt: &attempt, kept: answer})
	select {
	case a.kept = <-answer:
		return a.kept
	case <-ctx.Done():
		return false
	}
}

// keepAttempt keeps the attempt that is about to be sent.
func (e *entry) keepAttempt() {
	if err := e.registry.Attempts.Keep(e.volume, *e.sending); err != nil {
		e.complain(err)
		return
	}
	e.kept = true
}

// complain says once at a visible level what a full tmpfs, say, means.
func (e *entry) complain(err error) {
	log := e.log.Debug
	e.registry.unkept.Do(func() { log = e.log.Warn })
	log("could not keep an attempt: were the agent restarted before its answer, it would ask anew (said once)", "error", err)
}

func (e *entry) dropAttempt() {
	if e.registry.Attempts == nil {
		return
	}
	if err := e.registry.Attempts.Drop(e.volume.ID); err != nil {
		e.log.Warn("could not remove an attempt that has ended", "error", err)
	}
}

// left says that an attempt that was cut short was left to the next agent. For the
// volume nothing has happened then.
func (a *ask) left(err error) bool {
	return (a.kept || a.resume != nil) && errors.Is(err, issue.ErrStopping)
}
