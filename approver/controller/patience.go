// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"log/slog"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	toolscache "k8s.io/client-go/tools/cache"
)

// callBackoff paces list and watch calls while the API server is away.
func callBackoff() wait.Backoff {
	return wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 10, Cap: 3 * time.Second}
}

// newInformer is an informer that hears of requests again within seconds after the
// API server is back. client-go's own, left to itself, waits up to a minute between
// calls, longer with each outage in a row: an approver that leads would be alive and
// decide nothing, and SVIDs would expire.
func newInformer(log *slog.Logger) func(toolscache.ListerWatcher, runtime.Object, time.Duration, toolscache.Indexers) toolscache.SharedIndexInformer {
	return func(lw toolscache.ListerWatcher, example runtime.Object, resync time.Duration, indexers toolscache.Indexers) toolscache.SharedIndexInformer {
		return toolscache.NewSharedIndexInformer(patient(lw, log), example, resync, indexers)
	}
}

// patient tries calls again that found the API server away, before the informer
// hears of it and falls back to its own pace.
func patient(lw toolscache.ListerWatcher, log *slog.Logger) toolscache.ListerWatcher {
	calls := toolscache.ToListerWatcherWithContext(lw)
	return &toolscache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (list runtime.Object, err error) {
			err = untilBack(ctx, log.With("call", "list"), func() error {
				list, err = calls.ListWithContext(ctx, o)
				return err
			})
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (w watch.Interface, err error) {
			err = untilBack(ctx, log.With("call", "watch"), func() error {
				w, err = calls.WatchWithContext(ctx, o)
				return err
			})
			return w, err
		},
	}
}

// untilBack calls until it succeeds, fails in a way that the informer has to deal
// with, or ctx ends. What keeps it waiting is logged once.
func untilBack(ctx context.Context, log *slog.Logger, call func() error) error {
	backoff, said := callBackoff(), false
	for {
		err := call()
		if err == nil || ctx.Err() != nil || !away(err) {
			return err
		}
		if !said {
			log.Warn("the API server does not answer; trying again", "err", err)
			said = true
		}
		pause := time.NewTimer(backoff.Step())
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return err
		}
	}
}

// away says that an error is the API server's being down, starting or overloaded.
// One that has just started knows no roles and no custom resources for a moment, so
// that is taken for it as well. A resource version that is too old, or one from the
// future of a server that was restored from a backup, is the informer's to deal with.
func away(err error) bool {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return true // There was no answer.
	}
	if apierrors.HasStatusCause(err, metav1.CauseTypeResourceVersionTooLarge) {
		return false
	}
	for _, is := range []func(error) bool{
		apierrors.IsTooManyRequests, apierrors.IsServerTimeout, apierrors.IsTimeout, apierrors.IsServiceUnavailable,
		apierrors.IsInternalError, apierrors.IsForbidden, apierrors.IsUnauthorized, apierrors.IsNotFound,
	} {
		if is(err) {
			return true
		}
	}
	return false
}
