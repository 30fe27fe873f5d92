// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package certmanager

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cert-manager/cert-manager/pkg/client/clientset/versioned"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/workqueue"

	"github.com/signet-spiffe/signet/agent/issue"
)

const (
	deleteWorkers  = 8
	deleteTimeout  = 10 * time.Second
	deleteAttempts = 8
	deleteBackoff  = 250 * time.Millisecond
	maxBackoff     = 30 * time.Second
)

// trash deletes requests in the background: at once, then again with a growing
// pause, then never. What it gives up on goes with the pod that owns it, or with
// the next list, which shows it to be stale.
type trash struct {
	client  versioned.Interface
	log     *slog.Logger
	metrics *metrics
	queue   workqueue.TypedRateLimitingInterface[ref]
}

func newTrash(client versioned.Interface, log *slog.Logger, m *metrics) *trash {
	return &trash{
		client: client, log: log, metrics: m,
		queue: workqueue.NewTypedRateLimitingQueue(
			workqueue.NewTypedItemExponentialFailureRateLimiter[ref](deleteBackoff, maxBackoff)),
	}
}

// add never blocks. What comes after close is dropped.
func (t *trash) add(refs ...ref) {
	for _, r := range refs {
		t.queue.Add(r)
	}
}

// run starts the workers. The channel it returns is closed when they have
// ended, which close makes them do once nothing is left to delete at once.
func (t *trash) run(ctx context.Context) <-chan struct{} {
	var workers sync.WaitGroup
	for range deleteWorkers {
		workers.Go(func() {
			for t.next(ctx) {
			}
		})
	}
	ended := make(chan struct{})
	go func() { workers.Wait(); close(ended) }()
	return ended
}

func (t *trash) close() { t.queue.ShutDown() }

func (t *trash) next(ctx context.Context) bool {
	r, shutdown := t.queue.Get()
	if shutdown {
		return false
	}
	defer t.queue.Done(r)
	err := t.remove(ctx, r)
	switch {
	case err == nil:
		t.queue.Forget(r)
	case t.queue.NumRequeues(r) < deleteAttempts-1 && !apierrors.IsForbidden(err):
		t.queue.AddRateLimited(r)
	default:
		t.queue.Forget(r)
		t.metrics.undeleted.Inc()
		t.log.Warn("CertificateRequest left behind; it goes with its pod",
			"certificate_request", r.String(), "error", issue.Quote(err.Error()))
	}
	return true
}

// remove deletes one request. One that is gone, or whose name another object
// has taken, counts as deleted.
func (t *trash) remove(ctx context.Context, r ref) error {
	ctx, cancel := context.WithTimeout(ctx, deleteTimeout)
	defer cancel()
	var o metav1.DeleteOptions
	if r.uid != "" {
		o.Preconditions = &metav1.Preconditions{UID: &r.uid}
	}
	err := t.client.CertmanagerV1().CertificateRequests(r.Namespace).Delete(ctx, r.Name, o)
	if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return fmt.Errorf("delete CertificateRequest %s: %w", r.NamespacedName, err)
}
