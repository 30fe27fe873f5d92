// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package boundpods

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// relistBackoff paces reconnecting: a mount may be waiting for its pod to show.
func relistBackoff() *wait.Backoff {
	return &wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 10, Cap: 3 * time.Second}
}

// Run watches the node's pods until ctx ends. An API server that cannot be reached
// is tried again and again; what is known stays known. Call it once.
func (p *Pods) Run(ctx context.Context) {
	pods := p.options.Client.Pods(metav1.NamespaceAll)
	selector := fields.OneTermEqualSelector("spec.nodeName", p.options.Node).String()
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = selector
			list, err := pods.List(ctx, o)
			p.called(ctx, err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = selector
			w, err := pods.Watch(ctx, o)
			p.called(ctx, err)
			return w, err
		},
	}
	reflector := cache.NewReflectorWithOptions(
		cache.ToListWatcherWithWatchListSemantics(lw, p.options.Client), &corev1.Pod{}, feed{p},
		cache.ReflectorOptions{Name: "pods of this node", Backoff: relistBackoff()})
	reflector.RunWithContext(ctx)
}

// feed is a reflector's store that stores nothing: what comes goes to Pods, in the
// reflector's goroutine.
type feed struct{ pods *Pods }

var _ cache.TransformingStore = feed{}

func (f feed) Add(o any) error { return with(o, f.pods.put) }

func (f feed) Update(o any) error { return with(o, f.pods.put) }

func (f feed) Delete(o any) error { return with(o, f.pods.remove) }

// Replace takes in a complete list: what is not in it is gone.
func (f feed) Replace(objects []any, _ string) error {
	list := make([]*corev1.Pod, 0, len(objects))
	for _, o := range objects {
		if err := with(o, func(pod *corev1.Pod) { list = append(list, pod) }); err != nil {
			return err
		}
	}
	f.pods.replace(list)
	return nil
}

func (feed) Resync() error { return nil }

// Transformer drops what is not needed while a streamed list is collected.
func (feed) Transformer() cache.TransformFunc {
	return func(o any) (any, error) {
		if pod, ok := o.(*corev1.Pod); ok {
			return trim(pod), nil
		}
		return o, nil
	}
}

func with(o any, use func(*corev1.Pod)) error {
	pod, ok := o.(*corev1.Pod)
	if !ok {
		return fmt.Errorf("watch pods: got a %T", o)
	}
	use(pod)
	return nil
}
