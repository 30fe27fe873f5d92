// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"strconv"
	"strings"
	"time"

	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/signet-spiffe/signet/approver/controller"
	"github.com/signet-spiffe/signet/approver/evaluate"
	"github.com/signet-spiffe/signet/internal/identity"
	"github.com/signet-spiffe/signet/internal/observe"
	"github.com/signet-spiffe/signet/internal/pki"
	"github.com/signet-spiffe/signet/internal/request"
)

// The names of flags that messages speak of.
const (
	flagRequester            = "requester"
	flagUseOwnServiceAccount = "use-own-service-account"
	flagDriverServiceAccount = "driver-service-account"
)

// requesterBoth allows the agent and pods.
const requesterBoth = "both"

// defaultConcurrency is as much as cert-manager's webhook takes well. For each
// decision it asks the API server whether the approver may decide for that signer;
// it keeps an answer for a second, lets every waiting decision ask again when that
// is over, and has a client-side limit of five questions a second. More workers
// only queue there: 500 requests at once took 9.8 s with 10 workers and a role
// that names one signer (two questions each), and 4.6 s with 5.
const defaultConcurrency = 5

// options are the flags as they are written. Those of csi-driver-spiffe's
// approver keep its names and defaults.
type options struct {
	log observe.LogOptions

	driver, trustDomain                   string
	issuerName, issuerKind, issuerGroup   string
	runtimeConfigMap, runtimeNamespace    string
	duration, minDuration, maxDuration    time.Duration
	keyTypes, dnsSuffixes                 []string
	requester, agentUsername              string
	useOwnServiceAccount                  bool
	autoApproveNonSPIFFE                  bool
	concurrentReconciles                  int
	leaseNamespace                        string
	readinessProbeAddress, metricsAddress string

	rules     *clientcmd.ClientConfigLoadingRules
	overrides clientcmd.ConfigOverrides
}

func newOptions() *options {
	return &options{rules: clientcmd.NewDefaultClientConfigLoadingRules()}
}

func (o *options) addFlags(flags *pflag.FlagSet) {
	o.log.AddFlags(flags)
	o.addPolicyFlags(flags)
	o.addServerFlags(flags)
	flags.StringVar(&o.rules.ExplicitPath, clientcmd.RecommendedConfigPathFlag, "", "Kubeconfig file; by default $KUBECONFIG, ~/.kube/config or the pod's service account")
	clientcmd.BindOverrideFlags(&o.overrides, flags, clientcmd.RecommendedConfigOverrideFlags(""))
}

func (o *options) addPolicyFlags(flags *pflag.FlagSet) {
	flags.StringVar(&o.driver, "csi-driver-name", request.DefaultDriverName, "CSI driver whose requests are decided; the leader election Lease has this name")
	flags.StringVar(&o.trustDomain, "trust-domain", "cluster.local", "SPIFFE trust domain of every identity")
	flags.DurationVar(&o.duration, "certificate-request-duration", time.Hour, "Certificate duration that requests must ask for, exactly, unless the next two flags allow a range around it")
	flags.DurationVar(&o.minDuration, "certificate-request-duration-min", 0, "Shortest certificate duration that requests may ask for; 0 is --certificate-request-duration")
	flags.DurationVar(&o.maxDuration, "certificate-request-duration-max", 0, "Longest certificate duration that requests may ask for; 0 is --certificate-request-duration")
	flags.StringVar(&o.issuerName, "issuer-name", "my-spiffe-ca", "Name of the issuer that signs SPIFFE identities; may be empty with --runtime-issuance-config-map-name")
	flags.StringVar(&o.issuerKind, "issuer-kind", "ClusterIssuer", "Kind of the issuer")
	flags.StringVar(&o.issuerGroup, "issuer-group", "cert-manager.io", "API group of the issuer")
	flags.StringVar(&o.runtimeConfigMap, "runtime-issuance-config-map-name", "", "ConfigMap that may name one more issuer (keys issuer-name, issuer-kind, issuer-group), read while running")
	flags.StringVar(&o.runtimeNamespace, "runtime-issuance-config-map-namespace", "", "Namespace of that ConfigMap")
	flags.StringSliceVar(&o.keyTypes, "allowed-key-types", keyTypeNames(), "Key types that requests may have")
	flags.StringSliceVar(&o.dnsSuffixes, "allowed-dns-suffixes", nil, `Which DNS names pods may have beside their SPIFFE ID (volume attribute dns-names): those that are, or end in a dot and, one of these suffixes. Each must have {{namespace}} as a whole label, and end in a fixed one; with {{serviceaccount}} as one too it is for that account alone, and for none with a dot in its name. Example: "{{namespace}}.svc.cluster.local". By default no DNS name is allowed`)
	flags.StringVar(&o.requester, flagRequester, string(request.RequesterAgent), `Who may ask: "agent" (for the pods of its node), "pod" (a service account for itself) or "both"`)
	flags.StringVar(&o.agentUsername, flagDriverServiceAccount, "", `User name of the agent, "system:serviceaccount:NAMESPACE:NAME"; needed when the agent may ask`)
	flags.BoolVar(&o.useOwnServiceAccount, flagUseOwnServiceAccount, true, "csi-driver-spiffe's spelling: true is --requester=agent, false is --requester=pod")
	flags.BoolVar(&o.autoApproveNonSPIFFE, "auto-approve-non-spiffe", false, "Also approve requests without SPIFFE identity (for installations without another approver); those that carry a SPIFFE URI or name the SPIFFE issuer are denied")
}

