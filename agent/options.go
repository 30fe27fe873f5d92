// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"net"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/signet-spiffe/signet/agent/workload"
	"github.com/signet-spiffe/signet/csi"
	"github.com/signet-spiffe/signet/internal/identity"
	"github.com/signet-spiffe/signet/internal/observe"
	"github.com/signet-spiffe/signet/internal/pki"
	"github.com/signet-spiffe/signet/internal/request"
	"github.com/signet-spiffe/signet/workloadapi"
)

// options are the flags: first as given, then (after complete) as understood.
type options struct {
	log observe.LogOptions

	driverName      string
	nodeID          string
	endpoint        string
	dataRoot        string
	registrationDir string
	kubeletRoot     string

	trustDomainFlag string
	trustDomain     spiffeid.TrustDomain
	template        identity.Template
	sourceCABundle  string

	issuerName, issuerKind, issuerGroup string
	runtimeIssuer                       runtimeIssuer
	duration                            time.Duration
	durations                           durationRange
	annotations                         map[string]string
	retention                           int
	requesterFlag                       string
	requester                           request.Requester
	useOwnServiceAccount                bool
	keyTypeFlag                         string
	keyType                             pki.KeyType
	watchPods                           bool
	publishTimeout                      time.Duration
	reissueWindow                       time.Duration
	concurrency                         workload.Limits

	files fileNames
	sds   sdsFlags

	workloadAPI workloadapi.Limits

	httpAddress string
	adminSocket string
	delegates   delegateFlags

	flags      *pflag.FlagSet
	loading    *clientcmd.ClientConfigLoadingRules
	overrides  *clientcmd.ConfigOverrides
	restConfig *rest.Config
}

// fileNames are what a pod finds in its volume.
type fileNames struct {
	certificate, key, ca, socket string
}

const kubeletPlugins = "/var/lib/kubelet/plugins"

func (o *options) addFlags(flags *pflag.FlagSet) {
	o.flags = flags
	o.log.AddFlags(flags)

	flags.StringVar(&o.driverName, "csi-driver-name", request.DefaultDriverName, "Name of the CSI driver, as in the CSIDriver object and in pods' volumes")
	flags.StringVar(&o.nodeID, "node-id", "", "Name of this node in Kubernetes (required)")
	flags.StringVar(&o.endpoint, "endpoint", "", "CSI socket, unix:///path (default unix://"+kubeletPlugins+"/<csi-driver-name>/csi.sock)")
	flags.StringVar(&o.dataRoot, "data-root", kubeletPlugins, "Directory under which volumes are kept, in <data-root>/<csi-driver-name>; must be on a mount that the agent shares with the host (Bidirectional)")
	flags.StringVar(&o.registrationDir, "registration-dir", "/var/lib/kubelet/plugins_registry", "Directory in which kubelet looks for plugins")
	flags.StringVar(&o.kubeletRoot, "kubelet-root-dir", "/var/lib/kubelet", "Kubelet's root directory; at start, volumes of pods that have no folder in its pods directory any more are removed")

	flags.StringVar(&o.trustDomainFlag, "trust-domain", "cluster.local", "SPIFFE trust domain of every identity")
	flags.StringVar(&o.sourceCABundle, "source-ca-bundle", "", "PEM file with the trust domain's authorities, watched for changes; without it they are learned from CertificateRequest.status.ca")

	flags.StringVar(&o.issuerName, "issuer-name", "my-spiffe-ca", "Name of the cert-manager issuer; may be empty with --runtime-issuance-config-map-name")
	flags.StringVar(&o.issuerKind, "issuer-kind", "ClusterIssuer", "Kind of the issuer")
	flags.StringVar(&o.issuerGroup, "issuer-group", "cert-manager.io", "API group of the issuer")
	o.runtimeIssuer.addFlags(flags)
	flags.DurationVar(&o.duration, "certificate-request-duration", time.Hour, "Lifetime asked for; the approver's must be the same")
	flags.DurationVar(&o.durations.min, "certificate-request-duration-min", 0, "Shortest lifetime that a volume may choose (attribute duration); 0 is --certificate-request-duration. The approver's range must include this agent's")
	flags.DurationVar(&o.durations.max, "certificate-request-duration-max", 0, "Longest lifetime that a volume may choose; 0 is --certificate-request-duration")
	flags.StringToStringVar(&o.annotations, "extra-certificate-request-annotations", nil, "Annotations for every CertificateRequest, key=value,key=value")
	flags.IntVar(&o.retention, "certificate-request-retention", 0, "How many finished CertificateRequests of each volume to keep for audit, the newest; they go with the pod. 0: each is deleted when its certificate is stored")
	flags.StringVar(&o.requesterFlag, "requester", string(request.RequesterAgent), `Who creates CertificateRequests: "agent" (the agent's own service account) or "pod" (each pod's, by a token from kubelet)`)
	flags.BoolVar(&o.useOwnServiceAccount, "use-own-service-account", true, "csi-driver-spiffe's spelling: true is --requester=agent, false is --requester=pod")
	flags.BoolVar(&o.watchPods, "watch-pods", false, "Watch the pods of this node, so that files belong to the runAsUser that all containers of their pod share. Needs the right to read the pods of the whole cluster (deploy/watch-pods); with --requester=agent only")
	flags.StringVar(&o.keyTypeFlag, "key-type", string(pki.P256), "Key type of every SVID: P-256, P-384, Ed25519, RSA-2048, RSA-3072 or RSA-4096")
	flags.DurationVar(&o.publishTimeout, "publish-timeout", time.Minute, "How long a mount waits for its SVID before kubelet is told to come back; the request goes on")
	flags.DurationVar(&o.reissueWindow, "reissue-window", workload.DefaultReissueWindow, "Time over which SVIDs are replaced, in random order, when the issuer, key type or duration has become another one or their CA has left the trust bundle; 0 for at once")
	flags.IntVar(&o.concurrency.Issuances, "max-concurrent-issuances", workload.DefaultIssuances, "How many SVIDs are asked for at the same time on this node; mounts go before renewals, and all but one may be mounts")
	flags.IntVar(&o.concurrency.Renewals, "max-concurrent-renewals", workload.DefaultRenewals, "How many of them may be renewals")

	flags.StringVar(&o.files.certificate, "file-name-certificate", "tls.crt", "File name of the certificate chain in the volume")
	flags.StringVar(&o.files.key, "file-name-key", "tls.key", "File name of the private key in the volume")
	flags.StringVar(&o.files.ca, "file-name-ca", "ca.crt", "File name of the trust bundle in the volume")
	flags.StringVar(&o.files.socket, "file-name-socket", "spiffe.sock", "File name of the Workload API socket in the volume")

	o.sds.addFlags(flags)
	addLimitFlags(flags, &o.workloadAPI)

	flags.StringVar(&o.httpAddress, "http-bind-address", ":9809", "Address of /healthz, /readyz and /metrics")

	o.addAdminFlags(flags)
	o.delegates.addFlags(flags)
	o.loading = clientcmd.NewDefaultClientConfigLoadingRules()
	o.overrides = &clientcmd.ConfigOverrides{}
	flags.StringVar(&o.loading.ExplicitPath, "kubeconfig", "", "Kubeconfig file; without it the pod's service account is used")
	clientcmd.BindOverrideFlags(o.overrides, flags, clientcmd.RecommendedConfigOverrideFlags(""))
}

