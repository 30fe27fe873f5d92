// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"maps"
	"slices"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
)

var partner = spiffeid.RequireTrustDomainFromString("partner.example")

// envoyNode is what an Envoy says of itself.
func envoyNode(t testing.TB, minor uint32, metadata map[string]any) *corev3.Node {
	t.Helper()
	m, err := structpb.NewStruct(metadata)
	must(t, err)
	return &corev3.Node{
		Id: "sidecar~10.0.0.1~web.shop", Cluster: "web", UserAgentName: "envoy", Metadata: m,
		UserAgentVersionType: &corev3.Node_UserAgentBuildVersion{
			UserAgentBuildVersion: &corev3.BuildVersion{Version: &typev3.SemanticVersion{MajorNumber: 1, MinorNumber: minor}},
		},
	}
}

// secretsOf decodes resources, and checks what a proxy checks: the type, the rules of the message's definition, and that
// names come once and in order.
func secretsOf(t testing.TB, resources []*anypb.Any) map[string]*tlsv3.Secret {
	t.Helper()
	r := make(map[string]*tlsv3.Secret)
	var names []string
	for _, a := range resources {
		var s tlsv3.Secret
		must(t, a.UnmarshalTo(&s))
		must(t, s.ValidateAll())
		r[s.GetName()] = &s
		names = append(names, s.GetName())
	}
	if !slices.IsSorted(names) || len(r) != len(names) {
		t.Errorf("resources %q, want each once and in order", names)
	}
	return r
}

func namesOf(secrets map[string]*tlsv3.Secret) []string { return slices.Sorted(maps.Keys(secrets)) }

// wantNames checks which secrets there are.
func wantNames(t testing.TB, secrets map[string]*tlsv3.Secret, want ...string) {
	t.Helper()
	slices.Sort(want)
	if got := namesOf(secrets); !slices.Equal(got, want) {
		t.Fatalf("secrets %q, want %q", got, want)
	}
}

// wantCertificate checks that a secret is an SVID.
func wantCertificate(t testing.TB, s *tlsv3.Secret, want *x509svid.SVID) {
	t.Helper()
	c := s.GetTlsCertificate()
	got, err := x509svid.Parse(c.GetCertificateChain().GetInlineBytes(), c.GetPrivateKey().GetInlineBytes())
	must(t, err)
	wantSameSVID(t, got, want)
}

// validatorOf returns the configuration of Envoy's SPIFFE validator in a secret.
func validatorOf(t testing.TB, s *tlsv3.Secret) *tlsv3.SPIFFECertValidatorConfig {
	t.Helper()
	v := s.GetValidationContext()
	if v.GetTrustedCa() != nil {
		t.Error("trusted_ca beside the validator: Envoy would not know which to follow")
	}
	if v.GetCustomValidatorConfig().GetName() != "envoy.tls.cert_validator.spiffe" {
		t.Fatalf("validator %q", v.GetCustomValidatorConfig().GetName())
	}
	var config tlsv3.SPIFFECertValidatorConfig
	must(t, v.GetCustomValidatorConfig().GetTypedConfig().UnmarshalTo(&config))
	must(t, config.ValidateAll())
	return &config
}

// wantDomains checks that a secret has the bundles of exactly these authorities' trust domains, apart and in order.
func wantDomains(t testing.TB, s *tlsv3.Secret, want ...*authority) {
	t.Helper()
	got := validatorOf(t, s).GetTrustDomains()
	if len(got) != len(want) {
		t.Fatalf("%d trust domains, want %d", len(got), len(want))
	}
	for n, a := range want {
		if got[n].GetName() != a.td.Name() {
			t.Errorf("trust domain %d is %q, want %q", n, got[n].GetName(), a.td.Name())
		}
		wantAuthorities(t, got[n].GetTrustBundle().GetInlineBytes(), a.cert)
	}
}

// wantPlain checks that a secret is one trust domain's bundle without the validator.
func wantPlain(t testing.TB, s *tlsv3.Secret, want *authority) {
	t.Helper()
	v := s.GetValidationContext()
	if v.GetCustomValidatorConfig() != nil {
		t.Error("a validator beside trusted_ca")
	}
	wantAuthorities(t, v.GetTrustedCa().GetInlineBytes(), want.cert)
}

func wantAuthorities(t testing.TB, encoded []byte, want ...*x509.Certificate) {
	t.Helper()
	var got [][]byte
	for block, rest := pem.Decode(encoded); block != nil; block, rest = pem.Decode(rest) {
		got = append(got, block.Bytes)
	}
	var raw [][]byte
	for _, c := range want {
		raw = append(raw, c.Raw)
	}
	slices.SortFunc(raw, bytes.Compare)
	if !slices.EqualFunc(got, raw, bytes.Equal) {
		t.Errorf("%d authorities, want %d others", len(got), len(raw))
	}
}

// wantSent takes io.EOF for sent: the server has ended the stream already, and receiving tells why.
func wantSent(t testing.TB, err error) {
	t.Helper()
	if !errors.Is(err, io.EOF) {
		must(t, err)
	}
}

// envoy is a proxy on a state-of-the-world stream. It keeps the rules of xDS: a nonce answers the last response, and the
// version is that of the last one it accepted.
type envoy struct {
	t        testing.TB
	stream   grpc.BidiStreamingClient[discoveryv3.DiscoveryRequest, discoveryv3.DiscoveryResponse]
	node     *corev3.Node // sent once
	names    []string
	accepted string // version
	last     *discoveryv3.DiscoveryResponse
}

