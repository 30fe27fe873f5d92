// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/signet-spiffe/signet/agent/issue"
	"github.com/signet-spiffe/signet/agent/issue/selfca"
	"github.com/signet-spiffe/signet/internal/pki"
	"github.com/signet-spiffe/signet/workloadapi"
)

var web = spiffeid.RequireFromString("spiffe://example.org/ns/shop/sa/web")

// serve serves a workload on a socket of a path short enough for one.
func serve(t *testing.T, first workloadapi.Identity) (socket string, w *workloadapi.Feed) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	w = workloadapi.NewFeed(first)
	server := workloadapi.NewServer(workloadapi.Options{})
	if err := server.Start(l, w); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Shutdown(context.Background()) })
	return socket, w
}

// entitled is an identity with one SVID for each hint, federated with other.org.
func entitled(t *testing.T, hints ...string) workloadapi.Identity {
	t.Helper()
	ca, other := newCA(t, "example.org"), newCA(t, "other.org")
	i := workloadapi.Identity{Status: workloadapi.Entitled, TrustDomain: web.TrustDomain(), Bundles: x509bundle.NewSet(ca.Bundle(), other.Bundle())}
	for _, hint := range hints {
		key, err := pki.GenerateKey(pki.P256)
		if err != nil {
			t.Fatal(err)
		}
		csr, err := pki.NewCSR(key, web, "")
		if err != nil {
			t.Fatal(err)
		}
		issued, err := ca.Issue(t.Context(), issue.IssueRequest{ID: web, CSR: csr, Duration: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		chain, err := pki.ParseCertificates(issued.Chain)
		if err != nil {
			t.Fatal(err)
		}
		i.SVIDs = append(i.SVIDs, &x509svid.SVID{ID: web, Hint: hint, Certificates: chain, PrivateKey: key.Signer()})
	}
	return i
}

func newCA(t *testing.T, domain string) *selfca.Issuer {
	t.Helper()
	ca, err := selfca.New(selfca.Options{TrustDomain: spiffeid.RequireTrustDomainFromString(domain)})
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// command runs a command line and returns what it printed.
func command(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	return commandWithInput(t, "", args...)
}

func commandWithInput(t *testing.T, in string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, problems strings.Builder
	root := New("v1", Commands()...)
	root.SetIn(strings.NewReader(in))
	root.SetOut(&out)
	root.SetErr(&problems)
	err = Execute(t.Context(), root, args)
	return out.String(), problems.String(), err
}
