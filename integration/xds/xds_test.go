// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3" // in the configurations
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3" // in the configurations
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	sotw "github.com/envoyproxy/go-control-plane/pkg/client/sotw/v3"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protopath"
	"google.golang.org/protobuf/reflect/protorange"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"sigs.k8s.io/yaml"

	"github.com/signet-spiffe/signet/workloadapi"
)

const (
	secretType = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
	id         = "spiffe://cluster.local/ns/shop/sa/web"
	patience   = 30 * time.Second
)

// workload is a pod whose SVID the test renews.
type workload struct {
	mu         sync.Mutex
	ca         *x509.Certificate
	key        *ecdsa.PrivateKey
	identity   workloadapi.Identity
	superseded chan struct{}
}

func newWorkload(t *testing.T) *workload {
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), URIs: []*url.URL{{Scheme: "spiffe", Host: "cluster.local"}},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	w := &workload{ca: sign(t, template, template, key, key), key: key}
	w.renew(t)
	return w
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return key
}

func sign(t *testing.T, template, parent *x509.Certificate, of, by *ecdsa.PrivateKey) *x509.Certificate {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, of.Public(), by)
	must(t, err)
	c, err := x509.ParseCertificate(der)
	must(t, err)
	return c
}

// renew gives the pod a new SVID and returns it.
func (w *workload) renew(t *testing.T) *x509svid.SVID {
	key, name := newKey(t), spiffeid.RequireFromString(id)
	c := sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), URIs: []*url.URL{name.URL()},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, w.ca, key, w.key)
	svid := &x509svid.SVID{ID: name, Certificates: []*x509.Certificate{c}, PrivateKey: key}
	td := name.TrustDomain()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.superseded != nil {
		close(w.superseded)
	}
	w.superseded = make(chan struct{})
	w.identity = workloadapi.Identity{
		Status: workloadapi.Entitled, SVIDs: []*x509svid.SVID{svid}, TrustDomain: td,
		Bundles: x509bundle.NewSet(x509bundle.FromX509Authorities(td, []*x509.Certificate{w.ca})),
	}
	return svid
}

func (w *workload) Identity() (workloadapi.Identity, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.identity, w.superseded
}

// serve puts the pod's socket up and connects to it.
func serve(t *testing.T, w *workload) *grpc.ClientConn {
	t.Helper()
	dir, err := os.MkdirTemp("", "xds") // short: a socket's path has 107 bytes
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	lis, err := net.Listen("unix", filepath.Join(dir, "s"))
	must(t, err)
	s := workloadapi.NewServer(workloadapi.Options{})
	must(t, s.Start(lis, w))
	t.Cleanup(func() { must(t, s.Shutdown(context.Background())) })
	cc, err := grpc.NewClient("unix://"+lis.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithStreamInterceptor(viaSDS))
	must(t, err)
	t.Cleanup(func() { _ = cc.Close() })
	return cc
}

// viaSDS sends what go-control-plane's client says to an aggregated service (ADS) to the secret discovery service instead. The
// messages are the same.
func viaSDS(ctx context.Context, d *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if strings.HasPrefix(method, "/envoy.service.discovery.v3.AggregatedDiscoveryService/") {
		method = secretv3.SecretDiscoveryService_StreamSecrets_FullMethodName
	}
	return open(ctx, d, cc, method, opts...)
}

// TestGoControlPlaneClient has the client of go-control-plane, which subscribes to everything, through a start, renewals, a
// rejection and a reconnect.
func TestGoControlPlaneClient(t *testing.T) {
	w := newWorkload(t)
	cc := serve(t, w)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	connect := func() sotw.ADSClient {
		client := sotw.NewADSClient(ctx, &corev3.Node{Id: "test"}, secretType)
		must(t, client.InitConnect(cc))
		return client
	}
	expect := func(client sotw.ADSClient, want *x509svid.SVID) {
		t.Helper()
		r, err := client.Fetch()
		must(t, err)
		secrets := decode(t, r.Resources)
		if len(secrets) != 2 || secrets["spiffe://cluster.local"].GetValidationContext() == nil {
			t.Fatalf("got %d secrets", len(secrets))
		}
		c := secrets[id].GetTlsCertificate()
		got, err := x509svid.Parse(c.GetCertificateChain().GetInlineBytes(), c.GetPrivateKey().GetInlineBytes())
		must(t, err)
		if !got.Certificates[0].Equal(want.Certificates[0]) {
			t.Fatalf("serial %s, want %s", got.Certificates[0].SerialNumber, want.Certificates[0].SerialNumber)
		}
	}
	client := connect()
	expect(client, w.identity.SVIDs[0])
	must(t, client.Ack())
	for range 3 {
		svid := w.renew(t)
		expect(client, svid)
		must(t, client.Ack())
	}
	svid := w.renew(t)
	expect(client, svid)
	must(t, client.Nack("not today"))
	svid = w.renew(t) // what was rejected does not come again; this does
	expect(client, svid)
	expect(connect(), svid)
}