func newEnvoy(t testing.TB, addr string, node *corev3.Node) *envoy {
	t.Helper()
	stream, err := secretv3.NewSecretDiscoveryServiceClient(dial(t, addr)).StreamSecrets(testContext(t))
	must(t, err)
	return &envoy{t: t, stream: stream, node: node, last: &discoveryv3.DiscoveryResponse{}}
}

func (e *envoy) send(r *discoveryv3.DiscoveryRequest) {
	e.t.Helper()
	r.Node, e.node = e.node, nil
	r.TypeUrl, r.ResourceNames, r.VersionInfo, r.ResponseNonce = secretType, e.names, e.accepted, e.last.GetNonce()
	wantSent(e.t, e.stream.Send(r))
}

// subscribe replaces what the proxy wants.
func (e *envoy) subscribe(names ...string) {
	e.t.Helper()
	e.names = names
	e.send(&discoveryv3.DiscoveryRequest{})
}

func (e *envoy) ack() {
	e.t.Helper()
	e.accepted = e.last.GetVersionInfo()
	e.send(&discoveryv3.DiscoveryRequest{})
}

func (e *envoy) nack(message string) {
	e.t.Helper()
	e.send(&discoveryv3.DiscoveryRequest{ErrorDetail: &rpcstatus.Status{Code: 13, Message: message}})
}

// recv returns the next response's secrets, unanswered.
func (e *envoy) recv() map[string]*tlsv3.Secret {
	e.t.Helper()
	r, err := e.stream.Recv()
	must(e.t, err)
	if r.GetTypeUrl() != secretType || r.GetVersionInfo() == "" || r.GetNonce() == "" || r.GetNonce() == e.last.GetNonce() {
		e.t.Fatalf("type %q, version %q, nonce %q after %q", r.GetTypeUrl(), r.GetVersionInfo(), r.GetNonce(), e.last.GetNonce())
	}
	e.last = r
	return secretsOf(e.t, r.GetResources())
}

// recvNth is recv for a response of which the number is known: one that came without a reason would be counted.
func (e *envoy) recvNth(n string) map[string]*tlsv3.Secret {
	e.t.Helper()
	secrets := e.recv()
	if e.last.GetNonce() != n {
		e.t.Fatalf("response number %s, want %s", e.last.GetNonce(), n)
	}
	return secrets
}

// deltaEnvoy is a proxy on an incremental stream.
type deltaEnvoy struct {
	t      testing.TB
	stream grpc.BidiStreamingClient[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]
	node   *corev3.Node
	last   *discoveryv3.DeltaDiscoveryResponse
	has    map[string]string // version by name
}

func newDeltaEnvoy(t testing.TB, addr string, node *corev3.Node) *deltaEnvoy {
	t.Helper()
	stream, err := secretv3.NewSecretDiscoveryServiceClient(dial(t, addr)).DeltaSecrets(testContext(t))
	must(t, err)
	return &deltaEnvoy{t: t, stream: stream, node: node, last: &discoveryv3.DeltaDiscoveryResponse{}, has: make(map[string]string)}
}

func (e *deltaEnvoy) send(r *discoveryv3.DeltaDiscoveryRequest) {
	e.t.Helper()
	r.Node, e.node, r.TypeUrl = e.node, nil, secretType
	wantSent(e.t, e.stream.Send(r))
}

func (e *deltaEnvoy) subscribe(names ...string) {
	e.t.Helper()
	e.send(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: names})
}

func (e *deltaEnvoy) unsubscribe(names ...string) {
	e.t.Helper()
	e.send(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesUnsubscribe: names})
}

func (e *deltaEnvoy) ack() {
	e.t.Helper()
	for _, r := range e.last.GetResources() {
		e.has[r.GetName()] = r.GetVersion()
	}
	for _, name := range e.last.GetRemovedResources() {
		delete(e.has, name)
	}
	e.send(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: e.last.GetNonce()})
}

func (e *deltaEnvoy) nack(message string) {
	e.t.Helper()
	e.send(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: e.last.GetNonce(), ErrorDetail: &rpcstatus.Status{Code: 13, Message: message}})
}

// recv returns the next response's secrets and removed names, unanswered. n is its number.
func (e *deltaEnvoy) recv(n string) (secrets map[string]*tlsv3.Secret, removed []string) {
	e.t.Helper()
	r, err := e.stream.Recv()
	must(e.t, err)
	if r.GetTypeUrl() != secretType || r.GetNonce() != n {
		e.t.Fatalf("type %q, response number %s, want %s", r.GetTypeUrl(), r.GetNonce(), n)
	}
	e.last = r
	var resources []*anypb.Any
	for _, resource := range r.GetResources() {
		if resource.GetVersion() == "" {
			e.t.Errorf("%s has no version", resource.GetName())
		}
		resources = append(resources, resource.GetResource())
	}
	secrets = secretsOf(e.t, resources)
	for _, resource := range r.GetResources() {
		if secrets[resource.GetName()] == nil {
			e.t.Errorf("resource %q holds a secret of another name", resource.GetName())
		}
	}
	return secrets, r.GetRemovedResources()
}

// federated is an identity that knows a second trust domain.
func federated(t testing.TB, ca, other *authority, path string) Identity {
	t.Helper()
	i := ca.identity(t, path)
	i.Bundles = x509bundle.NewSet(ca.bundle(), other.bundle())
	return i
}

func fetchSecrets(t testing.TB, addr string, node *corev3.Node, names ...string) (*discoveryv3.DiscoveryResponse, error) {
	t.Helper()
	return secretv3.NewSecretDiscoveryServiceClient(dial(t, addr)).FetchSecrets(testContext(t),
		&discoveryv3.DiscoveryRequest{Node: node, TypeUrl: secretType, ResourceNames: names})
}
