// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// subject is what is measured: it obtains an SVID for a pod.
type subject interface {
	obtain(ctx context.Context, v volume) error
}

// tally collects the results of a round.
type tally struct {
	mu    sync.Mutex
	round Round
	first error
}

func (t *tally) add(took time.Duration, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err == nil {
		t.round.Latencies = append(t.round.Latencies, took)
		return
	}
	t.round.Failed++
	if t.first == nil {
		t.first = err
	}
}

// end is the round; the error is the first of its failures.
func (t *tally) end(began time.Time) (Round, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.round.Wall = time.Since(began)
	if t.first != nil {
		return t.round, fmt.Errorf("%d of %d %w: %w", t.round.Failed, t.round.Failed+len(t.round.Latencies), errFailed, t.first)
	}
	return t.round, nil
}

// atOnce asks for all volumes at the same moment.
func atOnce(ctx context.Context, s subject, volumes []volume) (Round, error) {
	var t tally
	var group sync.WaitGroup
	began := time.Now()
	for _, v := range volumes {
		group.Go(func() {
			begin := time.Now()
			err := s.obtain(ctx, v)
			t.add(time.Since(begin), err)
		})
	}
	group.Wait()
	return t.end(began)
}

// window asks for volumes for so long, always so many at a time. It returns those
// that it has asked for; the last ones end after the window, and it lasts until
// then.
func window(ctx context.Context, s subject, volumes []volume, length time.Duration, concurrency int) ([]volume, Round, error) {
	var t tally
	var group sync.WaitGroup
	var next atomic.Int64
	began := time.Now()
	for range concurrency {
		group.Go(func() {
			for time.Since(began) < length && ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(volumes) {
					return
				}
				begin := time.Now()
				err := s.obtain(ctx, volumes[i])
				t.add(time.Since(begin), err)
			}
		})
	}
	group.Wait()
	round, err := t.end(began)
	return volumes[:min(int(next.Load()), len(volumes))], round, err
}

// pause between two that are measured one at a time, so that what the one does in
// the background is over when the other begins.
const pause = 40 * time.Millisecond

// singles measures one at a time, Signet and floor in turn.
func (b *bench) singles(ctx context.Context) error {
	before, err := b.counts(ctx)
	if err != nil {
		return err
	}
	b.results.before = before
	volumes, err := b.volumes(b.Sizes.Singles)
	if err != nil {
		return err
	}
	single := func(s subject, v volume, into *Latencies) error {
		time.Sleep(pause)
		begin := time.Now()
		if err := s.obtain(ctx, v); err != nil {
			return err
		}
		*into = append(*into, time.Since(begin))
		return nil
	}
	r := &b.results.Single
	for i, v := range volumes {
		turns := []func() error{
			func() error { return single(b.kubelet, v, &r.Signet) },
			func() error { return single(b.floor, v, &r.Floor) },
		}
		if i%2 == 1 {
			turns[0], turns[1] = turns[1], turns[0]
		}
		for _, turn := range turns {
			if err := turn(); err != nil {
				return fmt.Errorf("one at a time: %w", err)
			}
		}
	}
	b.Say("one at a time: Signet p50 %s, floor p50 %s", ms(r.Signet.Percentile(50)), ms(r.Floor.Percentile(50)))
	return b.takeAway(ctx, volumes)
}

// takeAway unpublishes volumes and waits for rest.
func (b *bench) takeAway(ctx context.Context, volumes []volume) error {
	if _, err := b.rest(ctx); err != nil {
		return err
	}
	return b.kubelet.remove(ctx, volumes)
}

// bursts measures many at once, and what all of it so far has cost in requests.
func (b *bench) bursts(ctx context.Context) error {
	for _, burst := range b.Sizes.Bursts {
		for i := range burst.Times {
			if err := b.burst(ctx, &burst, i%2 == 1); err != nil {
				return fmt.Errorf("%d at once: %w", burst.Size, err)
			}
		}
		b.results.Bursts = append(b.results.Bursts, burst)
	}
	after, err := b.counts(ctx)
	if err != nil {
		return err
	}
	b.results.Requests = requestsBetween(b.results.before, after)
	return nil
}

func (b *bench) burst(ctx context.Context, into *Burst, floorFirst bool) error {
	volumes, err := b.volumes(into.Size)
	if err != nil {
		return err
	}
	turns := []func() error{
		func() error { return one(ctx, b.kubelet, volumes, &into.Rounds.Signet) },
		func() error { return one(ctx, b.floor, volumes, &into.Rounds.Floor) },
	}
	if floorFirst {
		turns[0], turns[1] = turns[1], turns[0]
	}
	for _, turn := range turns {
		if err := turn(); err != nil {
			return err
		}
		if _, err := b.rest(ctx); err != nil {
			return err
		}
	}
	signet, floor := last(into.Rounds.Signet), last(into.Rounds.Floor)
	b.Say("%d at once: Signet %s (%.0f/s), floor %s (%.0f/s)", into.Size, seconds(signet.Wall), signet.PerSecond(), seconds(floor.Wall), floor.PerSecond())
	return b.takeAway(ctx, volumes)
}

