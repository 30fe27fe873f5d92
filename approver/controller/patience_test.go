// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	toolscache "k8s.io/client-go/tools/cache"
)

var requestsResource = schema.GroupResource{Group: "cert-manager.io", Resource: "certificaterequests"}

// An API server that was away, however often and however long, is heard from within
// seconds after it is back.
func TestTheAPIServerIsHeardFromSoonAfterItIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var backAt time.Time
		heard := make(chan time.Duration, 1)
		lists := 0
		answer := func() error {
			switch {
			case time.Now().Before(backAt):
				return syscall.ECONNREFUSED
			case time.Now().Before(backAt.Add(100 * time.Millisecond)):
				return apierrors.NewForbidden(requestsResource, "", errors.New("no roles yet"))
			}
			return nil
		}
		outage := make(chan struct{})
		lw := &toolscache.ListWatch{
			ListWithContextFunc: func(context.Context, metav1.ListOptions) (runtime.Object, error) {
				if err := answer(); err != nil {
					return nil, err
				}
				lists++
				return &cmapi.CertificateRequestList{ListMeta: metav1.ListMeta{ResourceVersion: "1"}}, nil
			},
			WatchFuncWithContext: func(_ context.Context, o metav1.ListOptions) (watch.Interface, error) {
				if o.SendInitialEvents != nil {
					return nil, apierrors.NewInvalid(schema.GroupKind{}, "", nil) // As a server without streamed lists.
				}
				if err := answer(); err != nil {
					return nil, err
				}
				w, ended := watch.NewFake(), outage
				heard <- time.Since(backAt)
				go func() { <-ended; w.Stop() }()
				return w, nil
			},
		}
		var log bytes.Buffer
		informer := newInformer(slog.New(slog.NewTextHandler(&log, nil)))(lw, &cmapi.CertificateRequest{}, 0, toolscache.Indexers{})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		backAt = time.Now()
		go func() { defer close(ended); informer.RunWithContext(ctx) }()
		<-heard
		// Several in a row: an informer's own pace slows down with each.
		for _, long := range []time.Duration{time.Second, 10 * time.Second, time.Minute, time.Second, time.Second} {
			time.Sleep(2 * time.Second) // A watch that ends within a second counts as one that failed.
			ending := outage
			outage, backAt = make(chan struct{}), time.Now().Add(long)
			close(ending)
			if after := <-heard; after > 6*time.Second {
				t.Errorf("after an outage of %s it was heard from after another %s", long, after)
			}
		}
		close(outage)
		cancel()
		<-ended
		if lists == 0 || !strings.Contains(log.String(), "does not answer") {
			t.Errorf("%d lists; log: %s", lists, log.String())
		}
	})
}

func TestAway(t *testing.T) {
	for name, tt := range map[string]struct {
		err  error
		want bool
	}{
		"nobody listens":           {syscall.ECONNREFUSED, true},
		"overloaded":               {apierrors.NewTooManyRequests("", 1), true},
		"starting":                 {apierrors.NewServiceUnavailable(""), true},
		"no roles yet":             {apierrors.NewForbidden(requestsResource, "", nil), true},
		"no custom resources yet":  {apierrors.NewNotFound(requestsResource, ""), true},
		"too old":                  {apierrors.NewResourceExpired("too old resource version"), false},
		"from the future":          {tooLarge(), false},
		"streamed lists forbidden": {apierrors.NewInvalid(schema.GroupKind{}, "", nil), false},
	} {
		if got := away(tt.err); got != tt.want {
			t.Errorf("%s: %t, want %t (%v)", name, got, tt.want, tt.err)
		}
	}
}

func tooLarge() error {
	err := apierrors.NewTimeoutError("Too large resource version", 1)
	err.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: metav1.CauseTypeResourceVersionTooLarge}}
	return err
}
