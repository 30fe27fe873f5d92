// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"crypto/x509"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func observe(t *testing.T, o *Observed, until time.Time, certs ...*x509.Certificate) bool {
	t.Helper()
	changed, err := o.Observe(pemOf(certs...), until)
	if err != nil {
		t.Fatal(err)
	}
	return changed
}

func TestObservedStartsWithoutBundle(t *testing.T) {
	o := NewObserved(domain)
	defer o.Close()
	b, changed := o.Bundle()
	if b != nil || closed(changed) {
		t.Fatal("there is a bundle before any report")
	}
	a := newCert(t, "a", nil)
	if !observe(t, o, time.Now().Add(time.Minute), a) {
		t.Error("the first report changes nothing")
	}
	if !closed(changed) {
		t.Error("nobody is told of the first bundle")
	}
	wantNames(t, o, "a")
	if b, _ := o.Bundle(); b.TrustDomain() != domain {
		t.Errorf("bundle of %s", b.TrustDomain())
	}
}

func TestObservedSameReportIsNoChange(t *testing.T) {
	o := NewObserved(domain)
	defer o.Close()
	a := newCert(t, "a", nil)
	observe(t, o, time.Now().Add(time.Minute), a)
	_, changed := o.Bundle()
	if observe(t, o, time.Now().Add(2*time.Minute), a, a) || closed(changed) {
		t.Error("the same root again is a change")
	}
}

// After a rotation the old root stays until the last SVID under it has expired,
// to the second, and then goes by itself.
func TestObservedKeepsRootWhileSVIDsLive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := NewObserved(domain)
		defer o.Close()
		start := time.Now()
		old, fresh := newCert(t, "old", nil), newCert(t, "new", nil)
		observe(t, o, start.Add(10*time.Minute), old)
		observe(t, o, start.Add(20*time.Minute), old) // A later SVID.
		observe(t, o, start.Add(5*time.Minute), old)  // A shorter one does not shorten.
		if !observe(t, o, start.Add(30*time.Minute), fresh) {
			t.Fatal("the new root is no change")
		}
		wantNames(t, o, "old", "new")
		_, changed := o.Bundle()

		time.Sleep(20*time.Minute - time.Second)
		synctest.Wait()
		wantNames(t, o, "old", "new")
		time.Sleep(time.Second)
		synctest.Wait()
		wantNames(t, o, "new")
		if !closed(changed) {
			t.Error("nobody is told that the old root is gone")
		}
	})
}

// The last known root stays though every SVID under it has expired: an issuer
// that is down must not take the trust away as well.
func TestObservedNeverBecomesEmpty(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := NewObserved(domain)
		defer o.Close()
		observe(t, o, time.Now().Add(time.Minute), newCert(t, "a", nil))
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		wantNames(t, o, "a")
		observe(t, o, time.Now().Add(time.Minute), newCert(t, "b", nil))
		wantNames(t, o, "b")
	})
}

// A root that is replaced goes at its own end, even if an SVID claims to live
// longer.
func TestObservedRootEndsWithItsOwnLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := NewObserved(domain)
		defer o.Close()
		start := time.Now()
		short := newCert(t, "short", func(c *x509.Certificate) { c.NotAfter = start.Add(10 * time.Minute) })
		observe(t, o, start.Add(time.Hour), short)
		observe(t, o, start.Add(time.Hour), newCert(t, "long", nil))
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		wantNames(t, o, "long")
	})
}

