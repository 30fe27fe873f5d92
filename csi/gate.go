// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"fmt"
	"sync"
)

// gates lets publish and unpublish calls of one volume meet in order. Kubelet sends one call at a time, but
// a call that it gave up on may still run when the next one arrives.
type gates struct {
	mu sync.Mutex
	m  map[string]*gate
}

// gate is one volume's. It exists while a call for the volume runs.
type gate struct {
	users int

	publishing int    // publish calls inside
	leaving    int    // unpublish calls inside: no publish may begin
	departures uint64 // unpublish calls so far: a publish that sees it change has been overtaken

	mount sync.Mutex // held for the steps that change mounts
}

// publishCall is one NodePublishVolume inside the gate.
type publishCall struct {
	gates      *gates
	gate       *gate
	id         string
	departures uint64
}

// publish enters; it fails with ErrAborted while the volume is being unpublished.
func (g *gates) publish(id string) (*publishCall, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	v := g.use(id)
	if v.leaving > 0 {
		g.drop(id, v)
		return nil, fmt.Errorf("%w: volume %s is being unpublished", ErrAborted, id)
	}
	v.publishing++
	return &publishCall{gates: g, gate: v, id: id, departures: v.departures}, nil
}

// overtaken fails with ErrAborted when an unpublish began after this call. Under gate.mount the answer
// stays true until the lock is given back, since an unpublish needs it to go on.
func (c *publishCall) overtaken() error {
	c.gates.mu.Lock()
	defer c.gates.mu.Unlock()
	if c.gate.departures != c.departures {
		return fmt.Errorf("%w: volume %s was unpublished meanwhile", ErrAborted, c.id)
	}
	return nil
}

func (c *publishCall) done() {
	c.gates.mu.Lock()
	defer c.gates.mu.Unlock()
	c.gate.publishing--
	c.gates.drop(c.id, c.gate)
}

// discard turns this call into an unpublish if it is the volume's only one. The result must be called in
// the end; it is nil when another call is there to decide.
func (c *publishCall) discard() func() {
	c.gates.mu.Lock()
	defer c.gates.mu.Unlock()
	if c.gate.publishing > 1 || c.gate.leaving > 0 || c.gate.departures != c.departures {
		return nil
	}
	return c.gates.leave(c.id)
}

// unpublish enters and keeps publish calls out. The result must be called in the end.
func (g *gates) unpublish(id string) (*gate, func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	leave := g.leave(id)
	return g.m[id], leave
}

// leave needs mu.
func (g *gates) leave(id string) func() {
	v := g.use(id)
	v.leaving++
	v.departures++
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		v.leaving--
		g.drop(id, v)
	}
}

// use and drop need mu.
func (g *gates) use(id string) *gate {
	if g.m == nil {
		g.m = map[string]*gate{}
	}
	v := g.m[id]
	if v == nil {
		v = &gate{}
		g.m[id] = v
	}
	v.users++
	return v
}

func (g *gates) drop(id string, v *gate) {
	if v.users--; v.users == 0 {
		delete(g.m, id)
	}
}
