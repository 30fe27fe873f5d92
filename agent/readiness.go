// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"

	"github.com/signet-spiffe/signet/internal/observe"
)

// health is what readiness asks. None of it does I/O.
type health struct {
	// registered says whether kubelet has the driver.
	registered func() bool
	// synced says whether the API server has ever listed this agent's requests,
	// watching why it is not heard from at present.
	synced   func() bool
	watching func() error
	// named says whether it is known which issuer to ask.
	named func() bool
	// pods says why the node's pods are not known at present; nil if they are
	// nobody's business (--watch-pods).
	pods func() error
	// bundle is the configured trust bundle; nil if it is learned from issuers,
	// which needs no bundle to begin with.
	bundle func() (*x509bundle.Bundle, <-chan struct{})
}

// ready says whether a new mount can succeed, as far as this node can tell:
// whether the approver and the issuer do their part shows at the mount.
func (h health) ready() error {
	if !h.registered() {
		return errors.New("kubelet has not registered the driver yet")
	}
	if !h.synced() {
		return errors.New("the API server has not listed this agent's CertificateRequests yet")
	}
	if err := h.watching(); err != nil {
		return fmt.Errorf("the API server cannot be reached: %w", err)
	}
	if !h.named() {
		return errors.New("the ConfigMap that names the issuer has not been read yet")
	}
	if h.pods != nil {
		if err := h.pods(); err != nil {
			return err
		}
	}
	if h.bundle == nil {
		return nil
	}
	return alive(h.bundle())
}

// alive says whether there is an authority under which an SVID can verify.
func alive(bundle *x509bundle.Bundle, _ <-chan struct{}) error {
	if bundle == nil || bundle.Empty() {
		return errors.New("there is no trust bundle yet (--source-ca-bundle)")
	}
	now := time.Now()
	for _, authority := range bundle.X509Authorities() {
		if now.Before(authority.NotAfter) {
			return nil
		}
	}
	return errors.New("every authority in the trust bundle has expired (--source-ca-bundle)")
}

// live is /healthz. A process that answers is alive. Nothing else counts: were it
// the issuer or the API server, their outage would restart every agent.
func live() error { return nil }

var _ observe.Check = live
