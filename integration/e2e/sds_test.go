// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"path/filepath"
	"slices"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// A proxy in a pod finds its certificate and its bundle where Istio looks for
// them, whatever else it asks for, and is sent the next certificate.
func testAProxyGetsItsSecrets(t *testing.T) {
	t.Parallel()
	ctx := needCluster(t, testTimeout)
	ns := newNamespace(ctx, t)
	pod := runPod(ctx, t, ns, podSpec{
		Name: "proxy", Node: nodeOne, Attributes: chosen(map[string]string{"delivery": "socket", "file-name-socket": "socket"}),
	})
	conn := node(ctx, t, nodeOne).dialUnix(t, filepath.Join(volumeDir(pod), "mount", "socket"))
	stream, err := secretv3.NewSecretDiscoveryServiceClient(conn).StreamSecrets(ctx)
	if err != nil {
		t.Fatal(err)
	}
	request := &discoveryv3.DiscoveryRequest{
		Node:          &corev3.Node{Id: "sidecar", UserAgentName: "envoy"},
		ResourceNames: []string{"default", "ROOTCA", "file-root:system"},
	}
	var serials []string
	for len(serials) < 2 {
		if err := stream.Send(request); err != nil {
			t.Fatal(err)
		}
		response, err := stream.Recv()
		if err != nil {
			t.Fatalf("after %d certificates: %v", len(serials), err)
		}
		secrets := make(map[string]*tlsv3.Secret)
		for _, resource := range response.GetResources() {
			var s tlsv3.Secret
			if err := resource.UnmarshalTo(&s); err != nil {
				t.Fatal(err)
			}
			secrets[s.GetName()] = &s
		}
		if len(secrets) != 2 || secrets["ROOTCA"].GetValidationContext().GetCustomValidatorConfig() == nil {
			t.Fatalf("got %d secrets, want the certificate and the bundle", len(secrets))
		}
		certificate := secrets["default"].GetTlsCertificate()
		svid, err := x509svid.Parse(certificate.GetCertificateChain().GetInlineBytes(), certificate.GetPrivateKey().GetInlineBytes())
		if err != nil {
			t.Fatal(err)
		}
		if svid.ID.String() != spiffeID(ns, "default") {
			t.Errorf("the proxy is %s, want %s", svid.ID, spiffeID(ns, "default"))
		}
		serial := svid.Certificates[0].SerialNumber.String()
		if slices.Contains(serials, serial) {
			t.Errorf("certificate %s was sent twice", serial)
		}
		serials = append(serials, serial)
		request = &discoveryv3.DiscoveryRequest{ResourceNames: request.ResourceNames, VersionInfo: response.GetVersionInfo(), ResponseNonce: response.GetNonce()}
	}
}
