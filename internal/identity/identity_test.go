// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

var td = spiffeid.RequireTrustDomainFromString("example.org")

func TestTemplateID(t *testing.T) {
	tests := []struct {
		name     string
		template string
		workload Workload
		want     string
	}{
		{"default", DefaultTemplate, Workload{Namespace: "shop", ServiceAccount: "cart"}, "spiffe://example.org/ns/shop/sa/cart"},
		{"no words", "/{{namespace}}/{{serviceaccount}}", Workload{Namespace: "nico-system", ServiceAccount: "nico-api"}, "spiffe://example.org/nico-system/nico-api"},
		{"account first", "/sa/{{serviceaccount}}/in/{{namespace}}", Workload{Namespace: "a", ServiceAccount: "b.c"}, "spiffe://example.org/sa/b.c/in/a"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tmpl, err := ParseTemplate(tt.template)
			if err != nil {
				t.Fatal(err)
			}
			if tmpl.String() != tt.template {
				t.Errorf("String() = %q, want %q", tmpl.String(), tt.template)
			}
			id, err := tmpl.ID(td, tt.workload)
			if err != nil {
				t.Fatal(err)
			}
			if id.String() != tt.want {
				t.Errorf("ID() = %q, want %q", id, tt.want)
			}
		})
	}
}

func TestParseTemplateRefuses(t *testing.T) {
	for _, s := range []string{
		"",
		"ns/{{namespace}}/sa/{{serviceaccount}}",
		"/ns/{{namespace}}",
		"/sa/{{serviceaccount}}",
		"/{{namespace}}/{{namespace}}/{{serviceaccount}}",
		"/{{namespace}}-{{serviceaccount}}",
		"/ns-{{namespace}}/{{serviceaccount}}",
		"/{{namespace}}//{{serviceaccount}}",
		"/{{namespace}}/{{serviceaccount}}/",
		"/../{{namespace}}/{{serviceaccount}}",
		"/{{namespace}}/{{serviceaccount}}?x",
		"/{{ namespace }}/{{serviceaccount}}",
		"/{{namespace}}/{{serviceaccount}}/{{uid}}",
	} {
		if tmpl, err := ParseTemplate(s); err == nil {
			t.Errorf("ParseTemplate(%q) = %v, want an error", s, tmpl)
		}
	}
}

func TestIDRefusesNamesThatAreNotSegments(t *testing.T) {
	tmpl, err := ParseTemplate(DefaultTemplate)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []Workload{
		{Namespace: "", ServiceAccount: "a"},
		{Namespace: "a", ServiceAccount: ""},
		{Namespace: "a/b", ServiceAccount: "c"},
		{Namespace: "a", ServiceAccount: "b/c"},
		{Namespace: "..", ServiceAccount: "c"},
		{Namespace: "a", ServiceAccount: "c?d"},
		{Namespace: "a", ServiceAccount: "c#d"},
		{Namespace: "a", ServiceAccount: "%41"},
	} {
		if id, err := tmpl.ID(td, w); err == nil {
			t.Errorf("ID(%+v) = %s, want an error", w, id)
		}
	}
	if _, err := tmpl.ID(spiffeid.TrustDomain{}, Workload{Namespace: "a", ServiceAccount: "b"}); err == nil {
		t.Error("ID without a trust domain: want an error")
	}
	if _, err := (Template{}).ID(td, Workload{Namespace: "a", ServiceAccount: "b"}); err == nil {
		t.Error("ID of the zero template: want an error")
	}
}

func TestServiceAccountUsername(t *testing.T) {
	ns, name, err := ParseServiceAccountUsername(ServiceAccountUsername("shop", "cart"))
	if err != nil || ns != "shop" || name != "cart" {
		t.Errorf("got %q, %q, %v", ns, name, err)
	}
	for _, u := range []string{"", "cart", "system:node:n1", "system:serviceaccount:", "system:serviceaccount:shop", "system:serviceaccount::cart", "system:serviceaccount:shop:", "system:serviceaccount:a:b:c"} {
		if _, _, err := ParseServiceAccountUsername(u); err == nil {
			t.Errorf("ParseServiceAccountUsername(%q): want an error", u)
		} else if !strings.Contains(err.Error(), "not a service account") {
			t.Errorf("ParseServiceAccountUsername(%q): %v does not say what is wrong", u, err)
		}
	}
}

// FuzzTwoAccountsNeverCollide: equal IDs mean equal accounts, whatever the names.
func FuzzTwoAccountsNeverCollide(f *testing.F) {
	f.Add("a", "b", "a", "b")
	f.Add("a", "b/c", "a/b", "c")
	f.Add("", "a", "a", "")
	tmpl, err := ParseTemplate("/{{namespace}}/{{serviceaccount}}")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, ns1, sa1, ns2, sa2 string) {
		one, err1 := tmpl.ID(td, Workload{Namespace: ns1, ServiceAccount: sa1})
		two, err2 := tmpl.ID(td, Workload{Namespace: ns2, ServiceAccount: sa2})
		if err1 != nil || err2 != nil {
			return
		}
		if one == two && (ns1 != ns2 || sa1 != sa2) {
			t.Errorf("%s/%s and %s/%s share %s", ns1, sa1, ns2, sa2, one)
		}
		if back, err := spiffeid.FromString(one.String()); err != nil || back != one {
			t.Errorf("%s does not parse back: %v", one, err)
		}
	})
}