// complete validates every flag. Errors are *observe.UsageError.
func (o *options) complete() error {
	for _, check := range []func() error{
		o.checkDriver, o.checkTrustDomain, o.checkIssuance, o.checkRequester, o.checkFileNames, o.sds.check, o.checkWorkloadAPI, o.checkHTTP, o.checkAdmin, o.loadKubeconfig,
	} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// driverNamePattern is the CSI spec's rule for GetPluginInfoResponse.name.
var driverNamePattern = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9.]{0,61}[A-Za-z0-9])?$`)

func (o *options) checkDriver() error {
	if !driverNamePattern.MatchString(o.driverName) {
		return observe.Usagef("--csi-driver-name %q: must be 1 to 63 letters, digits, dots and hyphens, beginning and ending with a letter or digit", o.driverName)
	}
	if errs := validation.IsDNS1123Subdomain(o.nodeID); len(errs) != 0 {
		return observe.Usagef("--node-id %q: must be the name of this node: %s", o.nodeID, strings.Join(errs, "; "))
	}
	if o.endpoint == "" {
		o.endpoint = "unix://" + path.Join(kubeletPlugins, o.driverName, "csi.sock")
	}
	if _, err := csi.ParseEndpoint(o.endpoint); err != nil {
		return observe.Usagef("--endpoint %q: %v", o.endpoint, err)
	}
	var err error
	if o.dataRoot, err = absolute("--data-root", o.dataRoot); err != nil {
		return err
	}
	if o.registrationDir, err = absolute("--registration-dir", o.registrationDir); err != nil {
		return err
	}
	o.kubeletRoot, err = absolute("--kubelet-root-dir", o.kubeletRoot)
	return err
}

// absolute takes relative paths too: csi-driver-spiffe's chart passes one.
func absolute(flag, value string) (string, error) {
	if value == "" {
		return "", observe.Usagef("%s: must not be empty", flag)
	}
	p, err := filepath.Abs(value)
	if err != nil {
		return "", observe.Usagef("%s %q: %v", flag, value, err)
	}
	return p, nil
}

func (o *options) checkTrustDomain() error {
	td, err := identity.ParseTrustDomain(o.trustDomainFlag)
	if err != nil {
		return observe.Usagef("--trust-domain %q: %v", o.trustDomainFlag, err)
	}
	if td.Name() != o.trustDomainFlag {
		return observe.Usagef("--trust-domain %q: give the name alone, %q", o.trustDomainFlag, td.Name())
	}
	o.trustDomain = td
	o.template, err = identity.ParseTemplate(identity.DefaultTemplate)
	return err
}

// minDuration leaves a renewal at two thirds of the lifetime some ten seconds to
// succeed.
const minDuration = 30 * time.Second

// maxConcurrency is more than a node can have pods.
const maxConcurrency = 10_000

// maxRetention keeps a busy cluster's requests out of etcd by the million.
const maxRetention = 100

func (o *options) checkIssuance() error {
	if err := o.checkIssuer(); err != nil {
		return err
	}
	if o.duration < minDuration {
		return observe.Usagef("--certificate-request-duration %s: must be at least %s", o.duration, minDuration)
	}
	if err := o.checkDurations(); err != nil {
		return err
	}
	if o.publishTimeout < time.Second || o.publishTimeout > 110*time.Second {
		return observe.Usagef("--publish-timeout %s: must be from 1s to 1m50s (kubelet itself gives up after 2m)", o.publishTimeout)
	}
	if o.concurrency.Issuances < 1 || o.concurrency.Issuances > maxConcurrency {
		return observe.Usagef("--max-concurrent-issuances %d: must be from 1 to %d", o.concurrency.Issuances, maxConcurrency)
	}
	if o.concurrency.Renewals < 1 || o.concurrency.Renewals > maxConcurrency {
		return observe.Usagef("--max-concurrent-renewals %d: must be from 1 to %d", o.concurrency.Renewals, maxConcurrency)
	}
	if o.retention < 0 || o.retention > maxRetention {
		return observe.Usagef("--certificate-request-retention %d: must be from 0 to %d", o.retention, maxRetention)
	}
	if o.reissueWindow < 0 || o.reissueWindow > 24*time.Hour {
		return observe.Usagef("--reissue-window %s: must be from 0s to 24h", o.reissueWindow)
	}
	for key := range o.annotations {
		if errs := validation.IsQualifiedName(strings.ToLower(key)); len(errs) != 0 {
			return observe.Usagef("--extra-certificate-request-annotations: key %q: %s", key, strings.Join(errs, "; "))
		}
		if strings.HasPrefix(key, request.Prefix) {
			return observe.Usagef("--extra-certificate-request-annotations: key %q: keys under %s are the agent's own", key, request.Prefix)
		}
	}
	var err error
	if o.keyType, err = pki.ParseKeyType(o.keyTypeFlag); err != nil {
		return observe.Usagef("--key-type: %v", err)
	}
	return nil
}

// checkDurations completes the range of lifetimes: it holds the default.
func (o *options) checkDurations() error {
	r := &o.durations
	r.min, r.max = cmp.Or(r.min, o.duration), cmp.Or(r.max, o.duration)
	switch {
	case r.min < minDuration || r.min > o.duration:
		return observe.Usagef("--certificate-request-duration-min %s: must be from %s to --certificate-request-duration (%s)", r.min, minDuration, o.duration)
	case r.max < o.duration:
		return observe.Usagef("--certificate-request-duration-max %s: must be at least --certificate-request-duration (%s)", r.max, o.duration)
	}
	return nil
}

func (o *options) attributeLimits() attributeLimits {
	return attributeLimits{driver: o.driverName, names: o.files, duration: o.duration, durations: o.durations}
}

func (o *options) checkRequester() error {
	if o.flags.Changed("use-own-service-account") {
		spelled := request.RequesterPod
		if o.useOwnServiceAccount {
			spelled = request.RequesterAgent
		}
		if o.flags.Changed("requester") && o.requesterFlag != string(spelled) {
			return observe.Usagef("--requester=%s and --use-own-service-account=%t contradict each other; give one", o.requesterFlag, o.useOwnServiceAccount)
		}
		o.requesterFlag = string(spelled)
	}
	var err error
	if o.requester, err = request.ParseRequester(o.requesterFlag); err != nil {
		return observe.Usagef("--requester: %v", err)
	}
	if o.watchPods && o.requester != request.RequesterAgent {
		return observe.Usagef("--watch-pods needs --requester=%s: with %s the agent has no business with pods", request.RequesterAgent, o.requester)
	}
	return nil
}

func (o *options) checkFileNames() error {
	var seen []string
	for _, f := range []struct{ flag, name string }{
		{"--file-name-certificate", o.files.certificate}, {"--file-name-key", o.files.key},
		{"--file-name-ca", o.files.ca}, {"--file-name-socket", o.files.socket},
	} {
		if !csi.IsFileName(f.name) {
			return observe.Usagef("%s %q: must be a plain file name of 1 to 64 letters, digits, '.', '_' and '-', not beginning with '.' or '-'", f.flag, f.name)
		}
		if slices.Contains(seen, f.name) {
			return observe.Usagef("%s %q: is the name of another file too", f.flag, f.name)
		}
		seen = append(seen, f.name)
	}
	return nil
}

func (o *options) checkHTTP() error {
	if _, _, err := net.SplitHostPort(o.httpAddress); err != nil {
		return observe.Usagef("--http-bind-address %q: %v", o.httpAddress, err)
	}
	return nil
}

// loadKubeconfig reads configuration and reaches for no server.
func (o *options) loadKubeconfig() error {
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(o.loading, o.overrides).ClientConfig()
	if err != nil {
		return observe.Usagef("no usable Kubernetes client configuration: %v", err)
	}
	config.UserAgent = "signet-agent/" + version
	config.QPS = -1 // API Priority and Fairness protects the server.
	o.restConfig = config
	return nil
}
