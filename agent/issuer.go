// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"log/slog"
	"strings"

	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	coreclient "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/signet-spiffe/signet/agent/issuerconfig"
	"github.com/signet-spiffe/signet/internal/observe"
)

// runtimeIssuer are the flags that name the ConfigMap with the issuer; both empty
// for none.
type runtimeIssuer struct{ name, namespace string }

func (r *runtimeIssuer) addFlags(flags *pflag.FlagSet) {
	flags.StringVar(&r.name, "runtime-issuance-config-map-name", "", "ConfigMap that names the issuer (keys issuer-name, issuer-kind, issuer-group) in place of the flags, followed while running; without one of that name the flags count")
	flags.StringVar(&r.namespace, "runtime-issuance-config-map-namespace", "", "Namespace of that ConfigMap")
}

func (r *runtimeIssuer) check() error {
	if *r == (runtimeIssuer{}) {
		return nil
	}
	if msgs := validation.IsDNS1123Label(r.namespace); len(msgs) > 0 {
		return observe.Usagef("--runtime-issuance-config-map-namespace %q is not a namespace: %s", r.namespace, strings.Join(msgs, "; "))
	}
	if msgs := validation.IsDNS1123Subdomain(r.name); len(msgs) > 0 {
		return observe.Usagef("--runtime-issuance-config-map-name %q is not a ConfigMap name: %s", r.name, strings.Join(msgs, "; "))
	}
	return nil
}

// checkIssuer holds the flags that say who signs against each other.
func (o *options) checkIssuer() error {
	if err := o.runtimeIssuer.check(); err != nil {
		return err
	}
	switch {
	case o.issuerName == "" && o.runtimeIssuer.name == "":
		return observe.Usagef("--issuer-name is empty: name the issuer, or a ConfigMap with --runtime-issuance-config-map-name")
	case o.issuerName == "":
		return nil
	case o.issuerKind == "":
		return observe.Usagef("--issuer-kind: must not be empty")
	case o.issuerGroup == "":
		return observe.Usagef("--issuer-group: must not be empty")
	}
	return nil
}

// staticIssuer is the issuer of the flags; the zero reference if they name none.
func (o *options) staticIssuer() cmmeta.IssuerReference {
	if o.issuerName == "" {
		return cmmeta.IssuerReference{}
	}
	return cmmeta.IssuerReference{Name: o.issuerName, Kind: o.issuerKind, Group: o.issuerGroup}
}

// openIssuerConfig knows the issuer of the flags, or follows the ConfigMap. It
// reaches for no server yet.
func openIssuerConfig(o *options, metrics prometheus.Registerer, log *slog.Logger) (*issuerconfig.Source, error) {
	if o.runtimeIssuer.name == "" {
		return issuerconfig.Fixed(o.staticIssuer()), nil
	}
	client, err := coreclient.NewForConfig(o.restConfig)
	if err != nil {
		return nil, fmt.Errorf("make client for ConfigMap %s/%s: %w", o.runtimeIssuer.namespace, o.runtimeIssuer.name, err)
	}
	return issuerconfig.New(issuerconfig.Options{
		Client: client, ConfigMap: types.NamespacedName{Namespace: o.runtimeIssuer.namespace, Name: o.runtimeIssuer.name},
		Default: o.staticIssuer(), Reporter: o.nodeID, Log: log, Registerer: metrics,
	})
}
