// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/signet-spiffe/signet/agent/issue"
	"github.com/signet-spiffe/signet/internal/failpoint"
	"github.com/signet-spiffe/signet/internal/pki"
)

// Options are what a Registry is made of. All are needed, unless they say
// otherwise.
type Options struct {
	Issuer  issue.Issuer
	Trust   Trust
	Volumes Volumes
	// ID computes the SPIFFE ID of a pod.
	ID func(issue.Pod) (spiffeid.ID, error)
	// Owner, if not nil, finds the user who is to own the files of a volume; nil is
	// root. It is asked for every new volume and may block until ctx ends.
	Owner func(ctx context.Context, v Volume) (*int64, error)
	// KeyType of SVIDs, Duration asked for, where a volume's attributes do not
	// say otherwise.
	KeyType  pki.KeyType
	Duration time.Duration
	// MinDuration and MaxDuration bound what a volume may have chosen; zero for no
	// bound. They need not be what they were when it was published.
	MinDuration, MaxDuration time.Duration
	// PublishTimeout is how long one Publish call waits for an SVID. It should
	// be shorter than kubelet's own limit of two minutes, so that kubelet hears
	// what was waited for.
	PublishTimeout time.Duration
	// Attempts may be nil: attempts end with the agent then.
	Attempts Attempts
	// Notifier, if not nil, is told what pods' owners should hear.
	Notifier Notifier
	// Signer may be nil where the issuer never changes.
	Signer Signer
	// ReissueWindow is the time over which SVIDs are replaced that are not what
	// would be issued now; 0: at once.
	ReissueWindow time.Duration
	// Calm, if not nil, is called some seconds after Run begins and after each time
	// that the last of the attempts under way has ended. It may take its time.
	Calm func()
	// Limits of what runs at the same time; zero: the defaults.
	Limits     Limits
	Log        *slog.Logger
	Registerer prometheus.Registerer
}

// Registry holds every volume of the node. Safe for concurrent use.
type Registry struct {
	Options
	metrics *metrics
	timers  *timers
	turns   *turns
	// watchers are told of changes.
	watchers watchers

	// patience is how long one attempt may take, by the lifetime asked for.
	patience func(lifetime time.Duration) time.Duration

	// life ends when Run ends, with issue.ErrStopping as cause; attempts run under it.
	life context.Context
	end  context.CancelCauseFunc
	// unkept is for the first attempt that could not be kept.
	unkept sync.Once

	mu      sync.Mutex // Guards entries. Taken before an entry's own mutex.
	entries map[string]*entry
}

// New makes an empty Registry. Nothing renews until Run is called.
func New(o Options) *Registry {
	r := &Registry{Options: o, timers: newTimers(), patience: attemptTimeout, turns: newTurns(o.Limits), entries: map[string]*entry{}}
	r.life, r.end = context.WithCancelCause(context.Background())
	r.metrics = newMetrics(o.Registerer, r.standings, r.turns)
	return r
}

// Run drives renewals and bundle changes until ctx ends. Attempts that are under
// way then are left to the next agent, or withdrawn where they were not kept;
// volumes stay as they are.
func (r *Registry) Run(ctx context.Context) {
	defer r.end(issue.ErrStopping)
	if r.Calm != nil {
		r.turns.whenCalm(r.Calm)
	}
	var group sync.WaitGroup
	group.Go(func() { r.timers.run(ctx, func(e *entry) { e.post(message{event: Tick{}}) }) })
	group.Go(func() { r.followBundle(ctx) })
	if r.Signer != nil {
		group.Go(func() { r.followSigner(ctx) })
	}
	group.Wait()
}

func (r *Registry) followBundle(ctx context.Context) {
	for {
		_, superseded := r.Trust.Bundle()
		// After the channel was fetched, so that a change between two rounds is
		// not missed. Entries whose files hold this bundle already do nothing.
		for _, e := range r.all() {
			e.post(message{event: BundleChanged{}})
		}
		select {
		case <-ctx.Done():
			return
		case <-superseded:
		}
	}
}

func (r *Registry) all() []*entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	entries := make([]*entry, 0, len(r.entries))
	for _, e := range r.entries {
		entries = append(entries, e)
	}
	return entries
}

