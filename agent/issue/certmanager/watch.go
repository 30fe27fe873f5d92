// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package certmanager

import (
	"context"
	"fmt"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/signet-spiffe/signet/internal/request"
)

// relistBackoff paces reconnecting. client-go's own goes up to a minute, which
// a pod that waits for its first SVID would feel after every API server upgrade.
func relistBackoff() *wait.Backoff {
	return &wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 10, Cap: 3 * time.Second}
}

// watch feeds the board until ctx ends.
func (i *Issuer) watch(ctx context.Context) {
	selector := request.LabelAgent + "=" + request.Hash(i.options.Driver, i.options.Node)
	requests := i.options.Client.CertmanagerV1().CertificateRequests(metav1.NamespaceAll)
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.LabelSelector = selector
			if o.ResourceVersion == "0" && i.board.adopts() {
				// Not from a cache that may lag behind: what is missing from this
				// list is asked for anew.
				o.ResourceVersion = ""
			}
			list, err := requests.List(ctx, o)
			i.called("list", err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.LabelSelector = selector
			w, err := requests.Watch(ctx, o)
			i.called("watch", err)
			return w, err
		},
	}
	reflector := cache.NewReflectorWithOptions(
		cache.ToListWatcherWithWatchListSemantics(lw, i.options.Client),
		&cmapi.CertificateRequest{}, feed{i},
		cache.ReflectorOptions{Name: "certificaterequests of this agent", Backoff: relistBackoff()})
	reflector.RunWithContext(ctx)
}

// called takes in how a list or watch call began.
func (i *Issuer) called(call string, err error) {
	i.metrics.watchResult(call, err)
	before := i.lastCall.Swap(&err)
	if err == nil || before != nil && *before == nil {
		i.heard.Store(time.Now().UnixNano())
	}
}

// Heard is when the API server was last known to be heard: now, while it is; when
// that was lost; zero if it never was.
func (i *Issuer) Heard() time.Time {
	heard := i.heard.Load()
	switch {
	case heard == 0:
		return time.Time{}
	case i.Watching() == nil:
		return time.Now()
	}
	return time.Unix(0, heard)
}

// Watching says why this agent does not hear of results at present: nil, or the
// error of the newest list or watch call. A watch that ends is begun anew at
// once, so the error stands for as long as the API server cannot be reached.
func (i *Issuer) Watching() error {
	if err := i.lastCall.Load(); err != nil && *err != nil {
		return fmt.Errorf("watch CertificateRequests: %w", *err)
	}
	return nil
}

// feed is a reflector's store that stores nothing: it hands what comes to the
// board, in the reflector's goroutine.
type feed struct{ issuer *Issuer }

var _ cache.TransformingStore = feed{}

func (f feed) Add(o any) error { return f.with(o, f.issuer.board.observe) }

func (f feed) Update(o any) error { return f.with(o, f.issuer.board.observe) }

func (f feed) Delete(o any) error { return f.with(o, f.issuer.board.removed) }

func (f feed) Replace(objects []any, version string) error {
	list := make([]*cmapi.CertificateRequest, 0, len(objects))
	for _, o := range objects {
		if err := f.with(o, func(cr *cmapi.CertificateRequest) { list = append(list, cr) }); err != nil {
			return err
		}
	}
	stale := f.issuer.board.replace(list, version)
	if len(stale) > 0 {
		f.issuer.log.Info("deleting CertificateRequests of this agent that nobody waits for", "count", len(stale))
	}
	f.issuer.trash.add(stale...)
	f.issuer.synced.Store(true)
	return nil
}

func (feed) Resync() error { return nil }

// Transformer drops what is not needed while a streamed list is collected.
func (feed) Transformer() cache.TransformFunc {
	return func(o any) (any, error) {
		if cr, ok := o.(*cmapi.CertificateRequest); ok {
			cr.ManagedFields = nil
			cr.Spec = cmapi.CertificateRequestSpec{}
		}
		return o, nil
	}
}

func (feed) with(o any, use func(*cmapi.CertificateRequest)) error {
	cr, ok := o.(*cmapi.CertificateRequest)
	if !ok {
		return fmt.Errorf("watch CertificateRequests: got a %T", o)
	}
	use(cr)
	return nil
}
