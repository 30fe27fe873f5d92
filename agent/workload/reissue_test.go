// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"crypto/x509"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/signet-spiffe/signet/agent/issue"
	"github.com/signet-spiffe/signet/internal/pki"
)

// choice is a Signer that the test changes.
type choice struct {
	mu      sync.Mutex
	name    string
	changed chan struct{}
}

func newChoice(name string) *choice { return &choice{name: name, changed: make(chan struct{})} }

func (c *choice) Issuer() (string, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.name, c.changed
}

func (c *choice) become(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.name = name
	close(c.changed)
	c.changed = make(chan struct{})
}

// runChoosing plays test with a Signer, SVIDs of an hour and a window of a minute.
func runChoosing(t *testing.T, test func(t *testing.T, w *world, c *choice)) {
	t.Helper()
	var c *choice
	runWith(t, func(o *Options, w *world) {
		c = newChoice("old")
		o.Signer, o.ReissueWindow = c, time.Minute
		w.issuer.life, w.issuer.name = time.Hour, "old"
	}, func(t *testing.T, w *world) { test(t, w, c) })
}

// become makes the issuer another one, for the Registry and in what it answers.
func (w *world) become(c *choice, name string) {
	w.issuer.mu.Lock()
	w.issuer.name = name
	w.issuer.mu.Unlock()
	c.become(name)
}

func (r *recorder) svid(id string) *SVID {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stored[id].SVID
}

func (w *world) wantReissues(t *testing.T, reason string, want float64) {
	t.Helper()
	if n := testutil.ToFloat64(w.Registry.metrics.reissues.WithLabelValues(reason)); n != want {
		t.Errorf("%v SVIDs replaced for reason %s, want %v", n, reason, want)
	}
}

var cartSVID = spiffeid.RequireFromString("spiffe://example.org/ns/shop/sa/cart")

func keyAndCSR(t *testing.T) (pki.PrivateKey, []byte) {
	t.Helper()
	key, err := pki.GenerateKey(pki.P256)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.NewCSR(key, cartSVID, "")
	if err != nil {
		t.Fatal(err)
	}
	return key, csr
}