func (o *options) addServerFlags(flags *pflag.FlagSet) {
	flags.IntVar(&o.concurrentReconciles, "concurrent-reconciles", defaultConcurrency, "Decisions that are written at the same time")
	flags.StringVar(&o.leaseNamespace, "leader-election-namespace", "cert-manager", "Namespace of the leader election Lease")
	flags.StringVar(&o.readinessProbeAddress, "readiness-probe-bind-address", ":6060", `Address of /readyz and /healthz; "0" for none`)
	flags.StringVar(&o.metricsAddress, "metrics-bind-address", ":9402", `Address of /metrics; "0" for none`)
}

func keyTypeNames() []string {
	var names []string
	for _, t := range pki.KeyTypes() {
		names = append(names, string(t))
	}
	return names
}

// config is what the flags mean, checked.
type config struct {
	log        observe.LogOptions
	controller controller.Options // but for Log and Registerer
	kubernetes clientcmd.ClientConfig
}

// config checks every flag; its errors are *observe.UsageError and name the flag.
func (o *options) config(flags *pflag.FlagSet) (*config, error) {
	policy, err := o.policy(flags)
	if err != nil {
		return nil, err
	}
	runtimeIssuer, err := o.runtimeIssuer()
	if err != nil {
		return nil, err
	}
	if policy.Issuers, err = o.issuers(runtimeIssuer); err != nil {
		return nil, err
	}
	if err := o.checkServerFlags(); err != nil {
		return nil, err
	}
	return &config{
		log: o.log,
		controller: controller.Options{
			Policy:                  policy,
			RuntimeIssuer:           runtimeIssuer,
			ConcurrentReconciles:    o.concurrentReconciles,
			LeaderElectionNamespace: o.leaseNamespace,
			ProbeAddress:            o.readinessProbeAddress,
			MetricsAddress:          o.metricsAddress,
		},
		kubernetes: clientcmd.NewNonInteractiveDeferredLoadingClientConfig(o.rules, &o.overrides),
	}, nil
}

func (o *options) policy(flags *pflag.FlagSet) (evaluate.Policy, error) {
	p := evaluate.Policy{Driver: o.driver, Duration: o.duration, MinDuration: o.minDuration, MaxDuration: o.maxDuration, ApproveNonSPIFFE: o.autoApproveNonSPIFFE}
	// The CSI specification allows 63 characters; the Lease needs a DNS name.
	if msgs := validation.IsDNS1123Subdomain(o.driver); len(msgs) > 0 || len(o.driver) > 63 {
		return p, observe.Usagef("--csi-driver-name %q is not a DNS name of at most 63 characters", o.driver)
	}
	td, err := identity.ParseTrustDomain(o.trustDomain)
	if err != nil || td.Name() != o.trustDomain {
		return p, observe.Usagef("--trust-domain %q is not a trust domain name (at most 255 lower-case letters, digits, dots, dashes and underscores; no spiffe://)", o.trustDomain)
	}
	p.TrustDomain = td
	if o.duration <= 0 {
		return p, observe.Usagef("--certificate-request-duration %s is not positive", o.duration)
	}
	if o.minDuration < 0 || o.minDuration > o.duration {
		return p, observe.Usagef("--certificate-request-duration-min %s must be positive and at most --certificate-request-duration (%s)", o.minDuration, o.duration)
	}
	if o.maxDuration != 0 && o.maxDuration < o.duration {
		return p, observe.Usagef("--certificate-request-duration-max %s must be at least --certificate-request-duration (%s)", o.maxDuration, o.duration)
	}
	if p.KeyTypes, err = parseKeyTypes(o.keyTypes); err != nil {
		return p, err
	}
	if p.DNSSuffixes, err = evaluate.ParseDNSSuffixes(o.dnsSuffixes...); err != nil {
		return p, observe.Usagef("--allowed-dns-suffixes: %v", err)
	}
	if p.Template, err = identity.ParseTemplate(identity.DefaultTemplate); err != nil {
		return p, err
	}
	p.AgentUsername, p.AllowPod, err = o.requesters(flags)
	return p, err
}

