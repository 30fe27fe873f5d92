// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/signet-spiffe/signet/internal/observe"
	"github.com/signet-spiffe/signet/workloadapi"
)

func TestSDSFlags(t *testing.T) {
	base := []string{"--node-id=node-1", "--kubeconfig=" + writeKubeconfig(t)}
	for _, tt := range []struct {
		args []string
		want workloadapi.SDSOptions
	}{
		{nil, workloadapi.SDSOptions{SVIDName: "default", BundleName: "ROOTCA", AllBundlesName: "ALL"}},
		{[]string{"--sds-default-svid-name=me", "--sds-default-bundle-name=null", "--sds-default-all-bundles-name=ROOTCA", "--sds-disable-spiffe-cert-validation", "--disable-sds"},
			workloadapi.SDSOptions{SVIDName: "me", BundleName: "null", AllBundlesName: "ROOTCA", DisableSPIFFEValidator: true, Disabled: true}},
	} {
		o, err := parse(t, append(base, tt.args...)...)
		if err != nil || o.sds.SDSOptions != tt.want {
			t.Errorf("%q: %+v, %v", tt.args, o, err)
		}
	}
	for _, arg := range []string{"--sds-default-svid-name=ROOTCA", "--sds-default-svid-name=", "--sds-default-bundle-name=", "--sds-default-all-bundles-name=*", "--sds-default-all-bundles-name="} {
		_, err := parse(t, append(base, arg)...)
		var usage *observe.UsageError
		flag, _, _ := strings.Cut(arg, "=")
		if !errors.As(err, &usage) || !strings.Contains(err.Error(), flag) {
			t.Errorf("%s: %v, want a usage error that names the flag", arg, err)
		}
	}
}
