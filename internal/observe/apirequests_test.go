// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"k8s.io/client-go/rest"
)

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestAPIRequests(t *testing.T) {
	registry := prometheus.NewRegistry()
	requests, err := NewAPIRequests(registry, "signet_test")
	if err != nil {
		t.Fatal(err)
	}
	down := errors.New("connection refused")
	next := roundTripper(func(r *http.Request) (*http.Response, error) {
		if r.Host == "down" {
			return nil, down
		}
		return &http.Response{StatusCode: 201, Body: io.NopCloser(strings.NewReader(""))}, nil
	})
	config := &rest.Config{Transport: next}
	config.Wrap(requests.Wrap)
	transport, err := rest.TransportFor(config)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []struct{ method, url, want string }{
		{"POST", "http://up/apis/cert-manager.io/v1/namespaces/shop/certificaterequests", "create certificaterequests 201"},
		{"DELETE", "http://up/apis/cert-manager.io/v1/namespaces/shop/certificaterequests/cart-0-1", "delete certificaterequests 201"},
		{"GET", "http://up/apis/cert-manager.io/v1/certificaterequests?labelSelector=x&watch=true", "watch certificaterequests 201"},
		{"GET", "http://up/apis/cert-manager.io/v1/certificaterequests?labelSelector=x", "list certificaterequests 201"},
		{"GET", "http://up/api/v1/namespaces/pods/configmaps/events", "get configmaps 201"},
		{"PATCH", "http://up/api/v1/namespaces/shop/events/cart-0.1", "patch events 201"},
		{"PUT", "http://up/apis/coordination.k8s.io/v1/namespaces/a/leases/b", "update leases 201"},
		{"POST", "http://down/api/v1/namespaces/shop/events", "create events error"},
		{"GET", "http://up/version", "list other 201"},
		{"GET", "http://up/api/v1/secrets/pods", "list other 201"},
		{"BREW", "http://up/", "other other 201"},
	} {
		req, err := http.NewRequestWithContext(t.Context(), r.method, r.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		labels := strings.Fields(r.want)
		before := testutil.ToFloat64(requests.total.WithLabelValues(labels...))
		resp, err := transport.RoundTrip(req)
		switch {
		case err == nil:
			_ = resp.Body.Close()
		case !errors.Is(err, down):
			t.Fatal(err)
		}
		if got := testutil.ToFloat64(requests.total.WithLabelValues(labels...)) - before; got != 1 {
			t.Errorf("%s %s: not counted as %s", r.method, r.url, r.want)
		}
	}
	if _, err := NewAPIRequests(registry, "signet_test"); err == nil {
		t.Error("a second counter of that name: want an error")
	}
}