func parseKeyTypes(names []string) ([]pki.KeyType, error) {
	var types []pki.KeyType
	for _, name := range names {
		t, err := pki.ParseKeyType(name)
		if err != nil {
			return nil, observe.Usagef("--allowed-key-types: %v", err)
		}
		types = append(types, t)
	}
	if len(types) == 0 {
		return nil, observe.Usagef("--allowed-key-types is empty: no request could be approved")
	}
	return types, nil
}

// requesters joins the two spellings of who may ask. The one that is given wins
// over the other's default; given both, they must agree.
func (o *options) requesters(flags *pflag.FlagSet) (agentUsername string, allowPod bool, err error) {
	requester := o.requester
	if flags.Changed(flagUseOwnServiceAccount) {
		meant := string(request.RequesterPod)
		if o.useOwnServiceAccount {
			meant = string(request.RequesterAgent)
		}
		if flags.Changed(flagRequester) && requester != meant {
			return "", false, observe.Usagef("--%s=%s and --%s=%t contradict each other: give only the first", flagRequester, requester, flagUseOwnServiceAccount, o.useOwnServiceAccount)
		}
		requester = meant
	}
	if requester != requesterBoth {
		if _, err := request.ParseRequester(requester); err != nil {
			return "", false, observe.Usagef("--%s %q is unknown (want %q, %q or %q)", flagRequester, requester, request.RequesterAgent, request.RequesterPod, requesterBoth)
		}
	}
	if requester == string(request.RequesterPod) {
		return "", true, nil
	}
	if o.agentUsername == "" {
		return "", false, observe.Usagef("--%s is missing: with --%s=%s it names the agent (system:serviceaccount:NAMESPACE:NAME)", flagDriverServiceAccount, flagRequester, requester)
	}
	if _, _, err := identity.ParseServiceAccountUsername(o.agentUsername); err != nil {
		return "", false, observe.Usagef("--%s: %v", flagDriverServiceAccount, err)
	}
	return o.agentUsername, requester == requesterBoth, nil
}

func (o *options) runtimeIssuer() (types.NamespacedName, error) {
	if o.runtimeConfigMap == "" && o.runtimeNamespace == "" {
		return types.NamespacedName{}, nil
	}
	if msgs := validation.IsDNS1123Subdomain(o.runtimeConfigMap); len(msgs) > 0 {
		return types.NamespacedName{}, observe.Usagef("--runtime-issuance-config-map-name %q is not a ConfigMap name: %s", o.runtimeConfigMap, strings.Join(msgs, "; "))
	}
	if msgs := validation.IsDNS1123Label(o.runtimeNamespace); len(msgs) > 0 {
		return types.NamespacedName{}, observe.Usagef("--runtime-issuance-config-map-namespace %q is not a namespace: %s", o.runtimeNamespace, strings.Join(msgs, "; "))
	}
	return types.NamespacedName{Namespace: o.runtimeNamespace, Name: o.runtimeConfigMap}, nil
}

func (o *options) issuers(runtimeIssuer types.NamespacedName) ([]cmmeta.IssuerReference, error) {
	if o.issuerName == "" {
		if runtimeIssuer.Name == "" {
			return nil, observe.Usagef("--issuer-name is empty: name the issuer, or a ConfigMap with --runtime-issuance-config-map-name")
		}
		return nil, nil
	}
	if o.issuerKind == "" || o.issuerGroup == "" {
		return nil, observe.Usagef("--issuer-kind and --issuer-group must not be empty (they are %q and %q)", o.issuerKind, o.issuerGroup)
	}
	return []cmmeta.IssuerReference{{Name: o.issuerName, Kind: o.issuerKind, Group: o.issuerGroup}}, nil
}

func (o *options) checkServerFlags() error {
	if o.concurrentReconciles < 1 || o.concurrentReconciles > 1000 {
		return observe.Usagef("--concurrent-reconciles %d is not between 1 and 1000", o.concurrentReconciles)
	}
	if msgs := validation.IsDNS1123Label(o.leaseNamespace); len(msgs) > 0 {
		return observe.Usagef("--leader-election-namespace %q is not a namespace: %s", o.leaseNamespace, strings.Join(msgs, "; "))
	}
	for _, f := range []struct{ name, address string }{
		{"readiness-probe-bind-address", o.readinessProbeAddress},
		{"metrics-bind-address", o.metricsAddress},
	} {
		if !validAddress(f.address) {
			return observe.Usagef(`--%s %q is not an address such as ":6060" or "127.0.0.1:6060", nor "0" for none`, f.name, f.address)
		}
	}
	return nil
}

func validAddress(address string) bool {
	if address == "0" {
		return true
	}
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	_, err = strconv.ParseUint(port, 10, 16)
	return err == nil
}
