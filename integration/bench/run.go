// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/client-go/rest"
)

// What agent, approver and floor agree on: the manifests' own values.
const (
	trustDomain = "cluster.local"
	lifetime    = time.Hour
)

// Sizes say how much is measured.
type Sizes struct {
	// Singles is how many SVIDs are obtained one at a time.
	Singles int
	// Bursts are how many are asked for at once, and how often.
	Bursts []Burst
	// Windows of sustained load, each that long, with so many at a time.
	Windows     int
	Window      time.Duration
	Concurrency int
	// Idle is how long CPU time is watched at each of the numbers of volumes;
	// IdleVolumes begins with 0 and ascends.
	Idle        time.Duration
	IdleVolumes []int
	// Restarts is how often the agent is killed, with RestartVolumes volumes.
	Restarts, RestartVolumes int
	// Renewals is how often all of the most IdleVolumes are renewed at once.
	Renewals int
	// Fetches is how often an SVID is fetched from the sockets of RestartVolumes.
	// Streams is how many are held open on them, Pushes how often all of them change.
	Fetches, Streams, Pushes int
}

// Full is what `make bench` measures.
func Full() Sizes {
	return Sizes{
		Singles: 120, Bursts: []Burst{{Size: 110, Times: 4}, {Size: 400, Times: 2}},
		Windows: 3, Window: 10 * time.Second, Concurrency: 16,
		Idle: 30 * time.Second, IdleVolumes: []int{0, 110, 1350},
		Restarts: 5, RestartVolumes: 110, Renewals: 2,
		Fetches: 2000, Streams: 2000, Pushes: 10,
	}
}

// Quick is for trying out; its figures mean little.
func Quick() Sizes {
	return Sizes{
		Singles: 20, Bursts: []Burst{{Size: 30, Times: 1}, {Size: 60, Times: 1}},
		Windows: 1, Window: 3 * time.Second, Concurrency: 16,
		Idle: 5 * time.Second, IdleVolumes: []int{0, 30, 200},
		Restarts: 2, RestartVolumes: 30, Renewals: 1,
		Fetches: 300, Streams: 500, Pushes: 3,
	}
}

// most is how many pods are needed.
func (s Sizes) most() int {
	most := s.RestartVolumes
	for _, n := range append([]int{s.Singles}, s.IdleVolumes...) {
		most = max(most, n)
	}
	for _, burst := range s.Bursts {
		most = max(most, burst.Size)
	}
	return most
}

// Options are what Run needs. All are needed.
type Options struct {
	Sizes Sizes
	// Config is an administrator's, APIServer where it is reached from the node.
	Config    *rest.Config
	APIServer string
	// Cluster is the cluster's name, Kubernetes its version.
	Cluster, Kubernetes string
	// Dir is an empty directory, in a mount namespace of the caller's own (Enter).
	Dir string
	// Agent is the agent's binary.
	Agent string
	// Approvers is how many requests the floor approves at the same time.
	Approvers int
	// AgentFlags come on top of those that the agent has in deploy/manifests.
	AgentFlags []string
	// Say tells what happens.
	Say func(format string, args ...any)
}

// bench is a run.
type bench struct {
	Options
	layout  layout
	objects *objects
	pods    []pod
	kubelet *kubelet
	floor   *floor
	agent   *agent
	results *Results

	generation int // of volumes
}

// Run measures. Inside the namespaces that Enter makes; whatever it starts ends
// with the process at the latest.
func Run(ctx context.Context, o Options) (*Results, error) {
	b := &bench{Options: o, results: &Results{Began: time.Now(), Sizes: o.Sizes, Approvers: o.Approvers}}
	// The floor's watches end before what they are watched through.
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		cancel()
		b.close()
	}()
	if err := b.setUp(ctx); err != nil {
		return nil, err
	}
	for _, phase := range []func(context.Context) error{
		b.idleEmpty, b.singles, b.bursts, b.restarts, b.workloadAPI, b.sustained, b.renewals,
	} {
		if err := phase(ctx); err != nil {
			return nil, err
		}
	}
	b.results.Took = time.Since(b.results.Began)
	return b.results, nil
}

func (b *bench) setUp(ctx context.Context) error {
	var err error
	if b.results.Machine, err = thisMachine(); err != nil {
		return err
	}
	if b.results.Versions, err = readVersions(ctx, b.Kubernetes, b.Agent); err != nil {
		return err
	}
	if b.layout, err = layOut(b.Dir); err != nil {
		return err
	}
	if b.objects, err = newObjects(ctx, b.Config, b.APIServer); err != nil {
		return err
	}
	if err := b.objects.node(ctx, b.layout.kubeconfig()); err != nil {
		return err
	}
	began := time.Now()
	if b.pods, err = b.objects.pods(ctx, b.Sizes.most()); err != nil {
		return err
	}
	b.Say("made %d pods in %s", len(b.pods), round(time.Since(began)))
	if b.floor, err = newFloor(ctx, b.objects.config, b.Approvers); err != nil {
		return err
	}
	return b.start(ctx)
}

// start starts an agent and waits until it is ready.
func (b *bench) start(ctx context.Context, flags ...string) error {
	a, err := startAgent(b.Agent, b.layout, append(b.AgentFlags, flags...)...)
	if err != nil {
		return err
	}
	b.agent = a
	if b.kubelet != nil {
		_ = b.kubelet.conn.Close()
	}
	if b.kubelet, err = newKubelet(b.layout); err != nil {
		return err
	}
	return a.ready(ctx)
}

func (b *bench) close() {
	if b.floor != nil {
		b.floor.running.Wait()
	}
	if b.kubelet != nil {
		_ = b.kubelet.conn.Close()
	}
	if b.agent != nil {
		b.agent.kill()
	}
}

// rest waits until neither Signet nor the floor has anything under way.
func (b *bench) rest(ctx context.Context) (Metrics, error) {
	if err := b.floor.rest(); err != nil {
		return nil, fmt.Errorf("the floor failed in the background: %w", err)
	}
	return b.agent.rest(ctx)
}

// volumes makes n volumes known, of as many pods.
func (b *bench) volumes(n int) ([]volume, error) {
	b.generation++
	all := make([]volume, 0, n)
	for i := range n {
		v, err := b.kubelet.volume(b.pods[i%len(b.pods)], b.generation*100+i/len(b.pods))
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, nil
}

// errFailed is a round in which something failed that nothing may fail in.
var errFailed = errors.New("issuances failed")

// mount publishes volumes whose time is not measured.
func (b *bench) mount(ctx context.Context, volumes []volume) error {
	_, _, err := window(ctx, b.kubelet, volumes, time.Hour, 2*b.Sizes.Concurrency)
	return err
}
