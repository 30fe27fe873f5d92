// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"fmt"
	"strconv"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

// Keys of the node metadata by which a proxy chooses for itself. The first is SPIRE's; the others are spelled as the options
// of SPIRE's agent.
const (
	metadataDisableValidator = "disable_spiffe_cert_validation"
	metadataSVIDName         = "default_svid_name"
	metadataBundleName       = "default_bundle_name"
	metadataAllBundlesName   = "default_all_bundles_name"
)

// proxySettings are the names and the form in which one proxy gets its secrets.
type proxySettings struct {
	svid, bundle, all string
	plain             bool // trusted_ca instead of the SPIFFE validator
}

// String names what a proxy can ask for besides SPIFFE IDs.
func (p proxySettings) String() string {
	if p.plain {
		return fmt.Sprintf("%q, %q", p.svid, p.bundle)
	}
	return fmt.Sprintf("%q, %q, %q", p.svid, p.bundle, p.all)
}

// chosenBy returns p with what the proxy's node says instead. Values that make no sense are passed over: a typing error in
// one of them is no reason to give no secrets at all.
func (p proxySettings) chosenBy(n *corev3.Node) proxySettings {
	if predatesValidator(n) {
		p.plain = true
	}
	fields := n.GetMetadata().GetFields()
	if v, ok := boolOf(fields[metadataDisableValidator]); ok {
		p.plain = v
	}
	for key, name := range map[string]*string{metadataSVIDName: &p.svid, metadataBundleName: &p.bundle, metadataAllBundlesName: &p.all} {
		if v := fields[key].GetStringValue(); v != "" && v != wildcardName && len(v) <= maxSecretName {
			*name = v
		}
	}
	return p
}

// predatesValidator reports whether the node says that it is an Envoy without the SPIFFE certificate validator, which came
// with 1.18. It would reject the whole response.
func predatesValidator(n *corev3.Node) bool {
	v := n.GetUserAgentBuildVersion().GetVersion()
	if v == nil || v.GetMajorNumber() == 0 && v.GetMinorNumber() == 0 {
		return false
	}
	return v.GetMajorNumber() < 1 || v.GetMajorNumber() == 1 && v.GetMinorNumber() < 18
}

// boolOf accepts strings too: that is what --set and most templates make of a boolean.
func boolOf(v *structpb.Value) (value, ok bool) {
	switch kind := v.GetKind().(type) {
	case *structpb.Value_BoolValue:
		return kind.BoolValue, true
	case *structpb.Value_StringValue:
		b, err := strconv.ParseBool(kind.StringValue)
		return b, err == nil
	}
	return false, false
}
