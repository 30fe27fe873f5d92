// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// APIRequests counts what a process asks of the API server. It sits between a
// client and its transport, because client-go's own hooks are one per process
// and cannot tell a list from a watch.
type APIRequests struct{ total *prometheus.CounterVec }

// NewAPIRequests makes and registers the counter, named
// <prefix>_api_requests_total.
func NewAPIRequests(r prometheus.Registerer, prefix string) (*APIRequests, error) {
	a := &APIRequests{total: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: prefix + "_api_requests_total",
		Help: "Requests to the API server by verb (create, get, list, watch, update, patch, delete), resource (other: not one of ours) and HTTP status code (error: no answer).",
	}, []string{"verb", "resource", "code"})}
	if err := r.Register(a.total); err != nil {
		return nil, fmt.Errorf("register metrics of API requests: %w", err)
	}
	return a, nil
}

// Wrap is for rest.Config.Wrap and its like.
func (a *APIRequests) Wrap(next http.RoundTripper) http.RoundTripper {
	return counting{next: next, total: a.total}
}

type counting struct {
	next  http.RoundTripper
	total *prometheus.CounterVec
}

// RoundTrip implements http.RoundTripper.
func (c counting) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := c.next.RoundTrip(req)
	code := "error"
	if err == nil {
		code = strconv.Itoa(resp.StatusCode)
	}
	verb, resource := classify(req)
	c.total.WithLabelValues(verb, resource, code).Inc()
	return resp, err
}

// WrappedRoundTripper lets client-go reach the transport below.
func (c counting) WrappedRoundTripper() http.RoundTripper { return c.next }

// ours are the resources that have a label of their own.
var ours = []string{"certificaterequests", "events", "configmaps", "leases", "pods"}

// classify reads a request as the API server does (/api/v1/... and
// /apis/GROUP/VERSION/..., then namespaces/NAME/ if there is one, RESOURCE and
// perhaps NAME). Nothing of it becomes a label but words that are listed here.
func classify(req *http.Request) (verb, resource string) {
	parts := strings.Split(strings.Trim(req.URL.Path, "/"), "/")
	resource, named := "other", false
	switch {
	case len(parts) > 2 && parts[0] == "api":
		parts = parts[2:]
	case len(parts) > 3 && parts[0] == "apis":
		parts = parts[3:]
	default:
		parts = nil
	}
	if len(parts) > 2 && parts[0] == "namespaces" {
		parts = parts[2:]
	}
	for _, known := range ours {
		if len(parts) > 0 && parts[0] == known {
			resource, named = known, len(parts) > 1
		}
	}
	return verbOf(req, named), resource
}

func verbOf(req *http.Request, named bool) string {
	switch req.Method {
	case http.MethodPost:
		return "create"
	case http.MethodPut:
		return "update"
	case http.MethodPatch:
		return "patch"
	case http.MethodDelete:
		return "delete"
	case http.MethodGet:
		watch := req.URL.Query().Get("watch")
		switch {
		case watch == "true" || watch == "1":
			return "watch"
		case named:
			return "get"
		}
		return "list"
	}
	return "other"
}
