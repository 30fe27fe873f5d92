// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// simulation plays the world around one Machine: storage, issuer, timer and
// kubelet, with everything happening in an order that the seed decides. After
// each event it holds the machine to what a volume promises.
type simulation struct {
	random  *rand.Rand
	machine Machine
	now     time.Time
	history []string

	terms    Terms    // Of this life of the volume.
	told     bool     // Kubelet heard that the volume is published, and will not ask again.
	broken   string   // What a step did that it must not do.
	prepared bool     // Storage and socket exist.
	stored   *lease   // What the files show.
	pushed   *lease   // What streams show.
	offered  *lease   // What the next Store would write, if not stored again.
	inFlight []uint64 // Attempts that were started and have not ended.
	given    map[uint64]bool
	timer    time.Time // Zero: none.
	waiting  int       // Publish calls that have no answer.
	bundle   int
	// notices is what was told of the stored lease, and whether the first issuance
	// was told in this life of the volume.
	notices   map[Notice]int
	announced int
	restored  bool
	// back is by how much the clock was ever set back.
	back     time.Duration
	notified int // Notices so far.
	// kept is the attempt that the next agent would find; resumable says that this
	// one has found it and has not resumed it yet, resumed which attempts do.
	kept      *keptAttempt
	resumable bool
	resumed   map[uint64]bool
	// unclaimed is when a mount of the agent before is given up; zero if kubelet has
	// asked, or for any other volume.
	unclaimed time.Time
}

// keptAttempt is by its number, or of an agent before.
type keptAttempt struct {
	attempt uint64
	old     bool
}

// lease is an SVID as far as the machine's promises go: its attempt stands for
// the key and the certificate at once.
type lease struct {
	attempt             uint64
	notBefore, notAfter time.Time
	bundle              int
}

func TestRandomInterleavings(t *testing.T) {
	seeds := 20_000
	if testing.Short() {
		seeds = 1_000
	}
	for seed := range seeds {
		s := &simulation{random: rand.New(rand.NewPCG(uint64(seed), 1)), now: epoch, given: map[uint64]bool{}, resumed: map[uint64]bool{}, notices: map[Notice]int{}}
		for range 60 {
			if broken := s.round(); broken != "" {
				t.Fatalf("seed %d: %s\n%s", seed, broken, strings.Join(s.history, "\n"))
			}
		}
	}
}

// round lets one thing happen and says which promise it broke.
func (s *simulation) round() string {
	s.now = s.now.Add(time.Duration(s.random.IntN(20_000)) * time.Millisecond)
	if s.random.IntN(40) == 0 {
		s.now = s.now.Add(time.Hour) // Suspended, or the clock was set.
	}
	if s.random.IntN(40) == 0 {
		s.setBack()
	}
	event, planned, notified := s.event(), s.timer, s.notified
	s.step(event)
	if failed, ok := event.(Failed); ok && failed.Lost && !s.given[failed.Attempt] {
		if broken := s.checkLost(notified); broken != "" {
			return broken
		}
	}
	if reissue, ok := event.(Reissue); ok {
		if broken := s.checkReissue(reissue, planned); broken != "" {
			return broken
		}
	}
	return s.check()
}

// setBack sets the clock back by an hour. The timers tell every volume.
func (s *simulation) setBack() {
	s.now = s.now.Add(-time.Hour)
	s.history = append(s.history, "-- clock set back --")
	s.back += time.Hour
	s.step(Tick{})
}

func (s *simulation) event() Event {
	for {
		switch s.random.IntN(14) {
		case 0, 1:
			return s.publish()
		case 2:
			return Unpublished{}
		case 3, 4, 5:
			if len(s.inFlight) == 0 {
				continue
			}
			attempt := s.land()
			s.offered = &lease{attempt: attempt, notBefore: s.now, notAfter: s.now.Add(time.Minute)}
			return Issued{Attempt: attempt, NotBefore: s.now, NotAfter: s.now.Add(time.Minute), Jitter: s.random.Float64()}
		case 6:
			if len(s.inFlight) == 0 {
				continue
			}
			attempt := s.land()
			lost := s.resumed[attempt] && s.random.IntN(2) == 0
			return Failed{Attempt: attempt, Err: errors.New("failed"), Final: s.random.IntN(2) == 0, Lost: lost, Jitter: s.random.Float64()}
		case 7, 8:
			return Tick{} // Early, late or just in time.
		case 9:
			if s.timer.IsZero() {
				continue
			}
			if s.now.Before(s.timer) {
				s.now = s.timer
			}
			s.timer = time.Time{}
			return Tick{}
		case 10:
			s.bundle++
			return BundleChanged{}
		case 11:
			if s.random.IntN(4) == 0 {
				return TokenRefreshed{}
			}
			return s.restart()
		case 12:
			return Reissue{Window: time.Minute, Jitter: s.random.Float64()}
		case 13:
			if len(s.inFlight) == 0 {
				continue
			}
			attempt := s.inFlight[s.random.IntN(len(s.inFlight))]
			if s.resumed[attempt] {
				continue // It was sent by the agent before.
			}
			return Sending{Attempt: attempt}
		}
	}
}