// Another issuer: every SVID is replaced once, spread over the window.
func TestAnotherIssuerReissuesWithinTheWindow(t *testing.T) {
	runChoosing(t, func(t *testing.T, w *world, c *choice) {
		const volumes = 40
		for i := range volumes {
			if err := w.Publish(t.Context(), cart(fmt.Sprint("v", i))); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		w.become(c, "new")
		synctest.Wait()
		var by [5]int // Requests so far, each quarter of the window.
		for quarter := range by {
			requests, _, _ := w.issuer.count()
			by[quarter] = requests - volumes
			time.Sleep(15*time.Second + time.Millisecond)
			synctest.Wait()
		}
		if by[0] > 2 || by[1] < 2 || by[2] <= by[1] || by[3] <= by[2] || by[4] != volumes {
			t.Errorf("%v re-issued at the quarters of the window, want them spread and %d in the end", by, volumes)
		}
		w.wantReissues(t, reasonIssuer, volumes)
		time.Sleep(10 * time.Minute)
		if requests, _, _ := w.issuer.count(); requests != 2*volumes {
			t.Errorf("%d requests, want each volume asked for twice", requests)
		}
		for i := range volumes {
			if got := w.volumes.svid(fmt.Sprint("v", i)).Basis; got != (Basis{"new", pki.P256, time.Minute}) {
				t.Errorf("basis %+v", got)
			}
		}
	})
}

// The issuer changes while an attempt is under way at the old one: its SVID is
// used and then replaced.
func TestIssuerChangesDuringAnAttempt(t *testing.T) {
	runChoosing(t, func(t *testing.T, w *world, c *choice) {
		release := make(chan struct{})
		w.issuer.then(func(ctx context.Context, r issue.IssueRequest) (issue.Issued, error) {
			issued, err := w.issuer.sign(ctx, r) // By the old one.
			<-release
			return issued, err
		})
		published := make(chan error, 1)
		go func() { published <- w.Publish(t.Context(), cart("v")) }()
		synctest.Wait()
		w.become(c, "new")
		synctest.Wait()
		close(release)
		if err := <-published; err != nil {
			t.Fatal(err)
		}
		if got := w.volumes.svid("v").Basis.Issuer; got != "old" {
			t.Fatalf("issued by %q", got)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := w.volumes.svid("v").Basis.Issuer; got != "new" {
			t.Errorf("after the window it is still one of %q", got)
		}
		w.wantReissues(t, reasonIssuer, 1)
	})
}

// An issuer that is not known yet, or an SVID of which nobody knows who issued it,
// is no reason.
func TestUnknownIsNoReason(t *testing.T) {
	runChoosing(t, func(t *testing.T, w *world, c *choice) {
		if err := w.Publish(t.Context(), cart("v")); err != nil {
			t.Fatal(err)
		}
		w.become(c, "")
		time.Sleep(5 * time.Minute)
		w.issuer.fail(fmt.Errorf("must not be asked"))
		synctest.Wait()
		if requests, _, _ := w.issuer.count(); requests != 1 {
			t.Errorf("%d requests, want 1", requests)
		}
	})
}

// The agent comes back with other flags: what the volume was issued with was kept.
func TestOtherFlagsAfterARestart(t *testing.T) {
	for reason, basis := range map[string]Basis{
		reasonIssuer:   {Issuer: "older", KeyType: pki.P256, Duration: time.Minute},
		reasonKeyType:  {Issuer: "old", KeyType: pki.P384, Duration: time.Minute},
		reasonDuration: {Issuer: "old", KeyType: pki.P256, Duration: time.Hour},
		"":             {Issuer: "old", KeyType: pki.P256, Duration: time.Minute},
		" ":            {}, // From before it was kept.
	} {
		t.Run(reason, func(t *testing.T) {
			runChoosing(t, func(t *testing.T, w *world, _ *choice) {
				key, csr := keyAndCSR(t)
				issued, err := w.issuer.sign(t.Context(), issue.IssueRequest{CSR: csr})
				if err != nil {
					t.Fatal(err)
				}
				chain, err := pki.ParseCertificates(issued.Chain)
				if err != nil {
					t.Fatal(err)
				}
				w.Restore(cart("v"), &SVID{ID: cartSVID, Chain: chain, Key: key, Basis: basis}, nil)
				synctest.Wait()
				time.Sleep(time.Minute)
				synctest.Wait()
				requests, _, _ := w.issuer.count()
				if wanted := len(reason) > 1; (requests == 1) != wanted {
					t.Errorf("%d requests", requests)
				}
				for _, r := range reasons {
					w.wantReissues(t, r, map[bool]float64{true: 1}[r == reason])
				}
			})
		})
	}
}

// The CA leaves the bundle: SVIDs that it signed are replaced, others are not.
func TestAuthorityLeftTheBundle(t *testing.T) {
	runChoosing(t, func(t *testing.T, w *world, _ *choice) {
		after := newIssuer(t, time.Hour)
		both := x509bundle.FromX509Authorities(td, []*x509.Certificate{w.issuer.ca, after.ca})
		w.trust.replace(both)
		if err := w.Publish(t.Context(), cart("by the old CA")); err != nil {
			t.Fatal(err)
		}
		w.issuer.mu.Lock()
		w.issuer.ca, w.issuer.key = after.ca, after.key
		w.issuer.mu.Unlock()
		if err := w.Publish(t.Context(), cart("by the new CA")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Minute)
		if requests, _, _ := w.issuer.count(); requests != 2 {
			t.Fatalf("%d requests while both are trusted, want 2", requests)
		}
		w.trust.replace(after.bundle())
		time.Sleep(time.Minute)
		synctest.Wait()
		if requests, _, _ := w.issuer.count(); requests != 3 {
			t.Errorf("%d requests, want one more", requests)
		}
		w.wantReissues(t, reasonAuthority, 1)
		if !pki.LeadsTo(w.volumes.svid("by the old CA").Chain, after.bundle(), time.Now()) {
			t.Error("still the SVID of a CA that nobody trusts")
		}
	})
}
