// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
)

// certManagerNamespace is both where cert-manager seems to run and where it
// looks for the secrets of cluster issuers.
const certManagerNamespace = "cert-manager"

// The user names of cert-manager are those its service accounts have in a
// release.
const (
	certManagerUser = "system:serviceaccount:" + certManagerNamespace + ":cert-manager"
	webhookUser     = "system:serviceaccount:" + certManagerNamespace + ":cert-manager-webhook"
)

// clusterPKI is every credential of the control plane.
type clusterPKI struct {
	ca, webhookCA    *authority
	admin            keyPair
	apiServer        keyPair
	apiServerKubelet keyPair
	webhook          keyPair
	users            map[string]keyPair // by component
	tokenPublic      []byte
	tokenPrivate     []byte
}

func (*clusterPKI) String() string   { return "cluster PKI (redacted)" }
func (*clusterPKI) GoString() string { return "clusterPKI{redacted}" }

func newClusterPKI() (*clusterPKI, error) {
	var p clusterPKI
	var err error
	if p.ca, err = newAuthority("kubernetes"); err != nil {
		return nil, err
	}
	if p.webhookCA, err = newAuthority("cert-manager-webhook-ca"); err != nil {
		return nil, err
	}
	if p.admin, err = p.ca.client("kubernetes-admin", "system:masters"); err != nil {
		return nil, err
	}
	if p.apiServerKubelet, err = p.ca.client("kube-apiserver-kubelet-client", "system:masters"); err != nil {
		return nil, err
	}
	p.apiServer, err = p.ca.server("kube-apiserver",
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
		"localhost", "127.0.0.1", controlPlaneIP, kubernetesServiceIP)
	if err != nil {
		return nil, err
	}
	p.webhook, err = p.webhookCA.server("cert-manager-webhook",
		"cert-manager-webhook."+certManagerNamespace+".svc", "127.0.0.1")
	if err != nil {
		return nil, err
	}
	p.users = map[string]keyPair{}
	for component, user := range map[string]string{
		componentControllerManager: "system:kube-controller-manager",
		componentScheduler:         "system:kube-scheduler",
		componentCertManager:       certManagerUser,
		componentWebhook:           webhookUser,
	} {
		if p.users[component], err = p.ca.client(user); err != nil {
			return nil, err
		}
	}
	if p.tokenPublic, p.tokenPrivate, err = newSigningKey(); err != nil {
		return nil, err
	}
	return &p, nil
}

// write writes the files that controlPlane's command lines name.
func (p *clusterPKI) write(paths controlPlanePaths) error {
	files := map[string][]byte{
		paths.pki("ca.crt"):                p.ca.certPEM,
		paths.pki("ca.key"):                p.ca.keyPEM,
		paths.pki("apiserver.crt"):         p.apiServer.certPEM,
		paths.pki("apiserver.key"):         p.apiServer.keyPEM,
		paths.pki("apiserver-kubelet.crt"): p.apiServerKubelet.certPEM,
		paths.pki("apiserver-kubelet.key"): p.apiServerKubelet.keyPEM,
		paths.pki("webhook.crt"):           p.webhook.certPEM,
		paths.pki("webhook.key"):           p.webhook.keyPEM,
		paths.pki("service-account.pub"):   p.tokenPublic,
		paths.pki("service-account.key"):   p.tokenPrivate,
	}
	server := "https://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(apiServerPort))
	for component, pair := range p.users {
		content, err := kubeconfig(server, p.ca.certPEM, component, pair)
		if err != nil {
			return err
		}
		files[paths.kubeconfig(component)] = content
	}
	for path, content := range files {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return fmt.Errorf("write credentials: %w", err)
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			return fmt.Errorf("write credentials: %w", err)
		}
	}
	return nil
}
