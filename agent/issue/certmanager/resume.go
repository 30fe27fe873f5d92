// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package certmanager

import (
	"context"
	"errors"
	"fmt"
	"strings"

	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/types"

	"github.com/signet-spiffe/signet/agent/issue"
	"github.com/signet-spiffe/signet/internal/request"
)

// Requests of the agent before, which it kept (issue.IssueRequest.Sending) and
// whose keys have survived. They are on the board before the first list, so that it
// does not find them stale; an attempt claims each, or it is abandoned.

var _ issue.Resumer = (*Issuer)(nil)

// Expect implements issue.Resumer.
func (i *Issuer) Expect(volume, name string) bool {
	parsed, err := parseName(name)
	return err == nil && i.board.adopt(parsed, volume)
}

// Abandon implements issue.Resumer.
func (i *Issuer) Abandon(name string) {
	if parsed, err := parseName(name); err == nil {
		i.trash.add(i.board.abandon(parsed)...)
	}
}

// parseName reads "namespace/name".
func parseName(s string) (types.NamespacedName, error) {
	namespace, name, _ := strings.Cut(s, "/")
	if len(validation.ValidateNamespaceName(namespace, false))+len(validation.NameIsDNSSubdomain(name, false)) > 0 {
		return types.NamespacedName{}, fmt.Errorf("%q does not name a CertificateRequest", issue.Clip(s, 100))
	}
	return types.NamespacedName{Namespace: namespace, Name: name}, nil
}

// resume waits for the answer to a request of the agent before. It needs no client
// and no token.
func (i *Issuer) resume(ctx context.Context, r issue.IssueRequest) (issue.Issued, error) {
	name, err := parseName(r.Resume)
	if err != nil {
		return issue.Issued{}, fmt.Errorf("resume CertificateRequest: %w: %w", issue.ErrGone, err)
	}
	w, ok := i.board.claim(name, r.Volume)
	if !ok {
		return issue.Issued{}, fmt.Errorf("resume CertificateRequest %s: %w", name, issue.ErrGone)
	}
	i.log.Debug("CertificateRequest of the agent before is waited for", "certificate_request", name.String(),
		"pod", r.Pod.Name, "namespace", r.Pod.Namespace, "uid", r.Pod.UID, "volume", r.Volume, "spiffe_id", r.ID.String())
	return i.await(ctx, w, cmmeta.IssuerReference{}, r)
}

// leaves says that an attempt that was cut short leaves its request to the next
// agent. Its waiter stays on the board then: a list that still comes by must not
// find the request stale.
func (w *waiter) leaves(ctx context.Context) bool {
	return w.kept && errors.Is(context.Cause(ctx), issue.ErrStopping)
}

// adopt puts a request of the agent before on the board, for an attempt to claim.
// A name that is there already is not adopted again.
func (b *board) adopt(name types.NamespacedName, volume string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.waiting[name] != nil {
		return false
	}
	b.waiting[name] = &waiter{name: name, volume: volume, wake: make(chan struct{}, 1), kept: true, adopted: true}
	b.adopting = true
	return true
}

// claim returns the waiter of an adopted request, once, to the volume it is of.
func (b *board) claim(name types.NamespacedName, volume string) (*waiter, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	w := b.waiting[name]
	if w == nil || !w.adopted || w.claimed || w.volume != volume {
		return nil, false
	}
	w.claimed = true
	return w, true
}

// abandon takes an adopted request that nobody has claimed off the board and
// returns what is to be deleted. One that was not seen is either not there or stale
// in the list to come. One that has come to its end may be retained.
func (b *board) abandon(name types.NamespacedName) []ref {
	b.mu.Lock()
	defer b.mu.Unlock()
	w := b.waiting[name]
	if w == nil || !w.adopted || w.claimed {
		return nil
	}
	delete(b.waiting, name)
	r, seen := w.ref()
	switch {
	case !seen:
		return nil
	case w.latest.phase.final() && w.latest.phase != gone:
		return b.retire(request.Hash(w.volume), r)
	}
	return []ref{r}
}

// adopts says that a list is to come that decides whether adopted requests exist.
func (b *board) adopts() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.adopting
}
