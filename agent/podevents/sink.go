// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package podevents

import (
	"context"
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
)

// apiServer is the Sink of a cluster.
type apiServer struct{ client rest.Interface }

// NewSink makes the Sink that creates and patches Events in the API server. It
// has no rate limit of its own: the Recorder has.
func NewSink(config *rest.Config) (Sink, error) {
	c := rest.CopyConfig(config)
	c.RateLimiter, c.QPS, c.Burst = nil, -1, 0
	c.APIPath, c.GroupVersion = "/api", &corev1.SchemeGroupVersion
	c.NegotiatedSerializer = scheme.Codecs.WithoutConversion()
	client, err := rest.RESTClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("make client for Events: %w", err)
	}
	return apiServer{client}, nil
}

// Send implements Sink. A repetition of an Event that the API server has
// forgotten, or never got, is created. One that exists was told by this agent's
// life before, or its answer was lost.
func (a apiServer) Send(ctx context.Context, event *corev1.Event) error {
	if event.Count > 1 {
		err := a.patch(ctx, event)
		if !apierrors.IsNotFound(err) {
			return err
		}
	}
	err := a.client.Post().Namespace(event.Namespace).Resource("events").Body(event).Do(ctx).Error()
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return sendError("create", event, err)
	}
	return nil
}

// occurrence is what changes of an Event that is repeated.
type occurrence struct {
	Count         int32       `json:"count"`
	LastTimestamp metav1.Time `json:"lastTimestamp"`
	Message       string      `json:"message"`
}

func (a apiServer) patch(ctx context.Context, event *corev1.Event) error {
	body, err := json.Marshal(occurrence{event.Count, event.LastTimestamp, event.Message})
	if err != nil {
		return fmt.Errorf("encode patch of Event %s/%s: %w", event.Namespace, event.Name, err)
	}
	err = a.client.Patch(types.MergePatchType).Namespace(event.Namespace).Resource("events").Name(event.Name).Body(body).Do(ctx).Error()
	if err != nil {
		return sendError("patch", event, err)
	}
	return nil
}

func sendError(verb string, event *corev1.Event, err error) error {
	return fmt.Errorf("%s Event %s/%s: %w", verb, event.Namespace, event.Name, err)
}
