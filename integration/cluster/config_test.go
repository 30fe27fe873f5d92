// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"
)

func testPlan() plan {
	binaries := Binaries{}
	for _, target := range targets("kubernetes-1.36", "1.36.3") {
		binaries[target.component] = "/cache/" + target.component + "-key"
	}
	return plan{
		Name: "c1", Nodes: 2, StateDir: "/run/signet-clusters/c1", LogDir: "/logs", Binaries: binaries,
		Programs:      programs{Runc: "/usr/sbin/runc", CNIDir: "/usr/lib/cni"},
		APIServerArgs: []string{"--runtime-config=a=true"},
		KubeletConfig: map[string]any{"maxPods": 110},
	}
}

func TestOptions(t *testing.T) {
	for _, test := range []struct {
		name    string
		options Options
		err     string
	}{
		{"zero", Options{}, ""},
		{"all", Options{Name: "a-1", Nodes: maxNodes, KubernetesVersion: "1.35", LogDir: "logs"}, ""},
		{"upper case", Options{Name: "A"}, "lower-case"},
		{"path", Options{Name: "../a"}, "lower-case"},
		{"too long", Options{Name: strings.Repeat("a", 31)}, "at most 30"},
		{"digit first", Options{Name: "1a"}, "begin with a letter"},
		{"no nodes", Options{Nodes: -1}, "1 to 8 nodes, not -1"},
		{"too many nodes", Options{Nodes: maxNodes + 1}, "1 to 8 nodes, not 9"},
	} {
		t.Run(test.name, func(t *testing.T) {
			o, err := test.options.complete()
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Fatalf("got %v, want %q", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if o.Name == "" || o.Nodes < 1 || o.KubernetesVersion == "" || o.Progress == nil {
				t.Errorf("incomplete: %+v", o)
			}
			if o.LogDir != "" && !strings.HasPrefix(o.LogDir, "/") {
				t.Errorf("log directory %q is relative", o.LogDir)
			}
		})
	}
}

// TestAddresses: the networks of the nodes are disjoint, and none meets the
// control plane's or the services'.
func TestAddresses(t *testing.T) {
	var prefixes []netip.Prefix
	for i := range maxNodes {
		prefix, err := netip.ParsePrefix(podRange(i + 1))
		if err != nil {
			t.Fatal(err)
		}
		prefixes = append(prefixes, prefix)
		if addr := nodeIP(i + 1); addr == controlPlaneIP || slices.Contains([]string{nodeIP(i), nodeIP(i + 2)}, addr) {
			t.Errorf("node %d shares its address %s", i+1, addr)
		}
	}
	prefixes = append(prefixes, netip.MustParsePrefix(serviceRange), netip.MustParsePrefix(controlPlaneIP+"/24"))
	for i, a := range prefixes {
		for _, b := range prefixes[i+1:] {
			if a.Overlaps(b) {
				t.Errorf("%s overlaps %s", a, b)
			}
		}
	}
	if !netip.MustParsePrefix(serviceRange).Contains(netip.MustParseAddr(kubernetesServiceIP)) {
		t.Error("the API server's service address is no service address")
	}
}

func TestControlPlane(t *testing.T) {
	paths := controlPlanePaths{root: "/p"}
	byName := map[string]component{}
	for _, c := range testPlan().controlPlane(paths) {
		if c.Path != "/cache/"+c.Name+"-key" || c.Log != "/logs/"+c.Name+".log" || !slices.Contains(c.Env, "TMPDIR=/p/tmp") {
			t.Errorf("%s: %+v", c.Name, c)
		}
		byName[c.Name] = c
	}
	for name, want := range map[string][]string{
		componentEtcd:      {"--unsafe-no-fsync=true"},
		componentAPIServer: {"--authorization-mode=Node,RBAC", "--runtime-config=a=true", "--service-account-issuer=https://kubernetes.default.svc.cluster.local"},
		// What the project's measurements are made with.
		componentCertManager: {"--kube-api-qps=1000", "--kube-api-burst=2000", "--concurrent-workers=20"},
		componentWebhook:     {"--kubeconfig=/p/kubeconfig/cert-manager-webhook"},
	} {
		for _, arg := range want {
			if !slices.Contains(byName[name].Args, arg) {
				t.Errorf("%s lacks %s: %q", name, arg, byName[name].Args)
			}
		}
	}
	if !slices.Contains(byName[componentWebhook].Env, "CERT_MANAGER_WEBHOOK_PORT=10250") {
		t.Errorf("the webhook's environment: %q", byName[componentWebhook].Env)
	}
}

func TestKubeletConfig(t *testing.T) {
	content, err := testPlan().kubeletConfig(2)
	if err != nil {
		t.Fatal(err)
	}
	var config map[string]any
	if err := yaml.Unmarshal(content, &config); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]any{
		"cgroupRoot":   "/signet-c1/node-2",
		"cgroupDriver": "cgroupfs",
		"maxPods":      float64(110), // laid over
		"failSwapOn":   false,
	} {
		if diff := cmp.Diff(want, config[key]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", key, diff)
		}
	}
}