// Publish returns when v has an SVID in its files and on its socket; with NoWait,
// when it is prepared. For a volume that has come so far it returns at once and
// takes over a fresh token, if there is one.
//
// Errors: ErrPending after PublishTimeout (the attempt goes on and the next call
// joins it), ErrUnpublished, ErrInvalid when v contradicts what is published
// under its ID, issue's errors, *pki.RuleError, storage errors, ctx's error, those of
// Options.Owner; one that wraps issue.ErrUnavailable when the agent ends.
func (r *Registry) Publish(ctx context.Context, v Volume) error {
	id, err := r.ID(v.Pod)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, r.PublishTimeout, ErrPending)
	defer cancel()
	joins, err := r.own(ctx, &v)
	if err != nil {
		return err
	}
	answer := make(chan error, 1)
	e := r.post(v.ID, message{event: Published{v.terms()}, volume: &v, id: id, answer: answer, joins: joins})
	select {
	case err := <-answer:
		return err
	case <-r.life.Done():
		return fmt.Errorf("SVID %s for pod %s/%s: %w: %w", id, v.Pod.Namespace, v.Pod.Name, issue.ErrUnavailable, context.Cause(r.life))
	case <-ctx.Done():
		cause := context.Cause(ctx)
		return fmt.Errorf("SVID %s for pod %s/%s: %w (%s)", id, v.Pod.Namespace, v.Pod.Name, cause, e.status())
	}
}

// own finds the owner of a new volume's files. A volume that is there has its own,
// and its publish waits for nobody to be asked again: it joins what there is, and
// begins nothing should that end meanwhile.
func (r *Registry) own(ctx context.Context, v *Volume) (joins bool, err error) {
	if r.Owner == nil {
		return false, nil
	}
	if r.Holds(v.ID) {
		return true, nil
	}
	v.UID, err = r.Owner(ctx, *v)
	return false, err
}

// Unpublish returns when nothing is left of the volume: streams ended, key
// wiped, storage removed. A volume that is not known is no error. Only storage
// that cannot be removed and ctx's end are errors; call again.
func (r *Registry) Unpublish(ctx context.Context, volumeID string) error {
	removed := make(chan error, 1)
	r.post(volumeID, message{event: Unpublished{}, removed: removed})
	select {
	case err := <-removed:
		return err
	case <-ctx.Done():
		return fmt.Errorf("remove volume %s: %w", volumeID, ctx.Err())
	}
}

// Holds reports whether the volume is published or about to be.
func (r *Registry) Holds(volumeID string) bool {
	r.mu.Lock()
	e, ok := r.entries[volumeID]
	r.mu.Unlock()
	if !ok {
		return false
	}
	known := e.standing.Load()
	if known == nil {
		return true // Its first event, a publish or a restore, is being dealt with.
	}
	return known.phase != Absent || e.expected()
}

// Restore takes up a volume whose SVID survived a restart; attempt, if not nil, was
// under way to replace it. Call it before Run, and before the issuer runs.
func (r *Registry) Restore(v Volume, svid *SVID, attempt *Attempt) {
	attempt = r.expect(v.ID, attempt)
	r.post(v.ID, message{event: Restored{
		Terms: v.terms(), NotBefore: svid.NotBefore(), NotAfter: svid.NotAfter(), Jitter: jitter(), InFlight: attempt != nil,
	}, volume: &v, id: svid.ID, svid: svid, attempt: attempt})
}

// Resume takes up a volume with NoWait that survived a restart before it had an
// SVID; attempt, if not nil, was under way. Call it before Run, and before the issuer
// runs. The only error is a pod that can have no SPIFFE ID.
func (r *Registry) Resume(v Volume, attempt *Attempt) error {
	id, err := r.ID(v.Pod)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	attempt = r.expect(v.ID, attempt)
	r.post(v.ID, message{event: Resumed{Terms: v.terms(), InFlight: attempt != nil}, volume: &v, id: id, attempt: attempt})
	return nil
}

// post finds or makes the volume's entry and leaves the message there. Holding
// r.mu while doing so is what keeps a removed entry from getting mail.
func (r *Registry) post(volumeID string, m message) *entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok := r.entries[volumeID]
	if !ok {
		e = &entry{registry: r, name: volumeID, log: r.Log.With("volume", volumeID), volume: Volume{ID: volumeID}}
		r.entries[volumeID] = e
	}
	e.post(m)
	return e
}