func one(ctx context.Context, s subject, volumes []volume, into *Rounds) error {
	round, err := atOnce(ctx, s, volumes)
	*into = append(*into, round)
	return err
}

func last(r Rounds) Round { return r[len(r)-1] }

// counts reads all counters, at rest.
func (b *bench) counts(ctx context.Context) (counts, error) {
	agent, err := b.rest(ctx)
	if err != nil {
		return counts{}, err
	}
	approver, err := b.objects.approverMetrics(ctx)
	if err != nil {
		return counts{}, err
	}
	return counts{agent, approver}, nil
}

// counts are the metrics of agent and approvers at one moment.
type counts struct{ agent, approver Metrics }

// requestsBetween is what the issuances between two moments have cost.
func requestsBetween(before, after counts) Requests {
	n := int(after.agent.Sum(issuances, "result=issued") - before.agent.Sum(issuances, "result=issued"))
	grown := func(of func(counts) Metrics, name string, labels ...string) float64 {
		return of(after).Sum(name, labels...) - of(before).Sum(name, labels...)
	}
	agent := func(c counts) Metrics { return c.agent }
	approver := func(c counts) Metrics { return c.approver }
	r := Requests{Issuances: n}
	if n == 0 {
		return r
	}
	r.Agent = perIssuance(before.agent.By(agentRequests, "verb", "resource"), after.agent.By(agentRequests, "verb", "resource"), n)
	r.ApproverWrites = grown(approver, "rest_client_requests_total", "method=PATCH") / float64(n)
	r.ApproverPodReads = grown(approver, "signet_approver_pod_reads_total") / float64(n)
	r.AgentCPU = cpuEach(grown(agent, "process_cpu_seconds_total"), n)
	r.ApproverCPU = cpuEach(grown(approver, "process_cpu_seconds_total"), n)
	return r
}

func cpuEach(seconds float64, n int) time.Duration {
	return time.Duration(seconds / float64(n) * float64(time.Second))
}

// sustained measures a closed loop. What Signet has published goes after each
// window, so that every window begins with an empty node.
func (b *bench) sustained(ctx context.Context) error {
	r := &b.results.Sustained
	spent := Pair[census]{census{}, census{}}
	for i := range b.Sizes.Windows {
		var held []volume
		turns := []func() error{
			func() (err error) { held, err = b.windowOf(ctx, b.kubelet, &r.Signet, spent.Signet); return err },
			func() error { _, err := b.windowOf(ctx, b.floor, &r.Floor, spent.Floor); return err },
		}
		if i%2 == 1 {
			turns[0], turns[1] = turns[1], turns[0]
		}
		for _, turn := range turns {
			if err := turn(); err != nil {
				return fmt.Errorf("sustained load: %w", err)
			}
		}
		b.Say("sustained: Signet %.1f/s, floor %.1f/s", last(r.Signet).PerSecond(), last(r.Floor).PerSecond())
		began := time.Now()
		if err := b.takeAway(ctx, held); err != nil {
			return err
		}
		b.Say("unpublished %d volumes in %s", len(held), round(time.Since(began)))
	}
	b.results.CPU = Pair[census]{
		spent.Signet.each(len(r.Signet.Total().Latencies)), spent.Floor.each(len(r.Floor.Total().Latencies)),
	}
	b.Say("CPU time of all programs for each issuance: Signet %s, floor %s", ms(b.results.CPU.Signet.total()), ms(b.results.CPU.Floor.total()))
	return nil
}

// windowOf is one of sustained load, until rest, with the CPU time that it took.
func (b *bench) windowOf(ctx context.Context, s subject, into *Rounds, spent census) ([]volume, error) {
	volumes, err := b.volumes(int(b.Sizes.Window.Seconds()) * 250) // More than can be asked for.
	if err != nil {
		return nil, err
	}
	before, err := takeCensus(b.Cluster, b.agent.pid)
	if err != nil {
		return nil, err
	}
	asked, round, err := window(ctx, s, volumes, b.Sizes.Window, b.Sizes.Concurrency)
	*into = append(*into, round)
	if err == nil && len(asked) == len(volumes) {
		err = fmt.Errorf("a window of %s ended early: there were only %d volumes to ask for", b.Sizes.Window, len(volumes))
	}
	if err != nil {
		return asked, err
	}
	after, err := takeCensus(b.Cluster, b.agent.pid)
	if err != nil {
		return asked, err
	}
	spent.join(after.since(before))
	_, err = b.rest(ctx)
	return asked, err
}
