// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"

	"github.com/signet-spiffe/signet/internal/pki"
)

const agentFlag = "--driver-service-account=system:serviceaccount:signet-system:signet-agent"

// parse runs the command line up to the point where work would begin.
func parse(t *testing.T, args ...string) (*config, int, string) {
	t.Helper()
	var got *config
	var stderr bytes.Buffer
	code := execute(t.Context(), args, io.Discard, &stderr, func(_ context.Context, c *config, _ io.Writer) error {
		got = c
		return nil
	})
	return got, code, stderr.String()
}

func TestDefaults(t *testing.T) {
	c, code, stderr := parse(t, agentFlag)
	if code != exitOK || c == nil || stderr != "" {
		t.Fatalf("exit %d, %q", code, stderr)
	}
	p := c.controller.Policy
	if err := p.Validate(); err != nil {
		t.Error(err)
	}
	if p.Driver != "spiffe.csi.cert-manager.io" || p.TrustDomain.Name() != "cluster.local" || p.Duration != time.Hour ||
		!slices.Equal(p.KeyTypes, pki.KeyTypes()) || p.AgentUsername != "system:serviceaccount:signet-system:signet-agent" ||
		p.AllowPod || p.ApproveNonSPIFFE || !p.DNSSuffixes.IsZero() || p.Template.String() != "/ns/{{namespace}}/sa/{{serviceaccount}}" {
		t.Errorf("policy %+v", p)
	}
	if want := []cmmeta.IssuerReference{{Name: "my-spiffe-ca", Kind: "ClusterIssuer", Group: "cert-manager.io"}}; !cmp.Equal(p.Issuers, want) {
		t.Errorf("issuers %v, want %v", p.Issuers, want)
	}
	if o := c.controller; o.ConcurrentReconciles != defaultConcurrency || o.LeaderElectionNamespace != "cert-manager" || o.ProbeAddress != ":6060" ||
		o.MetricsAddress != ":9402" || o.RuntimeIssuer.Name != "" {
		t.Errorf("options %+v", o)
	}
	if c.log.Level != "1" || c.log.Format != "text" {
		t.Errorf("log %+v", c.log)
	}
}

