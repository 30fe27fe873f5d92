// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// idleEmpty measures the agent without volumes.
func (b *bench) idleEmpty(ctx context.Context) error { return b.idle(ctx, 0) }

// settling is how long the agent is left alone before its idleness is measured.
const settling = 15 * time.Second

// idle measures what the agent costs while nothing is asked of it but kubelet's
// probes.
func (b *bench) idle(ctx context.Context, volumes int) error {
	if _, err := b.rest(ctx); err != nil {
		return err
	}
	probing, stop := context.WithCancel(ctx)
	defer stop()
	go b.agent.probe(probing)
	if err := sleep(ctx, settling); err != nil {
		return err
	}
	machine, err := readLoad()
	if err != nil {
		return err
	}
	before, err := cpuTime(b.agent.pid)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := sleep(ctx, b.Sizes.Idle); err != nil {
		return err
	}
	after, err := cpuTime(b.agent.pid)
	if err != nil {
		return b.agent.explain(fmt.Errorf("the agent ended while it was idle: %w", err))
	}
	took := time.Since(began)
	now, err := readLoad()
	if err != nil {
		return err
	}
	i := Idle{Volumes: volumes, CPU: 100 * (after - before).Seconds() / took.Seconds(), Busy: now.since(machine)}
	if i.Memory, err = memory(b.agent.pid); err != nil {
		return err
	}
	if i.VolumeBytes, err = b.layout.volumeBytes(driver); err != nil {
		return err
	}
	b.results.Idle = append(b.results.Idle, i)
	b.Say("idle with %d volumes: %.2f %% of a core, %s resident; the machine is %.0f %% busy", volumes, i.CPU, mib(i.Memory.RSS), i.Busy)
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// restarts kills and starts the agent under volumes.
func (b *bench) restarts(ctx context.Context) error {
	volumes, err := b.volumes(b.Sizes.RestartVolumes)
	if err != nil {
		return err
	}
	if err := b.mount(ctx, volumes); err != nil {
		return err
	}
	if err := b.idle(ctx, len(volumes)); err != nil {
		return err
	}
	for range b.Sizes.Restarts {
		if err := b.restart(ctx, volumes); err != nil {
			return fmt.Errorf("restart: %w", err)
		}
	}
	return b.takeAway(ctx, volumes)
}

// restartTimeout bounds a restart; a second is wanted.
const restartTimeout = time.Minute

func (b *bench) restart(ctx context.Context, volumes []volume) error {
	before, err := serials(volumes)
	if err != nil {
		return err
	}
	b.agent.kill()
	sockets, err := expect(volumes)
	if err != nil {
		return err
	}
	collecting, cancel := context.WithTimeout(ctx, restartTimeout)
	defer cancel()
	answered := make(chan error, 1)
	var all []served
	go func() {
		var err error
		all, err = sockets.collect(collecting)
		answered <- err
	}()
	if err := b.start(ctx); err != nil {
		return errors.Join(err, <-answered)
	}
	if err := <-answered; err != nil {
		return b.agent.explain(err)
	}
	m, err := b.rest(ctx)
	if err != nil {
		return err
	}
	r := restartOf(b.agent.began, all, before, m)
	b.results.Restarts = append(b.results.Restarts, r)
	b.Say("restart with %d volumes: all sockets have answered after %s (median %s), %d with another SVID, %d issuances", r.Volumes, ms(r.All), ms(r.Median), r.Changed, r.Issuances)
	return nil
}

// restartOf sums a restart up: m are the new agent's metrics.
func restartOf(began time.Time, all []served, before map[string]string, m Metrics) Restart {
	r := Restart{Volumes: len(all), Issuances: int(m.Sum(issuances) + m.Sum(agentRequests, "verb=create", "resource=certificaterequests"))}
	var after Latencies
	for _, s := range all {
		after = append(after, s.at.Sub(began))
		if before[s.volume] != s.serial {
			r.Changed++
		}
	}
	r.All, r.Median = after.Percentile(100), after.Percentile(50)
	return r
}

// renewals publishes the most volumes, leaves them idle, and has all renewed at
// once, by restarts of the agent with other key types.
func (b *bench) renewals(ctx context.Context) error {
	n := b.Sizes.IdleVolumes[len(b.Sizes.IdleVolumes)-1]
	volumes, err := b.volumes(n)
	if err != nil {
		return err
	}
	if err := b.mount(ctx, volumes); err != nil {
		return err
	}
	if err := b.idle(ctx, n); err != nil {
		return err
	}
	types := []string{"P-384", "P-256"}
	for i := range b.Sizes.Renewals {
		if err := b.renew(ctx, volumes, types[i%len(types)]); err != nil {
			return fmt.Errorf("renewal: %w", err)
		}
	}
	return nil
}

// renewalTimeout bounds the renewal of all volumes.
const renewalTimeout = 3 * time.Minute

func (b *bench) renew(ctx context.Context, volumes []volume, keyType string) error {
	before, err := serials(volumes)
	if err != nil {
		return err
	}
	b.agent.kill()
	if err := b.start(ctx, "--reissue-window=0", "--key-type="+keyType); err != nil {
		return err
	}
	m, err := b.agent.await(ctx, renewalTimeout, "the renewal of all volumes", func(m Metrics) bool {
		return int(m.Sum(issuances, "purpose=renewal", "result=issued")) >= len(volumes)
	})
	took := time.Since(b.agent.began)
	if err != nil {
		return err
	}
	if _, err := b.rest(ctx); err != nil {
		return err
	}
	after, err := serials(volumes) // None has expired, or this is an error.
	if err != nil {
		return err
	}
	r := Renewal{Volumes: len(volumes), KeyType: keyType, Wall: took, Failed: failures(m), Expired: int(m.Sum("signet_agent_svids_expired"))}
	for id, serial := range after {
		if before[id] == serial {
			r.Unchanged++
		}
	}
	b.results.Renewals = append(b.results.Renewals, r)
	b.Say("renewed %d volumes (to %s) in %s, %.1f/s; %d failed, %d expired", r.Volumes, keyType, seconds(took), r.PerSecond(), r.Failed, r.Expired)
	return nil
}

// failures counts attempts that were not issued.
func failures(m Metrics) int { return int(m.Sum(issuances) - m.Sum(issuances, "result=issued")) }