// publish is kubelet asking for the volume: at first on terms of its pod's
// author, then on the same ones again.
func (s *simulation) publish() Event {
	if s.machine.Phase() == Absent {
		s.terms = Terms{NoWait: s.random.IntN(2) == 0}
		if s.random.IntN(2) == 0 {
			s.terms.RenewBefore = time.Duration(s.random.IntN(120)) * time.Second
		}
	}
	s.waiting++
	s.unclaimed = time.Time{}
	return Published{s.terms}
}

// land takes one attempt out of the air, be it given up or not.
func (s *simulation) land() uint64 {
	i := s.random.IntN(len(s.inFlight))
	attempt := s.inFlight[i]
	s.inFlight = append(s.inFlight[:i], s.inFlight[i+1:]...)
	return attempt
}

// restart is the agent dying and coming back: memory is lost, storage stays.
func (s *simulation) restart() Event {
	s.history = append(s.history, "-- restart --")
	s.machine, s.inFlight, s.given = Machine{}, nil, map[uint64]bool{}
	s.timer, s.pushed, s.waiting, s.offered = time.Time{}, nil, 0, nil
	s.notices, s.announced, s.restored = map[Notice]int{}, 0, s.stored != nil
	s.resumable, s.resumed, s.unclaimed = s.kept != nil, map[uint64]bool{}, time.Time{}
	if s.kept != nil {
		s.kept = &keptAttempt{old: true}
	}
	switch {
	case s.stored == nil && s.prepared && s.terms.NoWait:
		return Resumed{Terms: s.terms, InFlight: s.resumable} // The storage says that it may be in use.
	case s.stored == nil && s.resumable:
		s.told, s.unclaimed = false, s.now.Add(unclaimedFor)
		return Awaited{s.terms}
	case s.stored == nil:
		s.prepared, s.told = false, false // Never published: its storage is removed at start.
		return s.publish()
	}
	s.stored.attempt = 0 // Attempts are numbered anew.
	return Restored{
		Terms: s.terms, NotBefore: s.stored.notBefore, NotAfter: s.stored.notAfter, Jitter: s.random.Float64(), InFlight: s.resumable,
	}
}

func (s *simulation) step(event Event) {
	s.history = append(s.history, fmt.Sprintf("%s %T%+v", s.now.Sub(epoch), event, event))
	for _, action := range s.machine.Step(s.now, event) {
		s.history = append(s.history, "    "+printAction(s.now, action))
		switch a := action.(type) {
		case Prepare:
			s.prepared = s.prepared || s.random.IntN(10) != 0
			if s.prepared && s.random.IntN(10) != 0 {
				s.step(Prepared{})
			} else {
				s.step(Prepared{Err: errors.New("no mount"), Jitter: s.random.Float64()})
			}
		case Request:
			if a.Resume != s.resumable {
				s.broken = "an attempt of the agent before is not resumed, or what is none is"
			}
			s.resumable, s.resumed[a.Attempt] = false, a.Resume
			s.inFlight = append(s.inFlight, a.Attempt)
		case Keep:
			if s.random.IntN(8) != 0 { // Or the tmpfs is full.
				s.kept = &keptAttempt{attempt: a.Attempt}
			}
		case Drop:
			s.kept = nil
		case Cancel:
			s.given[a.Attempt] = true
		case Store:
			s.store()
		case Push:
			s.pushed = s.stored
		case Schedule:
			s.timer = a.At
		case Answer:
			if a.Err == nil && s.waiting > 0 {
				s.told = true
				if s.stored == nil && !s.terms.NoWait {
					s.broken = "a publish that waits was answered before there was an SVID"
				}
			}
			s.waiting = 0
		case Remove:
			if _, wanted := event.(Unpublished); s.told && !wanted {
				s.broken = "a volume that kubelet takes for published was removed"
			}
			if _, tick := event.(Tick); tick && s.unclaimed.IsZero() {
				s.broken = "a mount that kubelet waits for was given up"
			}
			s.told = false
			s.kept, s.resumable, s.unclaimed = nil, false, time.Time{}
			s.prepared, s.stored, s.pushed, s.timer = false, nil, nil, time.Time{}
			s.notices, s.announced, s.restored = map[Notice]int{}, 0, false
		case Notify:
			s.notify(a)
		}
	}
	s.offered = nil
}

func (s *simulation) store() {
	if s.random.IntN(8) == 0 {
		s.step(Stored{Err: errors.New("tmpfs full"), Jitter: s.random.Float64()})
		return
	}
	next := s.offered
	if next == nil {
		next = s.stored
	}
	if next == nil {
		panic("store of nothing")
	}
	if s.stored != nil && next.attempt < s.stored.attempt {
		panic("files went backwards")
	}
	if s.stored == nil || next.attempt != s.stored.attempt {
		s.notices = map[Notice]int{}
	}
	copied := *next
	copied.bundle = s.bundle
	s.stored = &copied
	s.step(Stored{})
}