func TestEveryFlagIsUsed(t *testing.T) {
	kubeconfig := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(kubeconfig, []byte(`{"apiVersion":"v1","kind":"Config","clusters":[{"name":"c","cluster":{"server":"https://a.example"}}],"contexts":[{"name":"x","context":{"cluster":"c"}}],"current-context":"x"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	c, code, stderr := parse(t, agentFlag, "--csi-driver-name=signet.example.org", "--trust-domain=example.org", "--certificate-request-duration=5m",
		"--certificate-request-duration-min=1m", "--certificate-request-duration-max=10m",
		"--issuer-name=n", "--issuer-kind=AWSPCAClusterIssuer", "--issuer-group=awspca.cert-manager.io",
		"--runtime-issuance-config-map-name=cm", "--runtime-issuance-config-map-namespace=ns", "--allowed-key-types=P-384,RSA-4096",
		"--allowed-dns-suffixes={{namespace}}.svc,{{namespace}}.svc.cluster.local", "--allowed-dns-suffixes={{serviceaccount}}.{{namespace}}.example.org",
		"--requester=both", "--auto-approve-non-spiffe", "--concurrent-reconciles=3", "--leader-election-namespace=le",
		"--readiness-probe-bind-address=127.0.0.1:1", "--metrics-bind-address=0", "-v", "4", "--log-format=json",
		"--kubeconfig="+kubeconfig, "--server=https://b.example", "--token=t")
	if code != exitOK {
		t.Fatalf("exit %d, %q", code, stderr)
	}
	p, o := c.controller.Policy, c.controller
	if p.Driver != "signet.example.org" || p.TrustDomain.Name() != "example.org" || p.Duration != 5*time.Minute ||
		p.MinDuration != time.Minute || p.MaxDuration != 10*time.Minute ||
		!slices.Equal(p.KeyTypes, []pki.KeyType{pki.P384, pki.RSA4096}) || !p.AllowPod || p.AgentUsername == "" || !p.ApproveNonSPIFFE ||
		p.DNSSuffixes.String() != "{{namespace}}.svc,{{namespace}}.svc.cluster.local,{{serviceaccount}}.{{namespace}}.example.org" {
		t.Errorf("policy %+v", p)
	}
	if want := []cmmeta.IssuerReference{{Name: "n", Kind: "AWSPCAClusterIssuer", Group: "awspca.cert-manager.io"}}; !cmp.Equal(p.Issuers, want) {
		t.Errorf("issuers %v", p.Issuers)
	}
	if o.ConcurrentReconciles != 3 || o.LeaderElectionNamespace != "le" || o.ProbeAddress != "127.0.0.1:1" || o.MetricsAddress != "0" ||
		o.RuntimeIssuer != (types.NamespacedName{Namespace: "ns", Name: "cm"}) {
		t.Errorf("options %+v", o)
	}
	if c.log.Level != "4" || c.log.Format != "json" {
		t.Errorf("log %+v", c.log)
	}
	rest, err := c.kubernetes.ClientConfig()
	if err != nil || rest.Host != "https://b.example" || rest.BearerToken != "t" {
		t.Errorf("API server %+v, %v", rest, err)
	}
}

func TestRequesters(t *testing.T) {
	for _, test := range []struct {
		args       []string
		agent, pod bool
		err        string
	}{
		{[]string{agentFlag}, true, false, ""},
		{[]string{agentFlag, "--requester=agent"}, true, false, ""},
		{[]string{"--requester=pod"}, false, true, ""},
		{[]string{"--requester=pod", agentFlag}, false, true, ""},
		{[]string{agentFlag, "--requester=both"}, true, true, ""},
		{[]string{agentFlag, "--use-own-service-account"}, true, false, ""},
		{[]string{"--use-own-service-account=false"}, false, true, ""},
		{[]string{agentFlag, "--use-own-service-account", "--requester=agent"}, true, false, ""},
		{[]string{agentFlag, "--use-own-service-account", "--requester=pod"}, false, false, "contradict"},
		{[]string{"--use-own-service-account=false", "--requester=agent"}, false, false, "contradict"},
		{[]string{agentFlag, "--use-own-service-account", "--requester=both"}, false, false, "contradict"},
		{nil, false, false, "--driver-service-account is missing"},
		{[]string{"--requester=both"}, false, false, "--driver-service-account is missing"},
		{[]string{"--requester=everyone"}, false, false, "--requester"},
		{[]string{"--requester="}, false, false, "--requester"},
		{[]string{"--driver-service-account=signet-agent"}, false, false, "--driver-service-account"},
		{[]string{"--driver-service-account=system:serviceaccount:ns"}, false, false, "--driver-service-account"},
	} {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			c, code, stderr := parse(t, test.args...)
			if test.err != "" {
				if code != exitUsage || !strings.Contains(stderr, test.err) {
					t.Errorf("exit %d, %q, want a usage error about %q", code, stderr, test.err)
				}
				return
			}
			if code != exitOK {
				t.Fatalf("exit %d, %q", code, stderr)
			}
			if p := c.controller.Policy; (p.AgentUsername != "") != test.agent || p.AllowPod != test.pod {
				t.Errorf("agent %q, pod %t", p.AgentUsername, p.AllowPod)
			}
		})
	}
}

// TestWrongFlags: one line that names the flag, exit code 2, and no work begun.
func TestWrongFlags(t *testing.T) {
	for _, arg := range []string{
		"--csi-driver-name=", "--csi-driver-name=Upper", "--csi-driver-name=a/b", "--csi-driver-name=" + strings.Repeat("a", 64),
		"--trust-domain=", "--trust-domain=Cluster.Local", "--trust-domain=spiffe://cluster.local", "--trust-domain=a/b", "--trust-domain=a:1",
		"--certificate-request-duration=0", "--certificate-request-duration=-1h", "--certificate-request-duration=1",
		"--certificate-request-duration-min=61m", "--certificate-request-duration-min=-1s", "--certificate-request-duration-max=59m", "--certificate-request-duration-max=-1s",
		"--issuer-name=", "--issuer-kind=", "--issuer-group=",
		"--runtime-issuance-config-map-name=cm", "--runtime-issuance-config-map-namespace=ns",
		"--allowed-key-types=P-521", "--allowed-key-types=",
		"--allowed-dns-suffixes=svc.cluster.local", "--allowed-dns-suffixes=ns-{{namespace}}.svc", "--allowed-dns-suffixes=.{{namespace}}.svc",
		"--allowed-dns-suffixes={{namespace}}.svc,", "--allowed-dns-suffixes={{namespace}}", "--allowed-dns-suffixes={{namespace}}.local,{{namespace}}.svc.cluster.local",
		"--concurrent-reconciles=0", "--concurrent-reconciles=1001", "--concurrent-reconciles=x",
		"--leader-election-namespace=", "--leader-election-namespace=a.b",
		"--readiness-probe-bind-address=6060", "--readiness-probe-bind-address=", "--readiness-probe-bind-address=:x", "--readiness-probe-bind-address=:70000",
		"--metrics-bind-address=localhost",
		"--no-such-flag", "argument",
	} {
		t.Run(arg, func(t *testing.T) {
			c, code, stderr := parse(t, agentFlag, arg)
			name, _, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
			name = strings.TrimSuffix(strings.TrimSuffix(name, "-name"), "-namespace")
			if code != exitUsage || c != nil {
				t.Errorf("exit %d, want %d", code, exitUsage)
			}
			if strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, name) {
				t.Errorf("%q, want one line that names %s", stderr, name)
			}
		})
	}
}

func TestIssuerNameMayBeEmptyWithRuntimeConfigMap(t *testing.T) {
	c, code, stderr := parse(t, agentFlag, "--issuer-name=", "--runtime-issuance-config-map-name=cm", "--runtime-issuance-config-map-namespace=ns")
	if code != exitOK || len(c.controller.Policy.Issuers) != 0 {
		t.Errorf("exit %d, %q, %+v", code, stderr, c)
	}
}

func TestRunFails(t *testing.T) {
	var stderr bytes.Buffer
	code := execute(t.Context(), []string{agentFlag}, io.Discard, &stderr, func(context.Context, *config, io.Writer) error {
		return errors.New("the API server is gone")
	})
	if code != exitFailure || stderr.String() != "signet-approver: the API server is gone\n" {
		t.Errorf("exit %d, %q", code, stderr.String())
	}
	for _, args := range [][]string{{agentFlag, "--log-format=xml"}, {agentFlag, "--log-level=9"}} {
		stderr.Reset()
		if code := execute(t.Context(), args, io.Discard, &stderr, run); code != exitUsage || !strings.Contains(stderr.String(), "--log-") {
			t.Errorf("%v: exit %d, %q", args, code, stderr.String())
		}
	}
	stderr.Reset()
	if code := execute(t.Context(), []string{agentFlag, "--kubeconfig=/does/not/exist"}, io.Discard, &stderr, run); code != exitFailure || !strings.Contains(stderr.String(), "API server") {
		t.Errorf("exit %d, %q", code, stderr.String())
	}
}

func TestVersionAndHelp(t *testing.T) {
	for _, arg := range []string{"--version", "--help"} {
		var stdout, stderr bytes.Buffer
		code := execute(t.Context(), []string{arg}, &stdout, &stderr, func(context.Context, *config, io.Writer) error {
			t.Error("work begun")
			return nil
		})
		if code != exitOK || !strings.Contains(stdout.String(), "signet-approver") || stderr.Len() != 0 {
			t.Errorf("%s: exit %d, %q, %q", arg, code, stdout.String(), stderr.String())
		}
	}
}
