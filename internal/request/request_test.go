// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package request

import (
	"strings"
	"testing"
	"time"

	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"k8s.io/apimachinery/pkg/api/validation"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
)

func spec() Spec {
	return Spec{
		Driver: DefaultDriverName, Node: "node-1", VolumeID: "csi-1",
		Pod:      Pod{Namespace: "shop", Name: "cart-0", UID: "u-1", ServiceAccount: "cart"},
		ID:       spiffeid.RequireFromString("spiffe://example.org/ns/shop/sa/cart"),
		CSR:      []byte("csr"),
		Issuer:   cmmeta.IssuerReference{Name: "ca", Kind: "ClusterIssuer", Group: "cert-manager.io"},
		Duration: time.Hour,
	}
}

func TestNew(t *testing.T) {
	s := spec()
	s.Annotations = map[string]string{"team": "shop", AnnotationIdentity: "spiffe://example.org/forged", Prefix + "other": "x"}
	cr := New(s)
	want := map[string]string{"team": "shop", AnnotationIdentity: s.ID.String(), AnnotationDriver: DefaultDriverName}
	if diff := cmp.Diff(want, cr.Annotations); diff != "" {
		t.Errorf("annotations (-want +got):\n%s", diff)
	}
	if len(s.Annotations) != 3 {
		t.Error("New changed the caller's annotations")
	}
	owner := cr.OwnerReferences[0]
	if len(cr.OwnerReferences) != 1 || owner.APIVersion != "v1" || owner.Kind != "Pod" || owner.Name != "cart-0" || owner.UID != "u-1" {
		t.Errorf("owner references %v, want the pod", cr.OwnerReferences)
	}
	if cr.Namespace != "shop" || cr.Spec.Duration.Duration != time.Hour || cr.Spec.IssuerRef != s.Issuer || string(cr.Spec.Request) != "csr" || cr.Spec.IsCA {
		t.Errorf("spec %+v in namespace %s does not say what was asked", cr.Spec, cr.Namespace)
	}
	for key, value := range cr.Labels {
		if errs := utilvalidation.IsValidLabelValue(value); len(errs) != 0 {
			t.Errorf("label %s=%s: %v", key, value, errs)
		}
	}
}

func TestNamesAreLegalAndUnique(t *testing.T) {
	for _, pod := range []string{"a", "cart-0", strings.Repeat("x", 253), strings.Repeat("x", 199) + ".y" + strings.Repeat("z", 50)} {
		seen := map[string]bool{}
		for range 100 {
			s := spec()
			s.Pod.Name = pod
			got := New(s).Name
			if errs := validation.NameIsDNSSubdomain(got, false); len(errs) != 0 {
				t.Fatalf("name %q for pod %q: %v", got, pod, errs)
			}
			if seen[got] {
				t.Fatalf("name %q came twice", got)
			}
			seen[got] = true
		}
	}
}

func TestHashKeepsPartsApart(t *testing.T) {
	seen := map[string]string{}
	for _, parts := range [][]string{{"a", "bc"}, {"ab", "c"}, {"abc"}, {"a", "b", "c"}, {"1:a"}, {"a", ""}, {"", "a"}, {}} {
		h := Hash(parts...)
		if other, dup := seen[h]; dup {
			t.Errorf("%q and %s share a hash", parts, other)
		}
		seen[h] = strings.Join(parts, "|")
		if Hash(parts...) != h {
			t.Errorf("Hash(%q) is not stable", parts)
		}
	}
}

func TestParseRequester(t *testing.T) {
	for _, s := range []string{"agent", "pod"} {
		if r, err := ParseRequester(s); err != nil || string(r) != s {
			t.Errorf("ParseRequester(%q) = %q, %v", s, r, err)
		}
	}
	for _, s := range []string{"", "Agent", "both", "node"} {
		if _, err := ParseRequester(s); err == nil {
			t.Errorf("ParseRequester(%q): want an error", s)
		}
	}
}
