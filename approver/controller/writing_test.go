// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// slowWriter holds every patch until it is let go.
type slowWriter struct {
	client.SubResourceWriter
	writing, most atomic.Int64
	letGo         chan struct{}
}

func (w *slowWriter) Patch(ctx context.Context, o client.Object, p client.Patch, opts ...client.SubResourcePatchOption) error {
	w.most.Store(max(w.most.Load(), w.writing.Add(1)))
	<-w.letGo
	w.writing.Add(-1)
	return w.SubResourceWriter.Patch(ctx, o, p, opts...)
}

// Writes are bounded, and what is read for the next ones does not wait for them.
func TestPodsAreReadWhileDecisionsWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const requests, bound = 8, 2
		objects := []client.Object{testPod()}
		var keys []reconcile.Request
		for range requests {
			cr := testRequest()
			objects = append(objects, cr)
			keys = append(keys, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(cr)})
		}
		c := newCluster(t, objects...)
		w := &slowWriter{SubResourceWriter: c.Status(), letGo: make(chan struct{})}
		c.reconciler.status, c.reconciler.writing = w, make(chan struct{}, bound)

		results := make(chan error, requests)
		for _, key := range keys {
			go func() {
				_, err := c.reconciler.Reconcile(t.Context(), key)
				results <- err
			}()
		}
		synctest.Wait()
		if got := c.podReads.Load(); got != requests {
			t.Errorf("%d pods were read while %d decisions were written, want %d", got, w.writing.Load(), requests)
		}
		close(w.letGo)
		for range requests {
			if err := <-results; err != nil {
				t.Error(err)
			}
		}
		if got := w.most.Load(); got != bound {
			t.Errorf("%d decisions were written at the same time, want %d", got, bound)
		}
	})
}

// A decision that waits ends with the approver.
func TestWaitingDecisionEndsWithTheApprover(t *testing.T) {
	cr := testRequest()
	c := newCluster(t, cr, testPod())
	c.reconciler.writing <- struct{}{}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("stopping")
	cancel(why)
	if _, err := c.reconciler.Reconcile(ctx, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(cr)}); !errors.Is(err, why) {
		t.Errorf("%v, want %v", err, why)
	}
	if c.patches.Load() != 0 {
		t.Error("decided all the same")
	}
}
