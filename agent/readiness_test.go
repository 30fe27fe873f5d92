// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
)

func TestReadiness(t *testing.T) {
	expired := &x509.Certificate{Raw: []byte("a"), NotAfter: time.Now().Add(-time.Minute)}
	good := &x509.Certificate{Raw: []byte("b"), NotAfter: time.Now().Add(time.Minute)}
	bundle := func(authorities ...*x509.Certificate) func() (*x509bundle.Bundle, <-chan struct{}) {
		return func() (*x509bundle.Bundle, <-chan struct{}) {
			if authorities == nil {
				return nil, nil
			}
			return x509bundle.FromX509Authorities(td, authorities), nil
		}
	}
	for name, tt := range map[string]struct {
		change func(*health)
		want   string
	}{
		"all is well":                     {func(*health) {}, ""},
		"the bundle is learned":           {func(h *health) { h.bundle = nil }, ""},
		"kubelet does not know us":        {func(h *health) { h.registered = func() bool { return false } }, "kubelet"},
		"nothing was listed":              {func(h *health) { h.synced = func() bool { return false } }, "not listed"},
		"the API server went away":        {func(h *health) { h.watching = func() error { return errors.New("connection refused") } }, "connection refused"},
		"nobody said which issuer":        {func(h *health) { h.named = func() bool { return false } }, "ConfigMap"},
		"pods are not seen":               {func(h *health) { h.pods = func() error { return errors.New("pods is forbidden") } }, "forbidden"},
		"pods are seen":                   {func(h *health) { h.pods = func() error { return nil } }, ""},
		"there is no bundle":              {func(h *health) { h.bundle = bundle() }, "no trust bundle"},
		"the bundle is empty":             {func(h *health) { h.bundle = bundle([]*x509.Certificate{}...) }, "no trust bundle"},
		"the bundle has expired":          {func(h *health) { h.bundle = bundle(expired) }, "expired"},
		"one of two authorities is alive": {func(h *health) { h.bundle = bundle(expired, good) }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			h := health{
				registered: func() bool { return true }, synced: func() bool { return true }, watching: func() error { return nil },
				named: func() bool { return true }, bundle: bundle(good),
			}
			tt.change(&h)
			err := h.ready()
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("%v, want %q", err, tt.want)
			}
			if err := live(); err != nil {
				t.Errorf("not alive: %v", err)
			}
		})
	}
}