func decode(t *testing.T, resources []*anypb.Any) map[string]*tlsv3.Secret {
	t.Helper()
	secrets := make(map[string]*tlsv3.Secret)
	for _, a := range resources {
		var s tlsv3.Secret
		must(t, a.UnmarshalTo(&s))
		must(t, s.ValidateAll())
		secrets[s.GetName()] = &s
	}
	return secrets
}

// TestDocumentedConfigurations holds the Envoy configuration in docs/sds.md to Envoy's API, and fetches every secret that it
// names, over the method that it chooses.
func TestDocumentedConfigurations(t *testing.T) {
	page, err := os.ReadFile("../../docs/sds.md")
	must(t, err)
	var found int
	for n, block := range strings.Split(string(page), "```yaml\n")[1:] {
		block, _, _ = strings.Cut(block, "```")
		if !strings.HasPrefix(block, "node:") {
			continue // for Kubernetes
		}
		json, err := yaml.YAMLToJSONStrict([]byte(block))
		must(t, err)
		var config bootstrapv3.Bootstrap
		if err := protojson.Unmarshal(json, &config); err != nil {
			t.Fatalf("block %d: %v", n, err)
		}
		if err := config.ValidateAll(); err != nil {
			t.Fatalf("block %d: %v", n, err)
		}
		if config.GetStaticResources() == nil {
			continue // node metadata alone
		}
		found++
		checkConfiguration(t, &config)
	}
	if found != 1 {
		t.Errorf("found %d whole configurations, want 1", found)
	}
}

func checkConfiguration(t *testing.T, config *bootstrapv3.Bootstrap) {
	var clusters []string
	for _, c := range config.GetStaticResources().GetClusters() {
		clusters = append(clusters, c.GetName())
	}
	certificates, validations := sdsNames(t, config, clusters)
	if len(certificates) != 2 || len(validations) != 2 {
		t.Errorf("certificates %q, validation contexts %q, want one each for inbound and outbound", certificates, validations)
	}
	r, err := secretv3.NewSecretDiscoveryServiceClient(serve(t, newWorkload(t))).FetchSecrets(t.Context(),
		&discoveryv3.DiscoveryRequest{Node: config.GetNode(), TypeUrl: secretType, ResourceNames: append(slices.Clone(certificates), validations...)})
	must(t, err)
	secrets := decode(t, r.GetResources())
	for _, name := range certificates {
		if secrets[name].GetTlsCertificate() == nil {
			t.Errorf("there is no certificate %q", name)
		}
	}
	for _, name := range validations {
		if secrets[name].GetValidationContext() == nil {
			t.Errorf("there is no validation context %q", name)
		}
	}
}

// sdsNames walks the whole configuration, into Any too, and returns the secrets it asks for. Each must be asked of a cluster
// that exists.
func sdsNames(t *testing.T, m proto.Message, clusters []string) (certificates, validations []string) {
	t.Helper()
	must(t, protorange.Range(m.ProtoReflect(), func(p protopath.Values) error {
		v, ok := p.Index(-1).Value.Interface().(protoreflect.Message)
		if !ok {
			return nil
		}
		common, ok := v.Interface().(*tlsv3.CommonTlsContext)
		if !ok {
			return nil
		}
		configs := slices.Clone(common.GetTlsCertificateSdsSecretConfigs())
		for _, c := range configs {
			certificates = append(certificates, c.GetName())
		}
		validation := common.GetCombinedValidationContext().GetValidationContextSdsSecretConfig()
		validations = append(validations, validation.GetName())
		for _, c := range append(configs, validation) {
			source := c.GetSdsConfig().GetApiConfigSource()
			for _, s := range source.GetGrpcServices() {
				if !slices.Contains(clusters, s.GetEnvoyGrpc().GetClusterName()) {
					t.Errorf("secret %q comes from cluster %q, which does not exist", c.GetName(), s.GetEnvoyGrpc().GetClusterName())
				}
			}
		}
		return nil
	}))
	return certificates, validations
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
