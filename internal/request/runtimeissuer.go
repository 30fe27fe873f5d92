// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package request

import (
	"fmt"
	"regexp"
	"strings"

	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// The keys of the ConfigMap that names the issuer while agent and approver run,
// as csi-driver-spiffe has them.
const (
	KeyIssuerName  = "issuer-name"
	KeyIssuerKind  = "issuer-kind"
	KeyIssuerGroup = "issuer-group"
)

// kindPattern is what Kubernetes takes as the kind of a resource.
var kindPattern = regexp.MustCompile(`^[A-Za-z]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)

// ParseRuntimeIssuer reads the issuer out of the data of that ConfigMap. Agent and
// approver both do so here: what one of them accepts, the other does. All three
// keys must be there; others are left alone. The error is one line that names the
// key and says what is wrong with its value.
func ParseRuntimeIssuer(data map[string]string) (cmmeta.IssuerReference, error) {
	for _, key := range []string{KeyIssuerName, KeyIssuerKind, KeyIssuerGroup} {
		if data[key] == "" {
			return cmmeta.IssuerReference{}, fmt.Errorf("key %q is missing or empty", key)
		}
	}
	ref := cmmeta.IssuerReference{Name: data[KeyIssuerName], Kind: data[KeyIssuerKind], Group: data[KeyIssuerGroup]}
	if len(validation.IsDNS1123Subdomain(ref.Name)) > 0 {
		return cmmeta.IssuerReference{}, fmt.Errorf("key %q: %q is no object name (lower-case letters, digits, '-' and '.')", KeyIssuerName, clip(ref.Name))
	}
	if !kindPattern.MatchString(ref.Kind) {
		return cmmeta.IssuerReference{}, fmt.Errorf("key %q: %q is no kind, such as ClusterIssuer", KeyIssuerKind, clip(ref.Kind))
	}
	if len(validation.IsDNS1123Subdomain(ref.Group)) > 0 {
		return cmmeta.IssuerReference{}, fmt.Errorf("key %q: %q is no API group, such as cert-manager.io", KeyIssuerGroup, clip(ref.Group))
	}
	return ref, nil
}

// IssuerName writes an issuer down in one string, for comparison and for logs:
// "kind.group/name". The zero reference has none.
func IssuerName(ref cmmeta.IssuerReference) string {
	if ref == (cmmeta.IssuerReference{}) {
		return ""
	}
	return ref.Kind + "." + ref.Group + "/" + ref.Name
}

// clip bounds what of a foreign value is quoted.
func clip(s string) string {
	const most = 64
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