// forget ends the draining of an entry that has no mail, and drops the entry if
// nothing is left to remember. An attempt that was given up and has not ended is
// remembered: the next one of that volume must wait for it. It reports whether
// the draining ended.
func (r *Registry) forget(e *entry) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.mailbox) > 0 {
		return false
	}
	e.draining = false
	if e.machine.Phase() == Absent && e.attempts == 0 && r.entries[e.volume.ID] == e {
		delete(r.entries, e.volume.ID)
	}
	return true
}

// obtain makes a key and has an SVID issued and verified. keep is told of the attempt
// before it is sent. finish, if not nil, must be called when the result was stored or
// refused.
func (r *Registry) obtain(ctx context.Context, a *ask, progress func(string), keep func(Attempt) bool) (svid *SVID, finish func(context.Context), err error) {
	basis := r.wanted(a.volume)
	key, err := pki.GenerateKey(basis.KeyType)
	if err != nil {
		return nil, nil, err
	}
	csr, err := pki.NewCSR(key, a.id, a.volume.Attributes.DNSNames)
	if err != nil {
		return nil, nil, err
	}
	failpoint.Here("issue/key-made")
	issued, err := r.Issuer.Issue(ctx, issue.IssueRequest{
		Volume: a.volume.ID, Pod: a.volume.Pod, ID: a.id, CSR: csr, Duration: basis.Duration, Token: a.volume.Token, Progress: progress,
		Sending: func(sent issue.Sent) bool {
			made := Attempt{Request: sent.Request, ID: a.id, Key: key, Basis: basis}
			made.Basis.Issuer = sent.Issuer
			return keep(made)
		},
	})
	if err != nil {
		return nil, nil, err
	}
	basis.Issuer = issued.Issuer
	return r.verified(issued, a, key, basis)
}

// verified is the SVID that was issued, with what it was asked with, if it proves
// good.
func (r *Registry) verified(issued issue.Issued, a *ask, key pki.PrivateKey, basis Basis) (*SVID, func(context.Context), error) {
	svid, err := r.accept(issued, a, key)
	if err != nil {
		return nil, issued.Done, fmt.Errorf("CertificateRequest %s: %w", issued.Request, err)
	}
	failpoint.Here("issue/verified")
	svid.Basis = basis
	return svid, issued.Done, nil
}

// keyType is the type of key to make.
func (r *Registry) keyType(a Attributes) pki.KeyType { return cmp.Or(a.KeyType, r.KeyType) }

// duration is the lifetime to ask for.
func (r *Registry) duration(a Attributes) time.Duration {
	if a.Duration == 0 {
		return r.Duration
	}
	d := max(a.Duration, r.MinDuration)
	if r.MaxDuration > 0 {
		d = min(d, r.MaxDuration)
	}
	return d
}

// accept verifies what the issuer returned. Where the bundle is learned from the
// issuer, it is learned only after the chain proved good under it.
func (r *Registry) accept(issued issue.Issued, a *ask, key pki.PrivateKey) (*SVID, error) {
	chain, err := pki.ParseCertificates(issued.Chain)
	if err != nil {
		return nil, &pki.RuleError{Rule: pki.RuleChain, Detail: err.Error()}
	}
	bundle, _ := r.Trust.Bundle()
	learner, learns := r.Trust.(Learner)
	if learns {
		if bundle, err = learner.Propose(issued.CA); err != nil {
			return nil, &pki.RuleError{Rule: pki.RuleNoBundle, Detail: err.Error()}
		}
	}
	want := pki.Expectation{ID: a.id, DNSNames: a.volume.Attributes.DNSNames, Key: key, Now: time.Now(), Bundle: bundle}
	if err := pki.VerifySVID(chain, want); err != nil {
		return nil, err
	}
	if learns {
		if _, err := learner.Observe(issued.CA, chain[0].NotAfter); err != nil {
			r.Log.Warn("the issuer reported authorities that cannot be used", "request", issued.Request, "error", err)
		}
		// What was not taken in would be stored without its root, and replaced as
		// outdated at once.
		if bundle, _ := r.Trust.Bundle(); bundle == nil || !pki.LeadsTo(chain, bundle, time.Now()) {
			return nil, &pki.RuleError{Rule: pki.RuleNoBundle, Detail: "the authority that the issuer reported could not be taken into the trust bundle"}
		}
	}
	return &SVID{ID: a.id, Chain: chain, Key: key}, nil
}

// final says whether an error will repeat itself until somebody changes
// something.
func final(err error) bool { return !errors.Is(err, issue.ErrUnavailable) }
