// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package boundpods

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	coreclient "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/signet-spiffe/signet/agent/issue"
)

// Options configure New.
type Options struct {
	// Client gets, lists and watches pods.
	Client coreclient.CoreV1Interface
	// Node whose pods these are.
	Node string
	// Log and Registerer may be nil.
	Log        *slog.Logger
	Registerer prometheus.Registerer
}

// Pods are the pods that are bound to the node. Safe for concurrent use.
type Pods struct {
	options Options
	log     *slog.Logger
	metrics *metrics

	mu     sync.Mutex // Guards what follows. Never held during I/O.
	users  map[types.UID]*int64
	synced bool
	// trouble is how the newest list or watch call began.
	trouble error
	changed chan struct{} // Closed and replaced at every news.
}

// New makes Pods that know none until Run is running. It does no I/O.
func New(o Options) (*Pods, error) {
	if o.Client == nil || o.Node == "" {
		return nil, errors.New("watch pods: client and node are needed")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	m, err := newMetrics(o.Registerer)
	if err != nil {
		return nil, fmt.Errorf("watch pods: %w", err)
	}
	return &Pods{options: o, log: o.Log, metrics: m, users: map[types.UID]*int64{}, changed: make(chan struct{})}, nil
}

// SharedUser returns the user that all containers of the pod run as; nil if there
// is none, or it is root. A pod that the watch has not shown yet is read from the API
// server; where that fails the watch is waited for, until ctx ends.
//
// Every error wraps issue.ErrUnavailable: nothing is guessed, kubelet comes back.
func (p *Pods) SharedUser(ctx context.Context, pod issue.Pod) (*int64, error) {
	user, known, changed := p.look(pod)
	if known {
		p.metrics.lookups.WithLabelValues(lookupWatched).Inc()
		return user, nil
	}
	user, err := p.read(ctx, pod, changed)
	if err != nil {
		p.metrics.lookups.WithLabelValues(lookupFailed).Inc()
		return nil, fmt.Errorf("find out the user that pod %s/%s runs as (the agent has --watch-pods): %w: %w", pod.Namespace, pod.Name, issue.ErrUnavailable, err)
	}
	p.metrics.lookups.WithLabelValues(lookupRead).Inc()
	return user, nil
}

func (p *Pods) look(pod issue.Pod) (user *int64, known bool, changed <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	user, known = p.users[types.UID(pod.UID)]
	return user, known, p.changed
}

// read gets the pod while it listens for the watch to show it.
func (p *Pods) read(ctx context.Context, pod issue.Pod, changed <-chan struct{}) (*int64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		pod *corev1.Pod
		err error
	}
	answers := make(chan answer, 1)
	go func() {
		got, err := p.options.Client.Pods(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{})
		answers <- answer{got, err}
	}()
	trouble := errors.New("the API server has not answered")
	for {
		select {
		case a := <-answers:
			switch {
			case a.err == nil && string(a.pod.UID) == pod.UID:
				return sharedUser(a.pod), nil
			case a.err == nil:
				return nil, fmt.Errorf("there is another pod of that name, with UID %s and not %s", a.pod.UID, pod.UID)
			case apierrors.IsNotFound(a.err):
				return nil, errors.New("there is no such pod any more")
			case apierrors.IsForbidden(a.err):
				return nil, fmt.Errorf("%s (deploy/watch-pods has the right that is needed)", issue.Quote(a.err.Error()))
			}
			trouble = errors.New(issue.Quote(a.err.Error()))
		case <-changed:
			var user *int64
			var known bool
			if user, known, changed = p.look(pod); known {
				return user, nil
			}
		case <-ctx.Done():
			// Not the cause: who asked must not take this for a request that goes on.
			return nil, trouble
		}
	}
}

// put takes in a pod that is there.
func (p *Pods) put(pod *corev1.Pod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.users[pod.UID] = sharedUser(pod)
	p.bump()
}

func (p *Pods) remove(pod *corev1.Pod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.users, pod.UID)
	p.bump()
}

// replace takes in all pods that are there.
func (p *Pods) replace(pods []*corev1.Pod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.users = make(map[types.UID]*int64, len(pods))
	for _, pod := range pods {
		p.users[pod.UID] = sharedUser(pod)
	}
	p.synced = true
	p.bump()
}

// bump: the caller holds mu.
func (p *Pods) bump() { close(p.changed); p.changed = make(chan struct{}) }

// Watching says why the agent does not hear of pods at present: nil, or that it
// has heard of none yet, or the error of the newest list or watch call.
func (p *Pods) Watching() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.trouble != nil:
		return fmt.Errorf("watch the pods of this node (--watch-pods): %w", p.trouble)
	case !p.synced:
		return errors.New("the API server has not listed this node's pods yet (--watch-pods)")
	}
	return nil
}

// called takes in how a list or watch call began. That a server is asked for what
// is too old, or does not stream lists, is no trouble: the next call does without.
func (p *Pods) called(ctx context.Context, err error) {
	if ctx.Err() != nil || apierrors.IsInvalid(err) || apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	news := err != nil && p.trouble == nil
	p.trouble = err
	p.bump()
	if news {
		p.log.Warn("cannot watch the pods of this node; tried again and again", "error", issue.Quote(err.Error()))
	}
}
