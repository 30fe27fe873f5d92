// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"
)

// waitForObject watches one object until it exists and the condition holds.
func waitForObject(ctx context.Context, resource dynamic.ResourceInterface, name string, condition func(*unstructured.Unstructured) bool) error {
	selector := fields.OneTermEqualSelector("metadata.name", name).String()
	source := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			options.FieldSelector = selector
			return resource.List(ctx, options)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.FieldSelector = selector
			return resource.Watch(ctx, options)
		},
	}
	var last *unstructured.Unstructured
	_, err := watchtools.UntilWithSync(ctx, source, &unstructured.Unstructured{}, nil, func(event watch.Event) (bool, error) {
		object, ok := event.Object.(*unstructured.Unstructured)
		if !ok || event.Type == watch.Deleted {
			return false, nil
		}
		last = object
		return condition(object), nil
	})
	if err == nil {
		return nil
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if last == nil {
		return errors.Join(err, fmt.Errorf("%s does not exist", name))
	}
	return errors.Join(err, fmt.Errorf("%s has conditions %v", name, conditions(last)))
}

// hasCondition is whether a condition of the object is True.
func hasCondition(object *unstructured.Unstructured, name string) bool {
	for _, c := range conditions(object) {
		if condition, ok := c.(map[string]any); ok && condition["type"] == name {
			return condition["status"] == "True"
		}
	}
	return false
}

// conditions are the object's, or none if it is not as usual.
func conditions(object *unstructured.Unstructured) []any {
	list, _, err := unstructured.NestedSlice(object.Object, "status", "conditions")
	if err != nil {
		return nil
	}
	return list
}

func waitForNode(ctx context.Context, config *rest.Config, name string) error {
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return err
	}
	nodes := client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "nodes"})
	err = waitForObject(ctx, nodes, name, func(node *unstructured.Unstructured) bool {
		return hasCondition(node, "Ready")
	})
	if err != nil {
		return fmt.Errorf("wait for %s to be ready: %w", name, err)
	}
	return nil
}

// waitForDefaultServiceAccount waits for what every pod that names no other
// runs as.
func waitForDefaultServiceAccount(ctx context.Context, config *rest.Config) error {
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return err
	}
	accounts := client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "serviceaccounts"}).Namespace("default")
	if err := waitForObject(ctx, accounts, "default", func(*unstructured.Unstructured) bool { return true }); err != nil {
		return fmt.Errorf("wait for the default service account: %w", err)
	}
	return nil
}
