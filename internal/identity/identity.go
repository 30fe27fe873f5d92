// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// DefaultTemplate is the path that csi-driver-spiffe, SPIRE's Kubernetes
// registrars and Istio all give a service account.
const DefaultTemplate = "/ns/{{namespace}}/sa/{{serviceaccount}}"

// Workload is what a template may speak about.
type Workload struct {
	// Namespace and ServiceAccount are Kubernetes names, without any prefix.
	Namespace      string
	ServiceAccount string
}

// The placeholders of templates, each a whole path segment (in the approver's DNS
// suffixes, a whole label).
const (
	PlaceholderNamespace      = "{{namespace}}"
	PlaceholderServiceAccount = "{{serviceaccount}}"
)

// Template is a parsed SPIFFE ID path template. The zero value is not usable;
// get one from ParseTemplate. It is immutable and safe for concurrent use.
type Template struct {
	segments []string
}

// ParseTemplate reads a template such as DefaultTemplate. It is an error unless
// the namespace and the service account each fill exactly one path segment
// (a prefix or suffix beside a placeholder would let two accounts collide), and
// unless the fixed segments are legal in a SPIFFE ID (SPIFFE-ID §2.2).
func ParseTemplate(s string) (Template, error) {
	if !strings.HasPrefix(s, "/") {
		return Template{}, fmt.Errorf("SPIFFE ID template %q: must begin with a slash, as %q does", s, DefaultTemplate)
	}
	segments := strings.Split(s[1:], "/")
	seen := map[string]int{}
	for _, segment := range segments {
		switch segment {
		case PlaceholderNamespace, PlaceholderServiceAccount:
			seen[segment]++
			continue
		}
		if err := spiffeid.ValidatePathSegment(segment); err != nil {
			return Template{}, fmt.Errorf("SPIFFE ID template %q: segment %q: %w; a placeholder (%s or %s) must be a whole segment",
				s, segment, err, PlaceholderNamespace, PlaceholderServiceAccount)
		}
	}
	for _, p := range []string{PlaceholderNamespace, PlaceholderServiceAccount} {
		if seen[p] != 1 {
			return Template{}, fmt.Errorf("SPIFFE ID template %q: must contain %s exactly once, or two service accounts could share an identity", s, p)
		}
	}
	return Template{segments: segments}, nil
}

// String returns the template as it was written.
func (t Template) String() string { return "/" + strings.Join(t.segments, "/") }

// maxTrustDomainBytes is the longest trust domain name (SPIFFE-ID §2.1).
const maxTrustDomainBytes = 255

// ParseTrustDomain reads a trust domain from the configuration. go-spiffe knows
// its characters, but not how long it may be.
func ParseTrustDomain(s string) (spiffeid.TrustDomain, error) {
	td, err := spiffeid.TrustDomainFromString(s)
	if err != nil {
		return spiffeid.TrustDomain{}, err
	}
	if n := len(td.Name()); n > maxTrustDomainBytes {
		return spiffeid.TrustDomain{}, fmt.Errorf("trust domain has %d bytes, more than %d (SPIFFE-ID §2.1)", n, maxTrustDomainBytes)
	}
	return td, nil
}

// maxIDBytes is the longest SPIFFE ID that every implementation has to support,
// and that none should exceed (SPIFFE-ID §2.3).
const maxIDBytes = 2048

// ID computes the SPIFFE ID of w in trust domain td. It fails when td is empty,
// when a name of w is not a legal path segment, or when the ID is longer than
// SPIFFE implementations have to support.
func (t Template) ID(td spiffeid.TrustDomain, w Workload) (spiffeid.ID, error) {
	if len(t.segments) == 0 {
		return spiffeid.ID{}, errors.New("SPIFFE ID template is empty")
	}
	if td.IsZero() {
		return spiffeid.ID{}, errors.New("trust domain is empty")
	}
	path := make([]string, len(t.segments))
	for i, segment := range t.segments {
		switch segment {
		case PlaceholderNamespace:
			segment = w.Namespace
		case PlaceholderServiceAccount:
			segment = w.ServiceAccount
		}
		path[i] = segment
	}
	id, err := spiffeid.FromSegments(td, path...)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("SPIFFE ID for service account %s/%s: %w", w.Namespace, w.ServiceAccount, err)
	}
	if n := len(id.String()); n > maxIDBytes {
		return spiffeid.ID{}, fmt.Errorf("SPIFFE ID for service account %s/%s has %d bytes, more than %d (SPIFFE-ID §2.3); use a shorter template",
			w.Namespace, w.ServiceAccount, n, maxIDBytes)
	}
	return id, nil
}

const serviceAccountPrefix = "system:serviceaccount:"

// ServiceAccountUsername is the user name under which the API server knows a
// service account.
func ServiceAccountUsername(namespace, name string) string {
	return serviceAccountPrefix + namespace + ":" + name
}

// ParseServiceAccountUsername splits a user name of the form
// "system:serviceaccount:NAMESPACE:NAME". Anything else is an error.
func ParseServiceAccountUsername(username string) (namespace, name string, err error) {
	rest, ok := strings.CutPrefix(username, serviceAccountPrefix)
	if !ok {
		return "", "", fmt.Errorf("user %q is not a service account (want %sNAMESPACE:NAME)", username, serviceAccountPrefix)
	}
	namespace, name, ok = strings.Cut(rest, ":")
	if !ok || namespace == "" || name == "" || strings.Contains(name, ":") {
		return "", "", fmt.Errorf("user %q is not a service account (want %sNAMESPACE:NAME)", username, serviceAccountPrefix)
	}
	return namespace, name, nil
}
