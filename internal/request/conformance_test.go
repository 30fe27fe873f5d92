// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package request

import (
	"slices"
	"testing"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"

	"github.com/signet-spiffe/signet/internal/conformance"
)

// Extended key usage is only a SHOULD, and issuers give what is asked for.
func TestX9X10UsagesAreAskedFor(t *testing.T) {
	conformance.Proves(t, "X9", "X10")
	usages := Usages()
	for _, usage := range []cmapi.KeyUsage{cmapi.UsageDigitalSignature, cmapi.UsageServerAuth, cmapi.UsageClientAuth} {
		if !slices.Contains(usages, usage) {
			t.Errorf("%q is not asked for", usage)
		}
	}
	for _, usage := range []cmapi.KeyUsage{cmapi.UsageCertSign, cmapi.UsageCRLSign} {
		if slices.Contains(usages, usage) {
			t.Errorf("%q is asked for", usage)
		}
	}
}
