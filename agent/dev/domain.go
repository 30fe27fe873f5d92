// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package dev

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"

	"github.com/signet-spiffe/signet/agent/issue"
	"github.com/signet-spiffe/signet/agent/issue/selfca"
	"github.com/signet-spiffe/signet/agent/trust"
	"github.com/signet-spiffe/signet/agent/workload"
	"github.com/signet-spiffe/signet/internal/pki"
)

// publishTimeout is generous: an RSA key may take seconds, on a busy machine more.
const publishTimeout = time.Minute

// domain is one trust domain: its authority and the workloads in it.
type domain struct {
	name     spiffeid.TrustDomain
	issuer   *selfca.Issuer
	trust    *trust.Observed
	registry *workload.Registry
	lifetime time.Duration
	log      *slog.Logger
}

func newDomain(td spiffeid.TrustDomain, o *options, v *volumes, log *slog.Logger) (*domain, error) {
	issuer, err := selfca.New(selfca.Options{TrustDomain: td, Lifetime: o.caLifetime()})
	if err != nil {
		return nil, err
	}
	log = log.With("trust_domain", td.Name())
	d := &domain{name: td, issuer: issuer, trust: trust.NewObserved(td), lifetime: o.lifetime, log: log}
	if err := d.announce(pki.MarshalCertificates(issuer.Bundle().X509Authorities())); err != nil {
		return nil, err
	}
	ids := map[string]spiffeid.ID{}
	for _, i := range o.identities {
		ids[i.name] = i.id
	}
	d.registry = workload.New(workload.Options{
		Issuer: issuer, Trust: d.trust, Volumes: v,
		ID:      func(pod issue.Pod) (spiffeid.ID, error) { return ids[pod.Name], nil },
		KeyType: o.keyType, Duration: o.lifetime, PublishTimeout: publishTimeout,
		Log: log, Registerer: prometheus.NewRegistry(),
	})
	return d, nil
}

// announce takes a root into the bundle. Those before it stay until the last SVID
// under them has expired.
func (d *domain) announce(root []byte) error {
	if _, err := d.trust.Observe(root, time.Now().Add(d.lifetime)); err != nil {
		return fmt.Errorf("announce the CA of trust domain %s: %w", d.name, err)
	}
	return nil
}

// announcement is how long a new root is known before it signs: long enough for
// streams to have brought it to every program.
const announcement = 500 * time.Millisecond

// rotate replaces the authority every so often, until ctx ends.
func (d *domain) rotate(ctx context.Context, every time.Duration) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		err := d.issuer.RotateAfter(func(root []byte) error {
			if err := d.announce(root); err != nil {
				return err
			}
			return pause(ctx, announcement)
		})
		switch {
		case ctx.Err() != nil:
		case err != nil:
			d.log.Error("could not replace the CA; the present one goes on", "error", err)
		default:
			d.log.Info("CA replaced; SVIDs follow as they are renewed")
		}
	}
}

// pause waits, and is cut short when ctx ends, with its error.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// publish gives every identity of the domain its socket and first SVID.
func (d *domain) publish(ctx context.Context, identities []identity) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, i := range identities {
		if i.id.TrustDomain() != d.name {
			continue
		}
		group.Go(func() error {
			return d.registry.Publish(ctx, workload.Volume{ID: i.name, Pod: issue.Pod{Name: i.name}})
		})
	}
	return group.Wait()
}
