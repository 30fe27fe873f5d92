// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/signet-spiffe/signet/agent/issue"
)

// Notice is what the owner of a pod should hear about its identity.
type Notice int

const (
	// NoticeIssued: the volume has its first SVID. Told once in a volume's life,
	// not for renewals and not after a restart.
	NoticeIssued Notice = iota
	// NoticeFailed: an attempt was refused, or the third in a row or a later one
	// brought nothing. Attempts that merely found nobody to decide are tried
	// again quietly at first.
	NoticeFailed
	// NoticeOverdue: half of the time between the planned renewal and the expiry
	// is over (five sixths of the life) without success. Told once per SVID.
	NoticeOverdue
	// NoticeExpired: the SVID in use has expired. Told once per SVID.
	NoticeExpired
)

// String names the notice for logs and transcripts.
func (n Notice) String() string {
	switch n {
	case NoticeIssued:
		return "issued"
	case NoticeFailed:
		return "failed"
	case NoticeOverdue:
		return "overdue"
	case NoticeExpired:
		return "expired"
	}
	return fmt.Sprintf("notice(%d)", int(n))
}

// Notification is a Notice with all that can be said about it. It holds no
// secret.
type Notification struct {
	Notice Notice
	// Volume is kubelet's volume ID.
	Volume string
	Pod    issue.Pod
	ID     spiffeid.ID
	// NotAfter is when the SVID in use expires; zero when there is none, which
	// tells a mount from a renewal.
	NotAfter time.Time
	// Err is why an attempt failed; of NoticeFailed only.
	Err error
	// Status says in plain words what the renewal waits for or why its last
	// attempt failed; of NoticeOverdue and NoticeExpired only. Empty if no attempt
	// has begun.
	Status string
}

// Notifier passes notifications on to whoever looks after the pods.
type Notifier interface {
	// Notify must not block and must not fail: what cannot be passed on is lost.
	Notify(n Notification)
}

// Lateness is how a volume stands with its renewal.
type Lateness int

const (
	// OnTime: nothing to worry about, or nothing there.
	OnTime Lateness = iota
	// Overdue: the renewal should have succeeded by now.
	Overdue
	// Expired: the SVID in use has expired.
	Expired
)

// quietFailures is how many attempts in a row may find nobody to decide before
// that is worth telling: some seconds' worth.
const quietFailures = 2

// overdueAt is five sixths into the lifetime, or, where the renewal is planned for
// later than two thirds, half of the way from there to the expiry: a renewal has
// had half of its time then. A restart late in an SVID's life is such a case.
func overdueAt(renew, notBefore, notAfter time.Time) time.Time {
	at := notBefore.Add(notAfter.Sub(notBefore) * 5 / 6)
	if half := renew.Add(notAfter.Sub(renew) / 2); half.After(at) {
		return half
	}
	return at
}

// Lateness tells how the volume stands with its renewal, as far as was told.
func (m *Machine) Lateness() Lateness { return m.late }

// watchOver begins the watch over an SVID, whose renewal has been planned.
func (m *Machine) watchOver(notBefore, notAfter time.Time) {
	m.notAfter = notAfter
	m.late = OnTime
	m.overdue = overdueAt(m.renew, notBefore, notAfter)
}

// alarm is when there will be something to tell if nothing changes; zero if never.
func (m *Machine) alarm() time.Time {
	switch {
	case m.phase != Ready || m.late == Expired:
		return time.Time{}
	case m.late == OnTime && m.overdue.Before(m.notAfter):
		return m.overdue
	}
	return m.notAfter
}

// notices tells what has become true of the SVID's age. After a long sleep only
// the worst is told.
func (m *Machine) notices(now time.Time) []Action {
	switch {
	case !reached(m.alarm(), now):
		return nil
	case !now.Before(m.notAfter):
		m.late = Expired
		return []Action{Notify{Notice: NoticeExpired}}
	}
	m.late = Overdue
	return []Action{Notify{Notice: NoticeOverdue}}
}

// tellFailure says whether an attempt that failed is worth telling.
func (m *Machine) tellFailure(e Failed) []Action {
	if !e.Final && m.failures <= quietFailures {
		return nil
	}
	return []Action{Notify{Notice: NoticeFailed, Err: e.Err}}
}

// notify adds to a notice what the Machine does not know.
func (e *entry) notify(a Notify) {
	if e.registry.Notifier == nil || givenUp(a.Err) {
		return
	}
	n := Notification{Notice: a.Notice, Volume: e.volume.ID, Pod: e.volume.Pod, ID: e.id, Err: a.Err}
	if e.current != nil {
		n.NotAfter = e.current.NotAfter()
	}
	if a.Notice == NoticeOverdue || a.Notice == NoticeExpired {
		n.Status = e.awaits()
	}
	e.registry.Notifier.Notify(n)
}

// awaits is what the newest attempt waits for, or why it failed.
func (e *entry) awaits() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.waitsFor
}
