// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"
)

// reaper starts processes and waits for them. It is for PID 1 of a PID
// namespace, which also inherits, and must wait for, processes it never
// started; that is why it does not use os/exec, whose waiting would compete.
type reaper struct {
	// mu is held across a start and its registration, so that an end is never
	// seen before the start. It guards children.
	mu       sync.Mutex
	children map[int]chan<- syscall.WaitStatus
}

func newReaper() *reaper {
	r := &reaper{children: map[int]chan<- syscall.WaitStatus{}}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	go func() {
		for range ended {
			for r.reapOne() {
			}
		}
	}()
	return r
}

// reapOne waits for one ended child, if there is one.
func (r *reaper) reapOne() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	var status syscall.WaitStatus
	pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
	if errors.Is(err, syscall.EINTR) {
		return true
	}
	if err != nil || pid <= 0 {
		return false
	}
	if ended, ours := r.children[pid]; ours {
		delete(r.children, pid)
		ended <- status
	}
	return true
}

// start starts a process. The channel receives its status once it has ended.
func (r *reaper) start(path string, argv []string, attr *os.ProcAttr) (pid int, ended <-chan syscall.WaitStatus, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	process, err := os.StartProcess(path, argv, attr)
	if err != nil {
		return 0, nil, err
	}
	status := make(chan syscall.WaitStatus, 1)
	r.children[process.Pid] = status
	pid = process.Pid
	return pid, status, process.Release()
}

// State of a component.
const (
	StateStopped = "stopped"
	StateRunning = "running"
	StateFailed  = "failed"
)

// ComponentStatus is what a supervisor or a node says of a component.
type ComponentStatus struct {
	// Name as in the binaries: "kube-apiserver", "kubelet", …
	Name string
	// Node it runs on, or empty for the control plane.
	Node string
	// State is StateStopped if it was never started or was told to stop,
	// StateRunning, or StateFailed if it ended by itself.
	State string
	// Detail says how it ended, if it has.
	Detail string
	// PID in the PID namespace of the supervisor or of the node; 0 unless
	// running.
	PID int
	// Log is the host path of its log.
	Log string
}

// componentSet is the components that one supervisor or node looks after.
type componentSet struct {
	reaper *reaper
	// failed receives the error of each component that ends by itself.
	failed chan error

	// mu guards the map and the mutable part of its entries. It is not held
	// while a process ends.
	mu      sync.Mutex
	entries map[string]*entry
}

type entry struct {
	component
	pid      int
	done     chan struct{} // closed when the process of pid has ended
	stopping bool
	state    string
	detail   string
}

func newComponentSet(r *reaper, list []component) *componentSet {
	s := &componentSet{reaper: r, failed: make(chan error, 16), entries: map[string]*entry{}}
	for _, c := range list {
		s.entries[c.Name] = &entry{component: c, state: StateStopped}
	}
	return s
}

// start starts a component. Starting one that runs is an error.
func (s *componentSet) start(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, err := s.lookup(name)
	if err != nil {
		return err
	}
	if e.state == StateRunning {
		return fmt.Errorf("start %s: it is running already", name)
	}
	log, err := openLog(e.Log)
	if err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	defer null.Close()
	pid, ended, err := s.reaper.start(e.Path, append([]string{e.Name}, e.Args...), &os.ProcAttr{
		Dir:   "/",
		Env:   append(slices.Clone(e.Env), cleanEnviron()...), // The first of a name counts.
		Files: []*os.File{null, log, log},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	e.pid, e.done, e.stopping, e.state, e.detail = pid, make(chan struct{}), false, StateRunning, ""
	go s.watch(e, ended)
	return nil
}

func openLog(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	return os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
}

// watch records the end of a component's process.
func (s *componentSet) watch(e *entry, ended <-chan syscall.WaitStatus) {
	status := <-ended
	s.mu.Lock()
	defer s.mu.Unlock()
	e.pid = 0
	e.detail = describe(status)
	e.state = StateFailed
	if e.stopping {
		e.state = StateStopped
	}
	close(e.done)
	if e.state == StateFailed {
		select {
		case s.failed <- endedError(e.component, e.detail):
		default: // nobody is interested any more
		}
	}
}

// endedError says what a component said last, so that the reader need not
// look for its log.
func endedError(c component, detail string) error {
	last := "(its log cannot be read)"
	if content, err := os.ReadFile(c.Log); err == nil {
		last = tail(content, 15)
	}
	return fmt.Errorf("%s ended by itself: %s; its log %s ends with:\n%s", c.Name, detail, c.Log, last)
}

func describe(status syscall.WaitStatus) string {
	if status.Signaled() {
		return "killed by " + status.Signal().String()
	}
	return fmt.Sprintf("exit status %d", status.ExitStatus())
}

// stop ends a component and waits until it has ended: with SIGTERM, and with
// SIGKILL after the grace. A grace of 0 kills at once. Stopping one that does
// not run is no error.
func (s *componentSet) stop(ctx context.Context, name string, grace time.Duration) error {
	s.mu.Lock()
	e, err := s.lookup(name)
	if err != nil {
		s.mu.Unlock()
		return err
	}
	if e.state != StateRunning {
		e.state = StateStopped
		s.mu.Unlock()
		return nil
	}
	e.stopping = true
	pid, done := e.pid, e.done
	s.mu.Unlock()

	// Between its end and done being closed the number is free, but the
	// kernel counts on before it uses one again.
	signals := []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL}
	if grace <= 0 {
		signals = signals[1:]
	}
	for _, sig := range signals {
		if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("stop %s: %w", name, err)
		}
		var expired <-chan time.Time
		if sig == syscall.SIGTERM {
			expired = time.After(grace)
		}
		select {
		case <-done:
			return nil
		case <-expired:
		case <-ctx.Done():
			return fmt.Errorf("stop %s: %w", name, context.Cause(ctx))
		}
	}
	return nil
}

// lookup finds a component. The caller holds mu.
func (s *componentSet) lookup(name string) (*entry, error) {
	if e, ok := s.entries[name]; ok {
		return e, nil
	}
	var have []string
	for n := range s.entries {
		have = append(have, n)
	}
	slices.Sort(have)
	return nil, fmt.Errorf("there is no component %q here, only %q", name, have)
}

func (s *componentSet) status(node string) []ComponentStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []ComponentStatus
	for _, e := range s.entries {
		out = append(out, ComponentStatus{
			Name: e.Name, Node: node, State: e.state, Detail: e.detail, PID: e.pid, Log: e.Log,
		})
	}
	slices.SortFunc(out, func(a, b ComponentStatus) int { return cmp.Compare(a.Name, b.Name) })
	return out
}
