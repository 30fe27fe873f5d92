// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// MaxDNSNames is how many DNS names one SVID may have.
const MaxDNSNames = 16

// DNSNames is a set of DNS names that an SVID has beside its SPIFFE ID (X509-SVID
// §2 allows them): sorted and joined by commas, so that equal sets are ==. Every
// one passes CheckDNSName, and there are at most MaxDNSNames. Empty: none. Get one
// from NewDNSNames or ParseDNSNames.
type DNSNames string

// NewDNSNames makes the set of names. It is an error if there are too many, if
// one does not pass CheckDNSName, or if one is there twice.
func NewDNSNames(names ...string) (DNSNames, error) {
	if len(names) > MaxDNSNames {
		return "", fmt.Errorf("there are %d DNS names, allowed are %d", len(names), MaxDNSNames)
	}
	for _, name := range names {
		if err := CheckDNSName(name); err != nil {
			return "", err
		}
	}
	names = slices.Sorted(slices.Values(names))
	for i := 1; i < len(names); i++ {
		if names[i] == names[i-1] {
			return "", fmt.Errorf("DNS name %s is there twice", quoteDNS(names[i]))
		}
	}
	return DNSNames(strings.Join(names, ",")), nil
}

// ParseDNSNames reads names that are separated by commas, with white space around
// them or not, in any order. There must be at least one.
func ParseDNSNames(s string) (DNSNames, error) {
	names := strings.SplitN(s, ",", MaxDNSNames+1)
	if rest := names[len(names)-1]; len(names) > MaxDNSNames {
		return "", fmt.Errorf("there are %d DNS names, allowed are %d", len(names)+strings.Count(rest, ","), MaxDNSNames)
	}
	for i, name := range names {
		names[i] = strings.TrimSpace(name)
	}
	return NewDNSNames(names...)
}

// Names returns the names in order; nil if there are none.
func (n DNSNames) Names() []string {
	if n == "" {
		return nil
	}
	return strings.Split(string(n), ",")
}

// maxDNSName is RFC 1035 2.3.4's limit of 255 octets on the wire, in text.
const maxDNSName = 253

// dnsNumber is what ends a text that some read as an IPv4 address: 127.0.0.1, and
// with inet_aton(3) 127.1 or 0x7f000001 too.
var dnsNumber = regexp.MustCompile(`^([0-9]+|0x[0-9a-f]*)$`)

// IsDNSLabel reports whether s is one label of a DNS name (RFC 1123 2.1): 1 to 63
// lower-case letters, digits and hyphens, a hyphen neither first nor last.
func IsDNSLabel(s string) bool {
	if len(s) < 1 || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// CheckDNSName says why name is not a DNS name that an SVID may have. It must be
// in lower case, at most 253 bytes, made of labels (IsDNSLabel) and dots between
// them, and its last label no number, or it could be taken for an IP address. So
// there are no wildcards and no final dot.
func CheckDNSName(name string) error {
	if name == "" {
		return errors.New("a DNS name is empty")
	}
	if len(name) > maxDNSName {
		return fmt.Errorf("DNS name %s has %d bytes, allowed are %d", quoteDNS(name), len(name), maxDNSName)
	}
	labels := strings.Split(name, ".")
	for _, label := range labels {
		if !IsDNSLabel(label) {
			return fmt.Errorf("DNS name %s: label %s is not 1 to 63 lower-case letters, digits and '-', the first and last no '-'", quoteDNS(name), quoteDNS(label))
		}
	}
	if dnsNumber.MatchString(labels[len(labels)-1]) {
		return fmt.Errorf("DNS name %s ends in a number, as IP addresses do", quoteDNS(name))
	}
	return nil
}

// quoteDNS makes a foreign name safe for a message: printable ASCII, bounded.
func quoteDNS(name string) string {
	const limit = 100
	quoted := strconv.QuoteToASCII(name)
	if len(quoted) > limit {
		quoted = quoted[:limit] + "…"
	}
	return quoted
}
