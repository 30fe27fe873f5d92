// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/signet-spiffe/signet/internal/conformance"
)

var shopCart = Workload{Namespace: "shop", ServiceAccount: "cart"}

func mustTemplate(t *testing.T, s string) Template {
	t.Helper()
	template, err := ParseTemplate(s)
	if err != nil {
		t.Fatal(err)
	}
	return template
}

// Whatever a cluster calls its things, what comes out is a URI of scheme and
// path: names that would add a query or a fragment give no ID at all.
func TestI1SchemeAndPartsOfAnID(t *testing.T) {
	conformance.Proves(t, "I1")
	id, err := mustTemplate(t, DefaultTemplate).ID(td, shopCart)
	if err != nil {
		t.Fatal(err)
	}
	u := id.URL()
	if u.Scheme != "spiffe" || u.Host != "example.org" || u.RawQuery != "" || u.Fragment != "" || u.Opaque != "" {
		t.Errorf("%s is %+v", id, u)
	}
	for _, name := range []string{"a?b", "a#b", "a?", "a#"} {
		for _, w := range []Workload{{Namespace: name, ServiceAccount: "x"}, {Namespace: "x", ServiceAccount: name}} {
			if id, err := mustTemplate(t, DefaultTemplate).ID(td, w); err == nil {
				t.Errorf("%+v has the ID %s", w, id)
			}
		}
		if _, err := ParseTemplate(DefaultTemplate + "/" + name); err == nil {
			t.Errorf("a template may hold %q", name)
		}
	}
	if _, err := mustTemplate(t, DefaultTemplate).ID(spiffeid.TrustDomain{}, shopCart); err == nil {
		t.Error("an ID without a trust domain")
	}
}

// Trust domains come from the configuration.
func TestI2TrustDomains(t *testing.T) {
	conformance.Proves(t, "I2")
	longest := strings.Repeat("a", 255)
	for _, name := range []string{"example.org", "a", "a-b_c.9", longest} {
		td, err := ParseTrustDomain(name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if id, err := mustTemplate(t, DefaultTemplate).ID(td, shopCart); err != nil || id.TrustDomain() != td {
			t.Errorf("%s: %s, %v", name, id, err)
		}
	}
	for _, name := range []string{"", "user@example.org", "example.org:443", "Example.org", "ex%61mple.org", "exämple.org", "a b", longest + "a"} {
		if td, err := ParseTrustDomain(name); err == nil {
			t.Errorf("%q is the trust domain %s", name, td)
		}
	}
}

func TestI3NamesThatLookLikeAddresses(t *testing.T) {
	conformance.Proves(t, "I3")
	template := mustTemplate(t, DefaultTemplate)
	for _, name := range []string{"10.0.0.1", "127.0.0.1", "example.org", "localhost", "not_a_dns_name", "-", "1", "xn--nxasmq6b"} {
		id, err := template.ID(spiffeid.RequireTrustDomainFromString(name), shopCart)
		if want := "spiffe://" + name + "/ns/shop/sa/cart"; err != nil || id.String() != want {
			t.Errorf("%s: %s, %v; want %s", name, id, err, want)
		}
	}
}

func TestI4Paths(t *testing.T) {
	conformance.Proves(t, "I4")
	template := mustTemplate(t, DefaultTemplate)
	for _, segment := range []string{"", ".", "..", "a/b", "a%2fb", "%61", "ä", "a b", "a:b", "a~b", "a+b", "a\x00b"} {
		if id, err := template.ID(td, Workload{Namespace: segment, ServiceAccount: "x"}); err == nil {
			t.Errorf("namespace %q has the ID %s", segment, id)
		}
		if id, err := template.ID(td, Workload{Namespace: "x", ServiceAccount: segment}); err == nil {
			t.Errorf("service account %q has the ID %s", segment, id)
		}
		if got, err := ParseTemplate("/" + segment + DefaultTemplate); err == nil && strings.Count(segment, "/") == 0 {
			t.Errorf("a template may have the segment %q: %s", segment, got)
		}
	}
	if _, err := ParseTemplate(DefaultTemplate + "/"); err == nil {
		t.Error("a template may end with a slash")
	}
	for _, segment := range []string{"a", "A-Z", "a.b_c", "...", "0"} {
		if _, err := template.ID(td, Workload{Namespace: segment, ServiceAccount: segment}); err != nil {
			t.Errorf("%q: %v", segment, err)
		}
	}
}

// An ID of exactly 2048 bytes is made, one byte more is refused with the reason.
func TestI5LongIDs(t *testing.T) {
	conformance.Proves(t, "I5")
	without, err := mustTemplate(t, "/x"+DefaultTemplate).ID(td, shopCart)
	if err != nil {
		t.Fatal(err)
	}
	filling := func(n int) string { return "/" + strings.Repeat("x", n) + DefaultTemplate }
	most := 2048 - len(without.String()) + 1
	id, err := mustTemplate(t, filling(most)).ID(td, shopCart)
	if err != nil || len(id.String()) != 2048 {
		t.Errorf("an ID of 2048 bytes: %d, %v", len(id.String()), err)
	}
	if back, err := spiffeid.FromString(id.String()); err != nil || back != id {
		t.Errorf("it does not parse: %v", err)
	}
	id, err = mustTemplate(t, filling(most+1)).ID(td, shopCart)
	if err == nil || !strings.Contains(err.Error(), "2049 bytes") {
		t.Errorf("an ID of %d bytes: %v", len(id.String()), err)
	}
}

// go-spiffe, which parses all IDs here, takes a stricter way than the standard: it
// accepts lower case alone, so that no two spellings of one trust domain exist.
func TestI6Case(t *testing.T) {
	conformance.Proves(t, "I6")
	template := mustTemplate(t, DefaultTemplate)
	lower, err := template.ID(td, Workload{Namespace: "shop", ServiceAccount: "cart"})
	if err != nil {
		t.Fatal(err)
	}
	upper, err := template.ID(td, Workload{Namespace: "shop", ServiceAccount: "Cart"})
	if err != nil {
		t.Fatal(err)
	}
	if lower == upper {
		t.Error("paths that differ in case are one identity")
	}
	for _, id := range []string{"SPIFFE://example.org/ns/shop/sa/cart", "spiffe://Example.org/ns/shop/sa/cart"} {
		if parsed, err := spiffeid.FromString(id); err == nil && parsed != lower {
			t.Errorf("%s is another identity than %s", id, lower)
		}
	}
}
