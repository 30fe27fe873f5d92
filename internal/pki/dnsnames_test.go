// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestParseDNSNames(t *testing.T) {
	label := strings.Repeat("a", 63)
	longest := strings.Repeat(label+".", 3) + strings.Repeat("a", 61) // 253 bytes.
	for name, c := range map[string]struct {
		in   string
		want []string // Nil: refused.
		says string
	}{
		"one":                 {"web.shop.svc", []string{"web.shop.svc"}, ""},
		"a single label":      {"web", []string{"web"}, ""},
		"sorted":              {"b.a,a.b,a", []string{"a", "a.b", "b.a"}, ""},
		"white space":         {" b ,\n a\t", []string{"a", "b"}, ""},
		"hyphens and digits":  {"0-9.x--y.z", []string{"0-9.x--y.z"}, ""},
		"a number, not last":  {"10.0.0.example", []string{"10.0.0.example"}, ""},
		"number and letters":  {"1a,0y1", []string{"0y1", "1a"}, ""},
		"sixteen":             {"a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p", strings.Split("abcdefghijklmnop", ""), ""},
		"longest":             {longest, []string{longest}, ""},
		"longer":              {longest + "a", nil, "254 bytes"},
		"longer label":        {label + "a", nil, "label"},
		"seventeen":           {"a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p,q", nil, "there are 17 DNS names, allowed are 16"},
		"very many":           {strings.Repeat(",", 100), nil, "there are 101"},
		"empty":               {"", nil, "empty"},
		"one empty":           {"a,,b", nil, "empty"},
		"twice":               {"a,b, a", nil, `"a" is there twice`},
		"upper case":          {"Web", nil, `"Web"`},
		"wildcard":            {"*.a", nil, `label "*"`},
		"final dot":           {"a.", nil, `label ""`},
		"dot first":           {".a", nil, `label ""`},
		"two dots":            {"a..b", nil, `label ""`},
		"underscore":          {"_tcp.a", nil, `label "_tcp"`},
		"hyphen first":        {"-a.b", nil, `label "-a"`},
		"hyphen last":         {"a.b-", nil, `label "b-"`},
		"space within":        {"a b", nil, `"a b"`},
		"not ASCII":           {"bücher.example", nil, `"b\u00fccher"`},
		"control characters":  {"a\x1b[31m", nil, `\x1b`},
		"IPv4 address":        {"10.0.0.1", nil, "number"},
		"short IPv4 address":  {"127.1", nil, "number"},
		"IPv4 address in hex": {"0x7f000001", nil, "number"},
		"IPv6 address":        {"fe80::1", nil, `"fe80::1"`},
		"SPIFFE ID":           {"spiffe://a/b", nil, "label"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ParseDNSNames(c.in)
			if c.want != nil {
				if err != nil || !slices.Equal(got.Names(), c.want) {
					t.Errorf("%q, %v, want %q", got, err, c.want)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.says) || got != "" || len(err.Error()) > 400 {
				t.Errorf("%q, %v, want an error about %s", got, err, c.says)
			}
		})
	}
	if names, err := NewDNSNames(); err != nil || names != "" || names.Names() != nil {
		t.Errorf("no names: %q, %v", names, err)
	}
	if names, err := NewDNSNames("a,b"); err == nil {
		t.Errorf("a name with a comma: taken as %q", names)
	}
}

func FuzzParseDNSNames(f *testing.F) {
	for _, s := range []string{"", "a", "b.c, a", "a,a", "A", "*.a", "a.", "10.0.0.1", "0x1", strings.Repeat("a,", 17)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		names, err := ParseDNSNames(s)
		if err != nil {
			if names != "" || len(err.Error()) > 400 || strings.ContainsAny(err.Error(), "\n\x1b") {
				t.Fatalf("%q, %v", names, err)
			}
			return
		}
		list := names.Names()
		if len(list) < 1 || len(list) > MaxDNSNames || !slices.IsSorted(list) || len(slices.Compact(slices.Clone(list))) != len(list) {
			t.Fatalf("%q", list)
		}
		for _, name := range list {
			if _, err := netip.ParseAddr(name); err == nil || strings.ToLower(name) != name || len(name) > 253 {
				t.Fatalf("%q", name)
			}
		}
		slices.Reverse(list)
		if again, err := ParseDNSNames(strings.Join(list, " , ")); err != nil || again != names {
			t.Fatalf("%q became %q, %v", names, again, err)
		}
	})
}
