// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package evaluate

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"slices"
	"strings"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"

	"github.com/signet-spiffe/signet/internal/identity"
	"github.com/signet-spiffe/signet/internal/pki"
	"github.com/signet-spiffe/signet/internal/request"
)

func suffixes(t testing.TB, texts ...string) DNSSuffixes {
	t.Helper()
	s, err := ParseDNSSuffixes(texts...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestParseDNSSuffixes(t *testing.T) {
	if s := suffixes(t); !s.IsZero() || s.String() != "" {
		t.Errorf("no suffixes: %q", s)
	}
	for name, c := range map[string]struct {
		given []string
		says  string // Empty: it is taken.
	}{
		"of a namespace":                   {[]string{"{{namespace}}.svc.cluster.local"}, ""},
		"of a service account":             {[]string{"{{serviceaccount}}.{{namespace}}.example.org"}, ""},
		"service account last":             {[]string{"{{namespace}}.{{serviceaccount}}.example.org"}, ""},
		"fixed labels on both sides":       {[]string{"mesh.{{namespace}}.example.org"}, ""},
		"of both, in one zone":             {[]string{"{{namespace}}.svc.cluster.local", "{{serviceaccount}}.{{namespace}}.svc.cluster.local"}, ""},
		"in two zones":                     {[]string{"{{namespace}}.svc.cluster.local", "{{namespace}}.svc"}, ""},
		"the same twice":                   {[]string{"{{namespace}}.svc", "{{namespace}}.svc"}, ""},
		"no namespace":                     {[]string{"svc.cluster.local"}, "must contain {{namespace}} exactly once"},
		"service account alone":            {[]string{"{{serviceaccount}}.example.org"}, "must contain {{namespace}} exactly once"},
		"namespace twice":                  {[]string{"{{namespace}}.{{namespace}}.svc"}, "must contain {{namespace}} exactly once"},
		"service account twice":            {[]string{"{{serviceaccount}}.{{serviceaccount}}.{{namespace}}.svc"}, "must contain {{serviceaccount}} at most once"},
		"namespace in a label":             {[]string{"ns-{{namespace}}.svc"}, "must be a whole label"},
		"account and namespace in a label": {[]string{"{{serviceaccount}}-{{namespace}}.svc"}, "must be a whole label"},
		"placeholder with spaces":          {[]string{"{{ namespace }}.svc"}, "must be a whole label"},
		"unknown placeholder":              {[]string{"{{pod}}.{{namespace}}.svc"}, "must be a whole label"},
		"begins with a dot":                {[]string{".{{namespace}}.svc"}, `label ""`},
		"ends in a dot":                    {[]string{"{{namespace}}.svc."}, `label ""`},
		"wildcard":                         {[]string{"*.{{namespace}}.svc"}, `label "*"`},
		"upper case":                       {[]string{"{{namespace}}.SVC"}, `label "SVC"`},
		"namespace alone":                  {[]string{"{{namespace}}"}, "must not end in a placeholder"},
		"namespace last":                   {[]string{"svc.{{namespace}}"}, "must not end in a placeholder"},
		"service account last of all":      {[]string{"{{namespace}}.{{serviceaccount}}"}, "must not end in a placeholder"},
		"ends in a number":                 {[]string{"{{namespace}}.1"}, "number"},
		"longer than a name":               {[]string{"{{namespace}}." + strings.Repeat("a.", 126) + "a"}, "253"},
		"empty":                            {[]string{""}, "empty"},
		"second is bad":                    {[]string{"{{namespace}}.svc", "svc"}, `suffix "svc"`},
		// Namespace "cluster" could have the names of all others.
		"one zone within another": {[]string{"{{namespace}}.local", "{{namespace}}.svc.cluster.local"}, "overlap"},
		"any name of a zone":      {[]string{"{{namespace}}.local", "{{namespace}}.svc.local"}, "overlap"},
		// Namespace "b" and account "a" have the name of namespace "a" and account "b".
		"places exchanged": {[]string{"{{namespace}}.{{serviceaccount}}.svc", "{{serviceaccount}}.{{namespace}}.svc"}, "overlap"},
		// Account "web" could have the names of all others.
		"accounts at two places": {[]string{"{{serviceaccount}}.{{namespace}}.svc", "{{serviceaccount}}.web.{{namespace}}.svc"}, "overlap"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := ParseDNSSuffixes(c.given...)
			if c.says == "" {
				if err != nil || s.String() != strings.Join(c.given, ",") {
					t.Errorf("%q, %v", s, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%q, %v; want an error in one line about %q", s, err, c.says)
			}
			if !s.IsZero() {
				t.Errorf("%q is in use in spite of the error", s)
			}
		})
	}
}

// askedBy is the request of workload w for dns beside its ID, in the namespace
// that it is in, as the agent or the pod itself makes it.
func askedBy(t testing.TB, w identity.Workload, asPod bool, dns ...string) (*cmapi.CertificateRequest, Pod, Policy) {
	t.Helper()
	p := policy(t)
	id, err := p.Template.ID(testTD, w)
	if err != nil {
		t.Fatal(err)
	}
	names, err := pki.NewDNSNames(dns...)
	if err != nil {
		t.Fatal(err)
	}
	cr, pod := valid(t), validPod()
	if cr.Spec.Request, err = pki.NewCSR(testKey(), id, names); err != nil {
		t.Fatal(err)
	}
	cr.Namespace, cr.Annotations[request.AnnotationIdentity] = w.Namespace, id.String()
	pod.ServiceAccount = w.ServiceAccount
	if asPod {
		p.AgentUsername, p.AllowPod = "", true
		cr.Spec.Username = identity.ServiceAccountUsername(w.Namespace, w.ServiceAccount)
		cr.Spec.Extra = nil
	}
	return cr, pod, p
}

func TestDNSNames(t *testing.T) {
	cart := identity.Workload{Namespace: "shop", ServiceAccount: "cart"}
	dotted := identity.Workload{Namespace: "shop", ServiceAccount: "a.b"}
	const cluster, account = "{{namespace}}.svc.cluster.local", "{{serviceaccount}}.{{namespace}}.example.org"
	many := []string{"shop.svc.cluster.local"}
	for _, letter := range "abcdefghijklmno" {
		many = append(many, string(letter)+".shop.svc.cluster.local")
	}
	for _, c := range []struct {
		name     string
		suffixes []string
		workload identity.Workload
		asked    []string
		says     []string // Nil: approved.
	}{
		{"below", []string{cluster}, cart, []string{"web.shop.svc.cluster.local"}, nil},
		{"far below", []string{cluster}, cart, []string{"a.b.c.web.shop.svc.cluster.local"}, nil},
		{"the suffix itself", []string{cluster}, cart, []string{"shop.svc.cluster.local"}, nil},
		{"sixteen", []string{cluster}, cart, many, nil},
		{"by two suffixes", []string{cluster, account}, cart, []string{"web.shop.svc.cluster.local", "cart.shop.example.org"}, nil},
		{"of the account", []string{account}, cart, []string{"cart.shop.example.org", "v2.cart.shop.example.org"}, nil},
		{"an account with a dot, by the namespace", []string{cluster, account}, dotted, []string{"web.shop.svc.cluster.local"}, nil},
		{"none, with suffixes", []string{cluster}, cart, nil, nil},
		{"none, without suffixes", nil, cart, nil, nil},

		{"switched off", nil, cart, []string{"web.shop.svc.cluster.local"}, []string{`"web.shop.svc.cluster.local"`, "allowed is none", "--allowed-dns-suffixes"}},
		{"another namespace", []string{cluster}, cart, []string{"web.kube-system.svc.cluster.local"},
			[]string{`asked for DNS name "web.kube-system.svc.cluster.local", allowed for service account "shop/cart" is "shop.svc.cluster.local", or a name below`}},
		{"one of two is another namespace's", []string{cluster}, cart, []string{"web.shop.svc.cluster.local", "web.kube-system.svc.cluster.local"}, []string{`asked for DNS name "web.kube-system.`}},
		{"a namespace that ends like it", []string{cluster}, cart, []string{"web.workshop.svc.cluster.local"}, anyWords},
		{"no dot between", []string{cluster}, cart, []string{"webshop.svc.cluster.local"}, anyWords},
		{"above", []string{cluster}, cart, []string{"svc.cluster.local"}, anyWords},
		{"something after it", []string{cluster}, cart, []string{"web.shop.svc.cluster.local.evil"}, anyWords},
		{"another account's", []string{account}, cart, []string{"admin.shop.example.org"}, []string{`"cart.shop.example.org", or a name below`}},
		{"the whole namespace's", []string{account}, cart, []string{"shop.example.org"}, anyWords},
		{"by two suffixes, by neither", []string{cluster, account}, cart, []string{"web.example.org"}, []string{`is "shop.svc.cluster.local" or "cart.shop.example.org", or a name below`}},
		// It would be account b's.
		{"an account with a dot", []string{account}, dotted, []string{"a.b.shop.example.org"},
			[]string{`"shop/a.b" is none`, `nothing by "{{serviceaccount}}.{{namespace}}.example.org"`, "not a single DNS label"}},
		// It would be namespace b's, account n's.
		{"an account with a dot, account last", []string{"{{namespace}}.{{serviceaccount}}.example.org"}, dotted, []string{"shop.a.b.example.org"}, []string{"is none"}},
		{"an account with a dot, by neither", []string{cluster, account}, dotted, []string{"a.b.shop.example.org"}, []string{`is "shop.svc.cluster.local", or a name below (nothing by`}},
		{"an account longer than a label", []string{account}, identity.Workload{Namespace: "shop", ServiceAccount: strings.Repeat("a", 64)}, []string{"cart.shop.example.org"}, []string{"is none"}},
	} {
		for requester, asPod := range map[string]bool{"agent": false, "pod": true} {
			t.Run(c.name+", asked by "+requester, func(t *testing.T) {
				cr, pod, p := askedBy(t, c.workload, asPod, c.asked...)
				p.DNSSuffixes = suffixes(t, c.suffixes...)
				v := Evaluate(Request{cr}, Facts{Now: testNow, Pod: &pod}, p)
				if c.says != nil {
					wantDenied(t, v, RuleDNSNames, c.says...)
					return
				}
				if v.Decision != Approve {
					t.Fatalf("%+v, want approved", v)
				}
				if got := strings.Contains(v.Message, "DNS names"); got != (len(c.asked) > 0) {
					t.Errorf("message %q", v.Message)
				}
			})
		}
	}
}

// anyWords is for denials whose words are looked at elsewhere.
var anyWords = []string{}

// What can be said without the pod is said without it; who asks, and for which
// pod, goes before what DNS names that pod may have.
func TestDNSNamesAmongTheRules(t *testing.T) {
	cart := identity.Workload{Namespace: "shop", ServiceAccount: "cart"}
	cr, pod, p := askedBy(t, cart, false, "web.kube-system.svc.cluster.local")
	wantDenied(t, Evaluate(Request{cr}, Facts{Now: testNow}, p), RuleDNSNames, "--allowed-dns-suffixes")
	p.DNSSuffixes = suffixes(t, "{{namespace}}.svc.cluster.local")
	if v := Evaluate(Request{cr}, Facts{Now: testNow}, p); v.Decision != NeedPod {
		t.Errorf("%+v, want the pod to be looked up", v)
	}
	for rule, change := range map[Rule]func(cr *cmapi.CertificateRequest, pod *Pod){
		RuleDuration:   func(cr *cmapi.CertificateRequest, _ *Pod) { cr.Spec.Duration.Duration = time.Minute },
		RuleAnnotation: func(cr *cmapi.CertificateRequest, _ *Pod) { cr.Annotations[request.AnnotationIdentity] = "" },
		RuleRequester:  func(cr *cmapi.CertificateRequest, _ *Pod) { cr.Spec.Username = "somebody" },
		RulePodNode:    func(_ *cmapi.CertificateRequest, pod *Pod) { pod.NodeName = "node-b" },
		RuleIdentity:   func(_ *cmapi.CertificateRequest, pod *Pod) { pod.ServiceAccount = "other" },
		RuleDNSNames:   func(*cmapi.CertificateRequest, *Pod) {},
	} {
		changed, other := cr.DeepCopy(), pod
		change(changed, &other)
		wantDenied(t, Evaluate(Request{changed}, Facts{Now: testNow, Pod: &other}, p), rule)
	}
	// A request that claims another namespace in all that it says itself.
	cr, pod, p = askedBy(t, identity.Workload{Namespace: "kube-system", ServiceAccount: "cart"}, false, "web.kube-system.svc.cluster.local")
	p.DNSSuffixes = suffixes(t, "{{namespace}}.svc.cluster.local")
	cr.Namespace = "shop"
	wantDenied(t, Evaluate(Request{cr}, Facts{Now: testNow, Pod: &pod}, p), RuleIdentity)
}

// TestTheLongestCSRIsRead: what may be asked for fits into what is read.
func TestTheLongestCSRIsRead(t *testing.T) {
	key, err := pki.GenerateKey(pki.RSA4096)
	if err != nil {
		t.Fatal(err)
	}
	long := "spiffe://example.org/"
	long += strings.Repeat("a", 2048-len(long))
	var list []string
	for _, letter := range "abcdefghijklmnop" {
		list = append(list, string(letter)+strings.Repeat(".a", 126))
	}
	var sans []asn1.RawValue
	for _, n := range list {
		sans = append(sans, name(2, n))
	}
	csr := csrFrom(x509.CertificateRequest{ExtraExtensions: []pkix.Extension{san(append(sans, uri(long))...)}}, key.Signer())
	found, d := checkCSR(csr, pki.KeyTypes())
	if d != nil || found.uri != long || !slices.Equal(found.dns.Names(), list) {
		t.Errorf("%d bytes: %+v", len(csr), d)
	}
	if len(csr) > 12<<10 {
		t.Errorf("it has %d bytes, the comment on maxCSRBytes says under 12 KiB", len(csr))
	}
}

// TestNoNameHasTwoOwners tries all suffixes of up to three labels out of a small
// alphabet, in one zone and in pairs, on all workloads and names of that alphabet.
func TestNoNameHasTwoOwners(t *testing.T) {
	templates := singles(inZone(words([]string{"a", "b", identity.PlaceholderNamespace, identity.PlaceholderServiceAccount}, 3)))
	names := inZone(words([]string{"a", "b"}, 4))
	var workloads []identity.Workload
	for _, ns := range []string{"a", "b"} {
		for _, account := range []string{"a", "b", "a.b", "b.a"} {
			workloads = append(workloads, identity.Workload{Namespace: ns, ServiceAccount: account})
		}
	}
	taken, refused, needlessly := 0, 0, 0
	for i, first := range templates {
		for _, second := range templates[:i+1] {
			s, err := ParseDNSSuffixes(first.String(), second.String())
			if err == nil {
				taken++
				if name, owners := twoOwners(s, names, workloads); owners != nil {
					t.Errorf("by %q, %q is given to %v", s, name, owners)
				}
				continue
			}
			refused++
			if _, owners := twoOwners(DNSSuffixes{templates: []dnsTemplate{first, second}}, names, workloads); owners == nil {
				needlessly++
			}
		}
	}
	t.Logf("%d suffixes; pairs: %d taken, %d refused, %d of them without need", len(templates), taken, refused, needlessly)
	if taken < 100 || refused < 100 || needlessly > refused/2 {
		t.Error("the alphabet shows nothing")
	}
}

// words are all sequences of one to longest letters, joined by dots.
func words(letters []string, longest int) []string {
	all, last := []string{}, []string{""}
	for range longest {
		var next []string
		for _, word := range last {
			for _, letter := range letters {
				next = append(next, strings.TrimPrefix(word+"."+letter, "."))
			}
		}
		all, last = append(all, next...), next
	}
	return all
}

func inZone(names []string) []string {
	for i, name := range names {
		names[i] = name + ".zone"
	}
	return names
}

// singles are those texts that are good suffixes by themselves.
func singles(texts []string) []dnsTemplate {
	var good []dnsTemplate
	for _, text := range texts {
		if template, err := parseDNSTemplate(text); err == nil {
			good = append(good, template)
		}
	}
	return good
}

// twoOwners finds a name that s gives to two namespaces, or by its suffixes with
// {{serviceaccount}} to two accounts.
func twoOwners(s DNSSuffixes, names []string, workloads []identity.Workload) (string, []identity.Workload) {
	byAccount := s.withAccount()
	for _, name := range names {
		var owners, accounts []identity.Workload
		for _, w := range workloads {
			if s.allow(name, w) {
				owners = append(owners, w)
			}
			if byAccount.allow(name, w) {
				accounts = append(accounts, w)
			}
		}
		if len(accounts) > 1 {
			return name, accounts
		}
		if slices.ContainsFunc(owners, func(w identity.Workload) bool { return w.Namespace != owners[0].Namespace }) {
			return name, owners
		}
	}
	return "", nil
}

func (s DNSSuffixes) withAccount() DNSSuffixes {
	return DNSSuffixes{templates: slices.DeleteFunc(slices.Clone(s.templates), func(t dnsTemplate) bool { return t.count(identity.PlaceholderServiceAccount) == 0 })}
}

// FuzzDNSSuffixes: no name is given to two namespaces, nor by suffixes with
// {{serviceaccount}} to two accounts, whatever the suffixes and names are.
func FuzzDNSSuffixes(f *testing.F) {
	f.Add("{{namespace}}.svc.cluster.local", "{{namespace}}.svc", "web", "shop", "cart", "kube-system", "cart")
	f.Add("{{serviceaccount}}.{{namespace}}.x", "{{namespace}}.y", "", "n", "a.b", "n", "b")
	f.Add("{{namespace}}.{{serviceaccount}}.x", "{{namespace}}.y", "", "n", "a.b", "a", "b")
	f.Add("{{namespace}}.{{serviceaccount}}.x", "{{namespace}}.{{serviceaccount}}.y", "n", "a", "b", "n.a", "b")
	f.Add("{{namespace}}.local", "{{namespace}}.svc.cluster.local", "web", "shop", "a", "cluster", "a")
	f.Add("{{namespace}}.x", "{{namespace}}.svc.x", "web", "shop", "a", "svc", "a")
	f.Add("{{namespace}}", "svc.{{namespace}}", "web", "svc", "a", "x", "a")
	f.Add("{{serviceaccount}}.{{namespace}}.x", "{{namespace}}.{{serviceaccount}}.x", "", "a", "b", "b", "a")
	f.Add("a.{{serviceaccount}}.{{namespace}}.x", "{{serviceaccount}}.a.{{namespace}}.x", "", "n", "a", "n", "b")
	f.Fuzz(func(t *testing.T, first, second, below, ns1, account1, ns2, account2 string) {
		s, err := ParseDNSSuffixes(first, second)
		if err != nil {
			if !s.IsZero() {
				t.Fatalf("%q in spite of %v", s, err)
			}
			return
		}
		one, two := identity.Workload{Namespace: ns1, ServiceAccount: account1}, identity.Workload{Namespace: ns2, ServiceAccount: account2}
		names := []string{below}
		for _, template := range s.templates {
			for _, w := range []identity.Workload{one, two} {
				if suffix, ok := template.of(w); ok {
					names = append(names, suffix, below+"."+suffix)
				}
			}
		}
		names = slices.DeleteFunc(names, func(name string) bool { return pki.CheckDNSName(name) != nil })
		if name, owners := twoOwners(s, names, []identity.Workload{one, two}); owners != nil && one != two {
			t.Fatalf("by %q, %q is given to %v", s, name, owners)
		}
	})
}
