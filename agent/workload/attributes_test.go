// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/signet-spiffe/signet/agent/issue"
	"github.com/signet-spiffe/signet/internal/pki"
)

// A volume that does not wait is published while the issuer still thinks, keeps
// what it has while the issuer says no, and has its files once it says yes.
func TestNoWait(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		v := cart("v")
		v.Attributes.NoWait = true
		release := make(chan struct{})
		w.issuer.then(func(context.Context, issue.IssueRequest) (issue.Issued, error) {
			<-release
			return issue.Issued{}, fmt.Errorf("%w: not today", issue.ErrDenied)
		})
		if err := w.Publish(t.Context(), v); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got, want := w.volumes.log(), "prepare v"; got != want {
			t.Fatalf("did %q, want %q", got, want)
		}
		close(release)
		synctest.Wait()
		if err := w.Publish(t.Context(), v); err != nil {
			t.Errorf("republish after the denial: %v", err)
		}
		if got, want := w.volumes.log(), "prepare v"; got != want {
			t.Fatalf("after the denial: did %q, want %q", got, want)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got, want := w.volumes.log(), "prepare v, store v, push v"; got != want {
			t.Errorf("did %q, want %q", got, want)
		}
		if err := w.Unpublish(t.Context(), "v"); err != nil {
			t.Fatal(err)
		}
	})
}

func TestResume(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		v := cart("v")
		v.Attributes.NoWait = true
		if err := w.Resume(v, nil); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got, want := w.volumes.log(), "prepare v, store v, push v"; got != want {
			t.Errorf("did %q, want %q", got, want)
		}
		bad := Volume{ID: "w", Pod: issue.Pod{Namespace: "a/b", ServiceAccount: "c"}}
		if err := w.Resume(bad, nil); !errors.Is(err, ErrInvalid) {
			t.Errorf("%v, want ErrInvalid", err)
		}
	})
}

// What a volume chose is what is asked for, at the mount and at each renewal.
func TestAttributesReachTheIssuer(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.issuer.life = 10 * time.Minute
		v := cart("v")
		v.Attributes = Attributes{KeyType: pki.P384, Duration: 10 * time.Minute, RenewBefore: time.Minute, DNSNames: "a.shop,b.shop"}
		if err := w.Publish(t.Context(), v); err != nil {
			t.Fatal(err)
		}
		if err := w.Publish(t.Context(), cart("plain")); err != nil {
			t.Fatal(err)
		}
		first := w.volumes.serial("v")
		time.Sleep(8*time.Minute + 5*time.Second) // The earliest is nine minutes less a tenth.
		synctest.Wait()
		if w.volumes.serial("v") != first {
			t.Error("renewed before its time")
		}
		time.Sleep(55 * time.Second)
		synctest.Wait()
		if w.volumes.serial("v") == first {
			t.Error("not renewed a minute before its end")
		}
		for _, r := range w.issuer.requests {
			want, wantDuration, wantNames := pki.P384, 10*time.Minute, pki.DNSNames("a.shop,b.shop")
			if r.Volume == "plain" {
				want, wantDuration, wantNames = pki.P256, time.Minute, ""
			}
			block, _ := pem.Decode(r.CSR)
			csr, err := x509.ParseCertificateRequest(block.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := pki.KeyTypeOf(csr.PublicKey); err != nil || got != want || r.Duration != wantDuration {
				t.Errorf("volume %s asked with a %s key for %s, want %s for %s", r.Volume, got, r.Duration, want, wantDuration)
			}
			if got, err := pki.NewDNSNames(csr.DNSNames...); err != nil || got != wantNames {
				t.Errorf("volume %s asked for DNS names %q, want %q", r.Volume, csr.DNSNames, wantNames)
			}
		}
	})
}

// An issuer that leaves DNS names out, or adds some, is not believed: the mount
// fails and says by which rule.
func TestOtherDNSNamesAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		asked, signed pki.DNSNames
		rule          pki.Rule
	}{
		"left out": {"a.shop,b.shop", "a.shop", pki.RuleDNSNames},
		"added":    {"a.shop", "a.shop,b.shop", pki.RuleExtraSAN},
		"unasked":  {"", "a.shop", pki.RuleExtraSAN},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(t *testing.T, w *world) {
				w.issuer.edit = func(template *x509.Certificate) { template.DNSNames = c.signed.Names() }
				v := cart("v")
				v.Attributes.DNSNames = c.asked
				err := w.Publish(t.Context(), v)
				var broken *pki.RuleError
				if !errors.As(err, &broken) || broken.Rule != c.rule {
					t.Errorf("%v, want it refused by rule %s", err, c.rule)
				}
			})
		})
	}
}

// What an operator allows may change while a volume is published.
func TestDurationStaysWithinBounds(t *testing.T) {
	r := &Registry{Options: Options{Duration: time.Hour, MinDuration: 30 * time.Minute, MaxDuration: 2 * time.Hour}}
	for chosen, want := range map[time.Duration]time.Duration{
		0: time.Hour, time.Minute: 30 * time.Minute, 90 * time.Minute: 90 * time.Minute, 3 * time.Hour: 2 * time.Hour,
	} {
		if got := r.duration(Attributes{Duration: chosen}); got != want {
			t.Errorf("chosen %s: %s, want %s", chosen, got, want)
		}
	}
}

func TestHolds(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		if w.Holds("v") {
			t.Error("holds what nobody published")
		}
		if err := w.Publish(t.Context(), cart("v")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if !w.Holds("v") {
			t.Error("does not hold what is published")
		}
		if err := w.Unpublish(t.Context(), "v"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if w.Holds("v") {
			t.Error("holds what was unpublished")
		}
	})
}

func TestPublishWithOtherAttributesIsRefused(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		one, same, two := int64(1), int64(1), int64(2)
		v := cart("v")
		v.GID = &one
		if err := w.Publish(t.Context(), v); err != nil {
			t.Fatal(err)
		}
		v.GID = &same
		if err := w.Publish(t.Context(), v); err != nil {
			t.Errorf("the same again: %v", err)
		}
		for name, change := range map[string]func(v *Volume){
			"group":    func(v *Volume) { v.GID = &two },
			"no group": func(v *Volume) { v.GID = nil },
			"wait":     func(v *Volume) { v.Attributes.NoWait = true },
			"name":     func(v *Volume) { v.Attributes.Delivery.Key = "other.key" },
			"DNS name": func(v *Volume) { v.Attributes.DNSNames = "a.shop" },
		} {
			other := v
			change(&other)
			if err := w.Publish(t.Context(), other); !errors.Is(err, ErrInvalid) {
				t.Errorf("%s: %v, want ErrInvalid", name, err)
			}
		}
	})
}
