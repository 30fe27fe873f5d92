// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/spf13/pflag"

	"github.com/signet-spiffe/signet/internal/observe"
	"github.com/signet-spiffe/signet/workloadapi"
)

// sdsFlags configure Envoy's secret discovery service. They mean what the options
// of SPIRE's agent (sds{}) mean.
type sdsFlags struct{ workloadapi.SDSOptions }

func (s *sdsFlags) addFlags(flags *pflag.FlagSet) {
	flags.BoolVar(&s.Disabled, "disable-sds", false, "Do not serve Envoy's secret discovery service (SDS v3) on workload sockets")
	flags.StringVar(&s.SVIDName, "sds-default-svid-name", workloadapi.DefaultSDSSVIDName, "SDS resource name of the pod's SVID (tls_certificate)")
	flags.StringVar(&s.BundleName, "sds-default-bundle-name", workloadapi.DefaultSDSBundleName, "SDS resource name of the own trust domain's bundle (validation_context)")
	flags.StringVar(&s.AllBundlesName, "sds-default-all-bundles-name", workloadapi.DefaultSDSAllBundlesName, "SDS resource name of the bundles of all trust domains (validation_context with Envoy's SPIFFE certificate validator)")
	flags.BoolVar(&s.DisableSPIFFEValidator, "sds-disable-spiffe-cert-validation", false, "Give proxies plain CA certificates (trusted_ca) instead of a configuration for Envoy's SPIFFE certificate validator; a proxy can choose by node metadata disable_spiffe_cert_validation")
}

func (s *sdsFlags) check() error {
	for _, f := range []struct{ flag, name string }{
		{"--sds-default-svid-name", s.SVIDName}, {"--sds-default-bundle-name", s.BundleName}, {"--sds-default-all-bundles-name", s.AllBundlesName},
	} {
		if f.name == "" {
			return observe.Usagef(`%s: must not be empty; to do without the secret, give it a name that nobody asks for, such as "null"`, f.flag)
		}
	}
	if err := s.Validate(); err != nil {
		return observe.Usagef("--sds-default-svid-name, --sds-default-bundle-name, --sds-default-all-bundles-name: %v", err)
	}
	return nil
}
