// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package evaluate

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/signet-spiffe/signet/internal/identity"
	"github.com/signet-spiffe/signet/internal/pki"
)

// DNSSuffixes say which DNS names a workload may have beside its SPIFFE ID: those
// that are one of its suffixes, or end in a dot and one of them. The zero value
// allows none. It is immutable.
//
// No name is ever given to workloads of two namespaces, nor to two service
// accounts by suffixes with {{serviceaccount}}: each placeholder stands for
// exactly one label, so a suffix and a name together tell whose the name is, and
// ParseDNSSuffixes refuses suffixes that could tell different owners of one name.
type DNSSuffixes struct {
	templates []dnsTemplate
}

// dnsTemplate is the labels of a suffix, each a placeholder or fixed.
type dnsTemplate []string

// ParseDNSSuffixes reads suffixes such as "{{namespace}}.svc.cluster.local" or
// "{{serviceaccount}}.{{namespace}}.example.org". It is an error unless each is a
// DNS name in lower case in which {{namespace}} is exactly one label and
// {{serviceaccount}} at most one, neither the last, and unless they are apart from
// each other.
func ParseDNSSuffixes(suffixes ...string) (DNSSuffixes, error) {
	var s DNSSuffixes
	for _, text := range suffixes {
		template, err := parseDNSTemplate(text)
		if err != nil {
			return DNSSuffixes{}, fmt.Errorf("DNS suffix %q: %w", text, err)
		}
		for _, other := range s.templates {
			if !apart(template, other) {
				return DNSSuffixes{}, fmt.Errorf("DNS suffixes %q and %q overlap, so that one name could be given to two namespaces or service accounts: "+
					"a fixed label must differ, or the placeholders be equally far from the end", other, template)
			}
		}
		s.templates = append(s.templates, template)
	}
	return s, nil
}

func parseDNSTemplate(text string) (dnsTemplate, error) {
	template := dnsTemplate(strings.Split(text, "."))
	example := slices.Clone(template)
	for i, label := range template {
		if isPlaceholder(label) {
			example[i] = "x"
		}
	}
	if err := pki.CheckDNSName(example.String()); err != nil {
		return nil, fmt.Errorf("%w; a placeholder (%s or %s) must be a whole label", err, identity.PlaceholderNamespace, identity.PlaceholderServiceAccount)
	}
	if template.count(identity.PlaceholderNamespace) != 1 {
		return nil, fmt.Errorf("must contain %s exactly once, or one namespace could have the names of another", identity.PlaceholderNamespace)
	}
	if template.count(identity.PlaceholderServiceAccount) > 1 {
		return nil, errors.New("must contain " + identity.PlaceholderServiceAccount + " at most once")
	}
	if isPlaceholder(template[len(template)-1]) {
		return nil, errors.New(`must not end in a placeholder, or a namespace called "com" could have every name that ends in .com`)
	}
	return template, nil
}

func isPlaceholder(label string) bool {
	return label == identity.PlaceholderNamespace || label == identity.PlaceholderServiceAccount
}

// String returns the suffix as it was written.
func (t dnsTemplate) String() string { return strings.Join(t, ".") }

func (t dnsTemplate) count(label string) int {
	n := 0
	for _, l := range t {
		if l == label {
			n++
		}
	}
	return n
}

// fromEnd is how many labels follow the one given; -1 if it is not there.
func (t dnsTemplate) fromEnd(label string) int {
	i := slices.Index(t, label)
	if i < 0 {
		return -1
	}
	return len(t) - 1 - i
}

// apart reports whether a and b cannot give one name to two owners: either no
// name matches both, since a fixed label differs, or the owner is the same label
// of the name in both. It is strict: some pairs that it refuses would do no harm.
func apart(a, b dnsTemplate) bool {
	for i := 1; i <= min(len(a), len(b)); i++ {
		x, y := a[len(a)-i], b[len(b)-i]
		if x != y && !isPlaceholder(x) && !isPlaceholder(y) {
			return true
		}
	}
	account, other := a.fromEnd(identity.PlaceholderServiceAccount), b.fromEnd(identity.PlaceholderServiceAccount)
	return a.fromEnd(identity.PlaceholderNamespace) == b.fromEnd(identity.PlaceholderNamespace) &&
		(account < 0 || other < 0 || account == other)
}

// of is the suffix for w. There is none for a workload whose names are not one
// label each: "a.b" in place of {{serviceaccount}} would be the names of account
// "b", one level further down.
func (t dnsTemplate) of(w identity.Workload) (suffix string, ok bool) {
	labels := slices.Clone(t)
	for i, label := range t {
		switch label {
		case identity.PlaceholderNamespace:
			labels[i] = w.Namespace
		case identity.PlaceholderServiceAccount:
			labels[i] = w.ServiceAccount
		}
		if !pki.IsDNSLabel(labels[i]) {
			return "", false
		}
	}
	return labels.String(), true
}

// IsZero reports whether no DNS name is allowed to anybody.
func (s DNSSuffixes) IsZero() bool { return len(s.templates) == 0 }

// String returns the suffixes as they were written.
func (s DNSSuffixes) String() string {
	texts := make([]string, len(s.templates))
	for i, t := range s.templates {
		texts[i] = t.String()
	}
	return strings.Join(texts, ",")
}

func (s DNSSuffixes) allow(name string, w identity.Workload) bool {
	return slices.ContainsFunc(s.templates, func(t dnsTemplate) bool {
		suffix, ok := t.of(w)
		return ok && (name == suffix || strings.HasSuffix(name, "."+suffix))
	})
}

// allowed says in words what w may have.
func (s DNSSuffixes) allowed(w identity.Workload) string {
	var suffixes, others []string
	for _, t := range s.templates {
		if suffix, ok := t.of(w); ok {
			suffixes = append(suffixes, quote(suffix))
		} else {
			others = append(others, quote(t.String()))
		}
	}
	words := "none"
	if len(suffixes) > 0 {
		words = strings.Join(suffixes, " or ") + ", or a name below"
	}
	if len(others) > 0 {
		words += fmt.Sprintf(" (nothing by %s, since its name is not a single DNS label)", strings.Join(others, " or "))
	}
	return words
}

// checkDNSNamesOn holds what can be said of DNS names before anything is known of
// the workload: where they are switched off, nobody may have any.
func checkDNSNamesOn(names pki.DNSNames, p Policy) *denial {
	if names == "" || !p.DNSSuffixes.IsZero() {
		return nil
	}
	return deny(RuleDNSNames, "asked for DNS name %s, allowed is none: the approver's --allowed-dns-suffixes is not set", quote(names.Names()[0]))
}

// checkDNSNames holds each name against what w may have. w is who the requester
// was proven to be or to speak for, never what the CSR says.
func checkDNSNames(names pki.DNSNames, w identity.Workload, p Policy) *denial {
	for _, name := range names.Names() {
		if !p.DNSSuffixes.allow(name, w) {
			return deny(RuleDNSNames, "asked for DNS name %s, allowed for service account %s is %s",
				quote(name), quote(w.Namespace+"/"+w.ServiceAccount), p.DNSSuffixes.allowed(w))
		}
	}
	return nil
}
