// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package dev

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/signet-spiffe/signet/internal/observe"
)

// maxBundleBytes bounds what is read as one bundle.
const maxBundleBytes = 1 << 20

// federated is a trust domain whose authorities come from a file.
type federated struct {
	domain spiffeid.TrustDomain
	bundle *x509bundle.Bundle
}

// parseFederate reads the bundle of --federate. Its domain must not be one of own.
// What is wrong with the argument or the file is a *observe.UsageError.
func parseFederate(arg string, own []spiffeid.TrustDomain) (federated, error) {
	name, file, ok := strings.Cut(arg, "=")
	if !ok || file == "" {
		return federated{}, observe.Usagef("--federate %q: must be TRUST-DOMAIN=FILE, as in spiffe://other.org=bundle.pem", arg)
	}
	td, err := spiffeid.TrustDomainFromString(name)
	if err != nil {
		return federated{}, observe.Usagef("--federate %q: %v", arg, err)
	}
	if name != td.Name() && name != td.IDString() {
		return federated{}, observe.Usagef("--federate %q: name the trust domain alone, %s", arg, td.IDString())
	}
	if slices.Contains(own, td) {
		return federated{}, observe.Usagef("--federate %q: %s is a trust domain of --id; bundles are never merged", arg, td.IDString())
	}
	bundle, err := readBundle(file, td)
	if err != nil {
		return federated{}, observe.Usagef("--federate %q: %v", arg, err)
	}
	return federated{domain: td, bundle: bundle}, nil
}

// readBundle takes CA certificates as PEM, or a SPIFFE bundle (Trust Domain and
// Bundle section 4).
func readBundle(file string, td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxBundleBytes+1))
	switch {
	case err != nil:
		return nil, err
	case len(content) > maxBundleBytes:
		return nil, fmt.Errorf("%s is larger than %d bytes", file, maxBundleBytes)
	}
	bundle, err := parseBundle(content, td)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	for _, authority := range bundle.X509Authorities() {
		if !authority.IsCA {
			return nil, fmt.Errorf("%s: certificate %q is not a CA", file, authority.Subject)
		}
	}
	if bundle.Empty() {
		return nil, fmt.Errorf("%s holds no X.509 authority", file)
	}
	return bundle, nil
}

func parseBundle(content []byte, td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	if bytes.HasPrefix(bytes.TrimSpace(content), []byte("{")) {
		b, err := spiffebundle.Parse(td, content)
		if err != nil {
			return nil, err
		}
		return b.X509Bundle(), nil
	}
	return x509bundle.Parse(td, content)
}
