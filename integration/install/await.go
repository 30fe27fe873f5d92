// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"
)

// Selection is which objects to watch.
type Selection struct {
	// Client is the typed client's RESTClient().
	Client cache.Getter
	// Resource in the plural: "pods".
	Resource  string
	Namespace string
	// Name, if set, selects one object.
	Name string
	// From, if set, is the resource version from which on changes are watched,
	// without a look at what exists: that of an object just created, so that not
	// even its deletion is missed.
	From string
	// What describes the selection in errors: "pod ns/name to be ready".
	What string
}

func (s Selection) listWatch() *cache.ListWatch {
	selector := fields.Everything()
	if s.Name != "" {
		selector = fields.OneTermEqualSelector("metadata.name", s.Name)
	}
	return cache.NewListWatchFromClient(s.Client, s.Resource, s.Namespace, selector)
}

// AwaitNone watches the selected objects until there are none of which is
// returns true.
func AwaitNone[O any, P interface {
	*O
	runtime.Object
}](ctx context.Context, s Selection, is func(P) bool) error {
	left := map[string]bool{}
	note := func(object P, there bool) error {
		accessor, err := meta.Accessor(object)
		if err != nil {
			return err
		}
		key := accessor.GetNamespace() + "/" + accessor.GetName()
		if delete(left, key); there && is(object) {
			left[key] = true
		}
		return nil
	}
	precondition := func(store cache.Store) (bool, error) {
		for _, item := range store.List() {
			if object, ok := item.(P); ok {
				if err := note(object, true); err != nil {
					return false, err
				}
			}
		}
		return len(left) == 0, nil
	}
	_, err := watchtools.UntilWithSync(ctx, s.listWatch(), P(new(O)), precondition, func(event watch.Event) (bool, error) {
		object, ok := event.Object.(P)
		if !ok {
			return false, nil
		}
		err := note(object, event.Type != watch.Deleted)
		return len(left) == 0, err
	})
	if err != nil {
		return fmt.Errorf("wait for %s: %w: left are %q", s.What, err, slices.Sorted(maps.Keys(left)))
	}
	return nil
}

// never is an error that ends a wait at once.
type never struct{ error }

func (n never) Unwrap() error { return n.error }

// Never makes a condition's answer final: there is no use in waiting on.
func Never(err error) error { return never{err} }

// Await watches the selected objects, those that exist first, until done
// returns nil for one and returns that one. An error of done says what is still
// missing; the last one is in Await's error when ctx ends first. Done is called
// with deleted set for the last state of an object that was deleted.
func Await[O any, P interface {
	*O
	runtime.Object
}](ctx context.Context, s Selection, done func(object P, deleted bool) error) (P, error) {
	var found P
	missing := errors.New("there is no such object")
	condition := func(event watch.Event) (bool, error) {
		object, ok := event.Object.(P)
		if !ok || event.Type == watch.Bookmark {
			return false, nil
		}
		err := done(object, event.Type == watch.Deleted)
		if err == nil {
			found = object
			return true, nil
		}
		missing = err
		var final never
		if errors.As(err, &final) {
			return false, final
		}
		return false, nil
	}
	var err error
	if s.From != "" {
		_, err = watchtools.Until(ctx, s.From, s.listWatch(), condition)
	} else {
		_, err = watchtools.UntilWithSync(ctx, s.listWatch(), P(new(O)), nil, condition)
	}
	if found != nil {
		return found, nil
	}
	var final never
	if errors.As(err, &final) {
		return nil, fmt.Errorf("wait for %s: %w", s.What, final.error)
	}
	if err == nil {
		err = context.Cause(ctx)
	}
	return nil, fmt.Errorf("wait for %s: %w: last seen: %w", s.What, err, missing)
}
