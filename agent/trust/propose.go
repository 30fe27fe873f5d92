// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
)

// Propose returns the bundle as Observe would make it with caPEM, without making
// it so: a chain is verified under the roots that came with it before they are
// believed. Certificates that Observe would leave out are left out here; the
// error says that none remains. The caller owns the bundle.
func (o *Observed) Propose(caPEM []byte) (*x509bundle.Bundle, error) {
	certs, err := parse(caPEM)
	if err != nil {
		return nil, fmt.Errorf("CA reported by the issuer for trust domain %s: %w", o.domain, err)
	}
	good, refusals := usable(certs, time.Now())
	if len(good) == 0 {
		return nil, fmt.Errorf("CA reported by the issuer for trust domain %s: %w", o.domain, errors.Join(refusals...))
	}
	proposal := x509bundle.FromX509Authorities(o.domain, good)
	if present, _ := o.Bundle(); present != nil {
		for _, root := range present.X509Authorities() {
			proposal.AddX509Authority(root)
		}
	}
	return proposal, nil
}
