// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package issuerconfig

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/signet-spiffe/signet/agent/issue"
	"github.com/signet-spiffe/signet/internal/request"
)

// relistBackoff paces reconnecting: a pod may be waiting for the first list.
func relistBackoff() *wait.Backoff {
	return &wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 10, Cap: 3 * time.Second}
}

// Run follows the ConfigMap until ctx ends. An API server that cannot be reached
// is tried again and again; the issuer stays as it was. Of a Fixed source it
// returns at once. Call it once.
func (s *Source) Run(ctx context.Context) {
	if s.options.ConfigMap.Name == "" {
		return
	}
	configMaps := s.options.Client.ConfigMaps(s.options.ConfigMap.Namespace)
	selector := fields.OneTermEqualSelector("metadata.name", s.options.ConfigMap.Name).String()
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = selector
			list, err := configMaps.List(ctx, o)
			s.note(err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = selector
			w, err := configMaps.Watch(ctx, o)
			s.note(err)
			return w, err
		},
	}
	reflector := cache.NewReflectorWithOptions(
		cache.ToListWatcherWithWatchListSemantics(lw, s.options.Client), &corev1.ConfigMap{}, feed{s, ctx},
		cache.ReflectorOptions{Name: "the ConfigMap that names the issuer", Backoff: relistBackoff()})
	reflector.RunWithContext(ctx)
}

func (s *Source) note(err error) {
	if err != nil {
		s.failed(err)
	}
}

// feed is a reflector's store that stores nothing: what comes goes to the Source,
// in the reflector's goroutine. Its context is Run's.
type feed struct {
	source *Source
	ctx    context.Context
}

var _ cache.ReflectorStore = feed{}

func (f feed) Add(o any) error {
	cm, ok := o.(*corev1.ConfigMap)
	if !ok {
		return fmt.Errorf("watch ConfigMap %s: got a %T", f.source.options.ConfigMap, o)
	}
	if cm.Name != f.source.options.ConfigMap.Name {
		return nil // The selector keeps others away; nothing depends on it.
	}
	if err := f.source.present(cm); err != nil {
		f.source.publishEvent(f.ctx, cm, err)
	}
	return nil
}

func (f feed) Update(o any) error { return f.Add(o) }

func (f feed) Delete(o any) error {
	if cm, ok := o.(*corev1.ConfigMap); ok && cm.Name == f.source.options.ConfigMap.Name {
		f.source.absent()
	}
	return nil
}

// Replace takes in a complete list: what is not in it is not there.
func (f feed) Replace(objects []any, _ string) error {
	for _, o := range objects {
		if cm, ok := o.(*corev1.ConfigMap); ok && cm.Name == f.source.options.ConfigMap.Name {
			return f.Add(cm)
		}
	}
	f.source.absent()
	return nil
}

func (feed) Resync() error { return nil }

// eventTimeout bounds the write of one Event.
const eventTimeout = 10 * time.Second

// EventReason is the reason of Events about content that was refused.
const EventReason = "InvalidRuntimeIssuer"

// publishEvent tells whoever wrote the ConfigMap, in the background. Agents of
// all nodes see the same content: the Event's name follows from the ConfigMap's
// version, so the first one writes it and there is one, not one per node. Without
// the right to write Events the log has to do.
func (s *Source) publishEvent(ctx context.Context, cm *corev1.ConfigMap, refusal error) {
	now := metav1.Now()
	event := &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: cm.Namespace, Name: eventName(cm)},
		InvolvedObject: corev1.ObjectReference{
			APIVersion: "v1", Kind: "ConfigMap", Namespace: cm.Namespace, Name: cm.Name, UID: cm.UID, ResourceVersion: cm.ResourceVersion,
		},
		Type: corev1.EventTypeWarning, Reason: EventReason,
		Message:        "refused, the issuer stays as it was: " + issue.Quote(refusal.Error()),
		Source:         corev1.EventSource{Component: "signet-agent", Host: s.options.Reporter},
		FirstTimestamp: now, LastTimestamp: now, Count: 1,
	}
	go func() {
		ctx, cancel := context.WithTimeout(ctx, eventTimeout)
		defer cancel()
		_, err := s.options.Client.Events(cm.Namespace).Create(ctx, event, metav1.CreateOptions{})
		switch {
		case err == nil || apierrors.IsAlreadyExists(err):
		case apierrors.IsForbidden(err):
			s.log.Info("no Event was written about the ConfigMap: the agent may not create Events in its namespace", "configmap", s.options.ConfigMap.String())
		default:
			s.log.Warn("could not write an Event about the ConfigMap", "configmap", s.options.ConfigMap.String(), "error", err)
		}
	}()
}

// eventName is the same for every agent that sees this version. maxPrefix leaves
// room for the suffix in the 253 bytes of an object name.
func eventName(cm *corev1.ConfigMap) string {
	const maxPrefix = 200
	prefix := cm.Name[:min(len(cm.Name), maxPrefix)]
	for len(prefix) > 0 && (prefix[len(prefix)-1] == '.' || prefix[len(prefix)-1] == '-') {
		prefix = prefix[:len(prefix)-1]
	}
	return prefix + "." + request.Hash(string(cm.UID), cm.ResourceVersion)[:16]
}
