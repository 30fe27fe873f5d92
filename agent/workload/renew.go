// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/signet-spiffe/signet/agent/issue"
)

// ErrUnknown says that there is no such volume.
var ErrUnknown = errors.New("no such volume")

// Renew: somebody wants a new SVID now, or the first one tried again now.
type Renew struct{}

func (Renew) event() {}

// renewNow begins the next attempt now, unless one is under way, which is joined.
// The SVID in use is not touched. Whoever asks has reason to think that it will do
// some good, so delays between retries begin anew: asking often must not put the
// agent's own tries off.
func (m *Machine) renewNow() []Action {
	if m.phase == Absent || m.inFlight {
		return nil
	}
	m.failures = 0
	return append(m.again(), m.schedule()...)
}

// Renewal is what Renew has done.
type Renewal struct {
	// Joined says that an attempt was under way already.
	Joined bool
	// Serial is that of the SVID to be replaced, as in Standing.
	Serial string
	// LastErrorAt is when an attempt failed last, as in Standing, before this one.
	LastErrorAt time.Time
}

// Renew has the volume's SVID issued again now. It returns when that has begun; how
// it ends shows in the volume's Standing.
//
// Errors: ErrUnknown; ctx's cause, where the volume is busy with its storage (the
// renewal begins all the same); one that wraps issue.ErrUnavailable when the agent
// ends.
func (r *Registry) Renew(ctx context.Context, volumeID string) (Renewal, error) {
	begun := make(chan *Renewal, 1)
	if !r.tell(volumeID, message{event: Renew{}, begun: begun}) {
		return Renewal{}, fmt.Errorf("%w: %q", ErrUnknown, volumeID)
	}
	select {
	case renewal := <-begun:
		if renewal == nil { // It was removed, or its publish was refused, meanwhile.
			return Renewal{}, fmt.Errorf("%w: %q", ErrUnknown, volumeID)
		}
		return *renewal, nil
	case <-r.life.Done():
		return Renewal{}, fmt.Errorf("renew volume %s: %w: %w", volumeID, issue.ErrUnavailable, context.Cause(r.life))
	case <-ctx.Done():
		return Renewal{}, fmt.Errorf("renew volume %s: %w", volumeID, context.Cause(ctx))
	}
}

// tell leaves the message with the volume's entry, if there is one.
func (r *Registry) tell(volumeID string, m message) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok := r.entries[volumeID]
	if ok {
		e.post(m)
	}
	return ok
}

// renew begins the renewal and says what there was before.
func (e *entry) renew(begun chan<- *Renewal) {
	if e.machine.Phase() == Absent {
		begun <- nil // Buffered.
		return
	}
	renewal := &Renewal{Joined: e.machine.inFlight}
	if e.current != nil {
		renewal.Serial = serial(e.current.Chain[0])
	}
	if e.trouble != nil {
		renewal.LastErrorAt = e.trouble.at
	}
	e.log.Info("renewal by hand", "joined", renewal.Joined)
	e.step(Renew{})
	begun <- renewal
}