func TestContainerdConfig(t *testing.T) {
	config := containerdConfig(testPlan().Programs, "/cache/shim-key")
	for _, want := range []string{
		"version = 3", `sandbox = "signet.invalid/pause:1"`, `bin_dirs = ["/usr/lib/cni"]`, "restrict_oom_score_adj = true",
		`runtime_path = "/cache/shim-key"`, `BinaryName = "/usr/sbin/runc"`, "SystemdCgroup = false",
	} {
		if !strings.Contains(config, want) {
			t.Errorf("lacks %s:\n%s", want, config)
		}
	}
	// Together with bin_dirs it disables the runtime interface.
	if strings.Contains(config, "bin_dir =") {
		t.Error("has bin_dir")
	}
}

// TestKubeconfig: what is rendered is what client-go reads.
func TestKubeconfig(t *testing.T) {
	ca, err := newAuthority("ca")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.client("somebody", "some-group")
	if err != nil {
		t.Fatal(err)
	}
	content, err := kubeconfig("https://127.0.0.1:1", ca.certPEM, "somebody", pair)
	if err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.RESTConfigFromKubeConfig(content)
	if err != nil {
		t.Fatal(err)
	}
	if config.Host != "https://127.0.0.1:1" || !bytes.Equal(config.CAData, ca.certPEM) || !bytes.Equal(config.CertData, pair.certPEM) {
		t.Errorf("got %s with other certificates", config.Host)
	}
	if _, err := tls.X509KeyPair(config.CertData, config.KeyData); err != nil {
		t.Error(err)
	}
}

func TestCredentials(t *testing.T) {
	p, err := newClusterPKI()
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(p.ca.cert)
	server := parseCert(t, p.apiServer)
	for _, host := range []string{"127.0.0.1", controlPlaneIP, kubernetesServiceIP, "kubernetes.default.svc"} {
		if _, err := server.Verify(x509.VerifyOptions{Roots: roots, DNSName: host}); err != nil {
			t.Errorf("the API server as %s: %v", host, err)
		}
	}
	users := map[string]string{}
	for component, pair := range p.users {
		cert := parseCert(t, pair)
		if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
			t.Errorf("%s: %v", component, err)
		}
		if other, taken := users[cert.Subject.CommonName]; taken {
			t.Errorf("%s and %s are the same user", component, other)
		}
		users[cert.Subject.CommonName] = component
	}
	for _, printed := range []string{fmt.Sprintf("%v %+v %#v %s", p, p, p, p), fmt.Sprintf("%v %+v %#v", p.admin, p.admin, p.admin)} {
		if strings.Contains(printed, "PRIVATE") || strings.Contains(printed, "45 45 45 45") {
			t.Errorf("prints its keys: %s", printed)
		}
	}
}

func parseCert(t *testing.T, pair keyPair) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(pair.certPEM)
	if block == nil {
		t.Fatal("no PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// TestWebhookConfigurations: the rules are the chart's.
func TestWebhookConfigurations(t *testing.T) {
	stream, err := marshalAll(webhookConfigurations([]byte("CA"))...)
	if err != nil {
		t.Fatal(err)
	}
	objects, err := decode(stream)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, o := range objects {
		for _, w := range o.Object["webhooks"].([]any) {
			webhook := w.(map[string]any)
			got = append(got, fmt.Sprint(o.GetKind(), " ", webhook["failurePolicy"], " ", webhook["timeoutSeconds"], " ", webhook["matchPolicy"],
				" ", webhook["rules"], " ", webhook["namespaceSelector"]))
		}
	}
	want := []string{
		"MutatingWebhookConfiguration Fail 30 Equivalent [map[apiGroups:[cert-manager.io] apiVersions:[v1] operations:[CREATE] resources:[certificaterequests]]] <nil>",
		"ValidatingWebhookConfiguration Fail 30 Equivalent [map[apiGroups:[cert-manager.io acme.cert-manager.io] apiVersions:[v1] operations:[CREATE UPDATE] resources:[*/*]]]" +
			" map[matchExpressions:[map[key:cert-manager.io/disable-validation operator:NotIn values:[true]]]]",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
