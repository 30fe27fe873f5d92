// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"

	"github.com/signet-spiffe/signet/agent/issue"
)

// The bundle changes in the very moment in which a renewal is answered, again and
// again: each time the files and the streams end with the newest certificate, its
// own key and the newest bundle.
func TestRotationRacesRenewals(t *testing.T) {
	rounds := 10_000
	if testing.Short() {
		rounds = 500
	}
	run(t, func(t *testing.T, w *world) {
		if err := w.Publish(t.Context(), cart("v")); err != nil {
			t.Fatal(err)
		}
		own := w.issuer.bundle()
		both := x509bundle.FromX509Authorities(td, []*x509.Certificate{w.issuer.ca, newIssuer(t, time.Minute).ca})
		for round := range rounds {
			next := both
			if round%2 == 1 {
				next = own
			}
			answered := make(chan struct{})
			w.issuer.then(func(ctx context.Context, r issue.IssueRequest) (issue.Issued, error) {
				close(answered)
				go w.trust.replace(next)
				return w.issuer.sign(ctx, r)
			})
			<-answered
			synctest.Wait()
			w.volumes.mu.Lock()
			stored, pushed := w.volumes.stored["v"], w.volumes.pushed["v"]
			w.volumes.mu.Unlock()
			if got, want := stored.SVID.Chain[0].SerialNumber.Int64(), int64(round)+3; got != want {
				t.Fatalf("round %d: the files have serial %d, the newest is %d", round, got, want)
			}
			if !stored.Bundle.Equal(next) || pushed.SVID != stored.SVID || !pushed.Bundle.Equal(next) {
				t.Fatalf("round %d: the files or the streams have an old bundle or SVID", round)
			}
			if !stored.SVID.Key.Public().(*ecdsa.PublicKey).Equal(stored.SVID.Chain[0].PublicKey) {
				t.Fatalf("round %d: the files hold a key that is not the certificate's", round)
			}
		}
	})
}