// notify holds each notice to its meaning.
func (s *simulation) notify(a Notify) {
	s.notified++
	s.notices[a.Notice]++
	switch a.Notice {
	case NoticeIssued:
		s.announced++
		if s.announced > 1 || s.restored || s.stored == nil {
			panic("issued is told again, or of nothing")
		}
	case NoticeFailed:
		if a.Err == nil {
			panic("a failure is told without its reason")
		}
	case NoticeOverdue:
		if s.notices[NoticeOverdue] > 1 || s.notices[NoticeExpired] > 0 || !s.now.Before(s.stored.notAfter) {
			panic("overdue is told again or after the expiry")
		}
		if s.now.Before(s.stored.notBefore.Add(s.stored.notAfter.Sub(s.stored.notBefore) * 5 / 6)) {
			panic("overdue is told too early")
		}
	case NoticeExpired:
		if s.notices[NoticeExpired] > 1 || s.now.Before(s.stored.notAfter) {
			panic("expired is told again or too early")
		}
	}
}

// checkReissue: what is published is asked for within the window, and nothing is
// put off for it.
func (s *simulation) checkReissue(e Reissue, planned time.Time) string {
	inFlight := slices.ContainsFunc(s.inFlight, func(attempt uint64) bool { return !s.given[attempt] })
	switch {
	case s.machine.Phase() != Ready || inFlight:
		return ""
	case !planned.IsZero() && s.timer.After(planned):
		return "a reissue put the next attempt off"
	case s.machine.renew.IsZero() || s.machine.renew.After(s.now.Add(e.Window)):
		return "a reissue is not planned within its window"
	}
	return ""
}

// checkLost: a resumed attempt that is lost is nothing to tell, and is made good at
// once unless nobody waits for the volume.
func (s *simulation) checkLost(notified int) string {
	switch {
	case s.notified != notified:
		return "somebody was told that an attempt of the agent before is lost"
	case s.machine.Phase() != Absent && len(s.wanted()) == 0:
		return "a lost attempt is not made good at once"
	}
	return ""
}

// wanted are the attempts in flight that were not given up.
func (s *simulation) wanted() []uint64 {
	return slices.DeleteFunc(slices.Clone(s.inFlight), func(attempt uint64) bool { return s.given[attempt] })
}

// checkKept: the next agent finds the attempt that is in flight, or none.
func (s *simulation) checkKept() string {
	underWay := func(attempt uint64) bool {
		return s.kept.old && s.resumed[attempt] || !s.kept.old && attempt == s.kept.attempt
	}
	if s.kept == nil || s.kept.old && s.resumable || slices.ContainsFunc(s.wanted(), underWay) {
		return ""
	}
	return "an attempt that has ended is still kept"
}

// check holds the machine to its promises.
func (s *simulation) check() string {
	wanted := len(s.wanted())
	if broken := s.checkKept(); broken != "" {
		return broken
	}
	if s.broken != "" {
		return s.broken
	}
	switch phase := s.machine.Phase(); {
	case phase == Pending && s.terms.NoWait && s.waiting > 0:
		return "a publish waits although it must not"
	case wanted > 1:
		return "more than one request in flight"
	case phase == Ready && s.stored == nil:
		return "published without key and certificate"
	case phase == Ready && s.waiting > 0:
		return "a publish of a published volume waits"
	case phase == Absent && (s.stored != nil || s.pushed != nil || s.prepared && s.stored != nil || !s.timer.IsZero()):
		return "something is left of an unpublished volume"
	case phase == Absent && s.waiting > 0:
		return "a publish waits for nothing"
	case phase == Absent && wanted > 0:
		return "a request is in flight for an unpublished volume"
	case phase != Absent && wanted == 0 && s.timer.IsZero():
		return "nothing is in flight and nothing is planned: the volume would never be renewed"
	case phase == Ready && s.stored.bundle != s.bundle && s.machine.restore.IsZero():
		return "the files hold an old bundle and nobody plans to change that"
	case phase == Ready && !s.restored && s.announced != 1:
		return "the first issuance was not told"
	case phase == Ready && s.notices[NoticeExpired] == 0 && (s.timer.IsZero() || s.timer.After(s.stored.notAfter)):
		return "nobody would tell of the expiry"
	case phase == Ready && s.machine.Lateness() == OnTime && s.timer.After(s.machine.overdue) && s.machine.overdue.Before(s.stored.notAfter):
		return "nobody would tell that the renewal is overdue"
	case phase != Absent && !s.unclaimed.IsZero() && (s.timer.IsZero() || s.timer.After(s.unclaimed)):
		return "nobody would remove what kubelet does not come back for"
	case wanted == 0 && !s.timer.IsZero() && s.timer.Sub(s.now) > longestWait+time.Minute+s.back:
		return "the next attempt is too far away"
	case s.machine.retrying && s.machine.renew.Sub(s.now) > longestWait || s.machine.restore.Sub(s.now) > longestWait:
		return "another try is further away than any wait there is"
	case s.pushed != nil && s.stored != nil && s.pushed.attempt > s.stored.attempt:
		return "streams show what was never stored"
	}
	return ""
}