func TestObservedRefuses(t *testing.T) {
	good := newCert(t, "good", nil)
	key := []byte("-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n")
	for name, tc := range map[string]struct {
		report []byte
		says   string
		take   bool // The good one beside it is taken.
	}{
		"empty":         {nil, "no CA certificate", false},
		"garbage":       {[]byte("garbage"), "", false},
		"key":           {append(pemOf(good), key...), "PRIVATE KEY", false},
		"damaged":       {append(pemOf(good), pemOf(good)[:200]...), "", false},
		"expired":       {pemOf(newCert(t, "x", expiredCA), good), "expired", true},
		"leaf":          {pemOf(good, newCert(t, "x", notCA)), "not a CA", true},
		"no cert sign":  {pemOf(good, newCert(t, "x", noCertSign)), "may not sign", true},
		"only the leaf": {pemOf(newCert(t, "x", notCA)), "not a CA", false},
		"too long":      {make([]byte, maxBundleBytes+1), "more than", false},
	} {
		t.Run(name, func(t *testing.T) {
			o := NewObserved(domain)
			defer o.Close()
			before := newCert(t, "before", nil)
			observe(t, o, time.Now().Add(time.Minute), before)
			changed, err := o.Observe(tc.report, time.Now().Add(time.Minute))
			if err == nil || !strings.Contains(err.Error(), tc.says) || !strings.Contains(err.Error(), domain.Name()) {
				t.Errorf("error %v, want one about %q and the trust domain", err, tc.says)
			}
			if strings.Contains(err.Error(), "c2VjcmV0") {
				t.Errorf("error quotes key material: %v", err)
			}
			if changed != tc.take {
				t.Errorf("changed = %t, want %t", changed, tc.take)
			}
			if tc.take {
				wantNames(t, o, "before", "good")
			} else {
				wantNames(t, o, "before")
			}
		})
	}
	if _, err := NewObserved(domain).Observe(nil, time.Now()); !errors.Is(err, ErrNoCA) {
		t.Errorf("empty report: %v, want ErrNoCA", err)
	}
}

func TestObservedIsBounded(t *testing.T) {
	o := NewObserved(domain)
	defer o.Close()
	until := time.Now().Add(30 * time.Minute)
	for range maxObserved {
		observe(t, o, until, newCert(t, "x", nil))
	}
	if _, err := o.Observe(pemOf(newCert(t, "one more", nil)), until); err == nil {
		t.Error("there is no end to roots")
	}
	if b, _ := o.Bundle(); len(b.X509Authorities()) != maxObserved {
		t.Errorf("%d roots, want %d", len(b.X509Authorities()), maxObserved)
	}
}

// What a caller does to its bundle is nobody else's matter.
func TestBundleBelongsToTheCaller(t *testing.T) {
	o := NewObserved(domain)
	defer o.Close()
	a, evil := newCert(t, "a", nil), newCert(t, "evil", nil)
	observe(t, o, time.Now().Add(time.Minute), a)
	b, _ := o.Bundle()
	b.AddX509Authority(evil)
	wantNames(t, o, "a")
}

func TestObservedConcurrently(t *testing.T) {
	o := NewObserved(domain)
	defer o.Close()
	roots := []*x509.Certificate{newCert(t, "a", nil), newCert(t, "b", nil), newCert(t, "c", nil)}
	var all sync.WaitGroup
	for n := range 8 {
		all.Go(func() {
			for k := range 200 {
				_, _ = o.Observe(pemOf(roots[(n+k)%3]), time.Now().Add(time.Minute))
				if b, changed := o.Bundle(); b == nil || changed == nil || b.Empty() {
					t.Error("no bundle")
				}
			}
		})
	}
	all.Wait()
	if b, _ := o.Bundle(); len(b.X509Authorities()) != 3 {
		t.Errorf("%v", names(b))
	}
}

func FuzzObserve(f *testing.F) {
	f.Add(pemOf(newCert(f, "a", nil)))
	f.Add(pemOf(newCert(f, "a", nil), newCert(f, "b", notCA)))
	f.Add(pemOf(newCert(f, "a", expiredCA)))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, report []byte) {
		o := NewObserved(domain)
		defer o.Close()
		changed, err := o.Observe(report, time.Now().Add(time.Minute))
		b, _ := o.Bundle()
		if changed != (b != nil) {
			t.Fatalf("changed = %t, bundle = %v", changed, b)
		}
		if !changed && err == nil {
			t.Fatal("nothing was taken and there is no error")
		}
		if b != nil {
			checkAll(t, b.X509Authorities())
		}
	})
}

func checkAll(t *testing.T, certs []*x509.Certificate) {
	t.Helper()
	if len(certs) == 0 {
		t.Fatal("empty bundle")
	}
	for _, c := range certs {
		if !c.IsCA || time.Now().After(c.NotAfter) {
			t.Fatalf("bundle holds %s", c.Subject)
		}
	}
}
