// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package request

import (
	"maps"
	"strings"
	"testing"

	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
)

func TestParseRuntimeIssuer(t *testing.T) {
	good := map[string]string{"issuer-name": "spiffe-ca", "issuer-kind": "ClusterIssuer", "issuer-group": "cert-manager.io"}
	with := func(key, value string) map[string]string {
		data := maps.Clone(good)
		data[key] = value
		return data
	}
	want := cmmeta.IssuerReference{Name: "spiffe-ca", Kind: "ClusterIssuer", Group: "cert-manager.io"}
	for _, data := range []map[string]string{good, with("note", "anything")} {
		if got, err := ParseRuntimeIssuer(data); err != nil || got != want {
			t.Errorf("%v: %v, %v", data, got, err)
		}
	}
	for key, data := range map[string]map[string]string{
		"issuer-name":   nil,
		"issuer-name ":  with("issuer-name", ""),
		"issuer-name  ": with("issuer-name", "spiffe-ca\n"), // kubectl create --from-file keeps the line break
		"issuer-kind":   with("issuer-kind", ""),
		"issuer-kind ":  with("issuer-kind", "Cluster Issuer"),
		"issuer-group":  with("issuer-group", ""),
		"issuer-group ": with("issuer-group", "cert-manager.io/v1"+strings.Repeat("x", 1000)),
	} {
		_, err := ParseRuntimeIssuer(data)
		if err == nil || !strings.Contains(err.Error(), strings.TrimSpace(key)) || strings.ContainsAny(err.Error(), "\n") || len(err.Error()) > 400 {
			t.Errorf("%v: error %q, want one line that names %s", data, err, key)
		}
	}
}

func FuzzParseRuntimeIssuer(f *testing.F) {
	f.Add("spiffe-ca", "ClusterIssuer", "cert-manager.io")
	f.Add("a\nb", "", "\xff")
	f.Fuzz(func(t *testing.T, name, kind, group string) {
		ref, err := ParseRuntimeIssuer(map[string]string{KeyIssuerName: name, KeyIssuerKind: kind, KeyIssuerGroup: group})
		if err == nil && (ref.Name != name || ref.Kind != kind || ref.Group != group) {
			t.Error("the issuer is not the one that was written")
		}
		if err != nil && strings.ContainsAny(err.Error(), "\n\r\x00") {
			t.Errorf("error %q is not one line", err)
		}
	})
}
