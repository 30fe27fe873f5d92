// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	spiffe "github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/signet-spiffe/signet/internal/conformance"
)

// Rules of the Workload Endpoint and the Workload API that no other test shows. What is looked at is what a client receives.

// Nothing is needed but gRPC: no stubs, no TLS, no credentials, no library for SPIFFE.
func TestE3E8E10GRPCIsAllThatIsNeeded(t *testing.T) {
	conformance.Proves(t, "E3", "E8", "E10")
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	cc := dial(t, s.start("a", newScripted(ca.identity(t, "/a"))), grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawCodec{})))
	ctx := metadata.AppendToOutgoingContext(testContext(t), "workload.spiffe.io", "true")
	stream, err := cc.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/SpiffeWorkloadAPI/FetchX509SVID")
	must(t, err)
	must(t, stream.SendMsg([]byte{}))
	var got []byte
	must(t, stream.RecvMsg(&got))
	if !bytes.Contains(got, []byte("spiffe://cluster.local/a")) {
		t.Errorf("got %q", got)
	}
}

// A client that is given nothing but the variable finds the socket.
func TestE9TheSocketIsNamedAsClientsExpect(t *testing.T) {
	conformance.Proves(t, "E9")
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	addr := s.start("a", newScripted(ca.identity(t, "/a")))
	must(t, spiffe.ValidateAddress(addr))
	u, err := url.Parse(addr)
	must(t, err)
	if u.Scheme != "unix" || u.Host != "" || !strings.HasPrefix(u.Path, "/") || u.RawQuery+u.Fragment != "" || u.User != nil {
		t.Errorf("address %s", addr)
	}
	t.Setenv(spiffe.SocketEnv, addr)
	client, err := spiffe.New(testContext(t))
	must(t, err)
	t.Cleanup(func() { _ = client.Close() })
	svid, err := client.FetchX509SVID(testContext(t))
	must(t, err)
	if svid.ID.Path() != "/a" {
		t.Errorf("got %s", svid.ID)
	}
}

// What the server says of itself is the standard's service, method by method and field by field.
func TestE15W2TheServiceIsTheStandards(t *testing.T) {
	conformance.Proves(t, "E15", "W2")
	s := newTestServer(t, Options{})
	stream, err := reflectionpb.NewServerReflectionClient(dial(t, s.start("a", newScripted(Identity{})))).ServerReflectionInfo(testContext(t))
	must(t, err)
	ask := func(r *reflectionpb.ServerReflectionRequest) *reflectionpb.ServerReflectionResponse {
		t.Helper()
		must(t, stream.Send(r))
		answer, err := stream.Recv()
		must(t, err)
		return answer
	}
	const name = "SpiffeWorkloadAPI"
	found := 0
	for _, service := range ask(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}).GetListServicesResponse().GetService() {
		switch {
		case service.Name == name:
			found++
		case !strings.Contains(service.Name, "."):
			t.Errorf("%s has no package of its own: its name could be the standard's", service.Name)
		}
	}
	if found != 1 {
		t.Fatalf("%d services named %s", found, name)
	}
	files := ask(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: name}}).
		GetFileDescriptorResponse().GetFileDescriptorProto()
	var got descriptorpb.FileDescriptorProto
	must(t, proto.Unmarshal(files[0], &got))
	if d := cmp.Diff(protodesc.ToFileDescriptorProto(workload.File_workload_proto), &got, protocmp.Transform()); d != "" {
		t.Errorf("the service is not the standard's (-standard +server):\n%s", d)
	}
	must(t, stream.CloseSend())
}

// Whatever its workload is, each socket answers all of the Workload API.
func TestE16EverySocketAnswersTheWorkloadAPI(t *testing.T) {
	conformance.Proves(t, "E16")
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	for n, i := range []Identity{ca.identity(t, "/a"), ca.identity(t, "/b"), {Status: NotEntitled}, {}} {
		cc := dial(t, s.start(fmt.Sprint(n), newScripted(i)))
		everyMethod(t, func(t *testing.T, method string, request proto.Message, stream bool) {
			err := call(withHeader(testContext(t)), cc, method, request, stream)
			if status.Code(err) == codes.Unimplemented && strings.Contains(status.Convert(err).Message(), "unknown") {
				t.Errorf("socket %d does not know it: %v", n, err)
			}
		})
	}
}

// All methods, in every state, with requests that are complete, empty, wrong or lack the header.
func TestE18NoErrorHasAnotherCode(t *testing.T) {
	conformance.Proves(t, "E18")
	allowed := []codes.Code{codes.OK, codes.InvalidArgument, codes.Unavailable, codes.PermissionDenied, codes.Unimplemented}
	ca := newAuthority(t, trustDomain)
	incomplete := ca.identity(t, "/incomplete")
	incomplete.Bundles = nil
	s := newTestServer(t, Options{})
	seen := map[codes.Code]bool{}
	for n, i := range []Identity{ca.identity(t, "/a"), incomplete, {Status: NotEntitled}, {Status: Initializing}, {Status: 99}} {
		cc := dial(t, s.start(fmt.Sprint(n), newScripted(i)))
		everyMethod(t, func(t *testing.T, method string, request proto.Message, stream bool) {
			for _, request := range []proto.Message{request, &emptypb.Empty{}, &workload.JWTSVIDRequest{Audience: []string{"a"}, SpiffeId: "x"}} {
				for _, ctx := range []func() error{
					func() error { return call(withHeader(testContext(t)), cc, method, request, stream) },
					func() error { return call(testContext(t), cc, method, request, stream) },
				} {
					err := ctx()
					if seen[status.Code(err)] = true; !slices.Contains(allowed, status.Code(err)) {
						t.Errorf("state %d: %v", n, err)
					}
				}
			}
		})
	}
	if len(seen) != len(allowed) {
		t.Errorf("saw the codes %v, want all of %v", slices.Collect(maps.Keys(seen)), allowed)
	}
}

// svidResponse is the message that says all there is to say of i. It is made here once more, from the standard.
func svidResponse(t *testing.T, i Identity) *workload.X509SVIDResponse {
	t.Helper()
	bundles := bundleMap(i)
	r := &workload.X509SVIDResponse{FederatedBundles: map[string][]byte{}}
	for _, svid := range i.SVIDs {
		key, err := x509.MarshalPKCS8PrivateKey(svid.PrivateKey)
		must(t, err)
		var chain []byte
		for _, c := range svid.Certificates {
			chain = append(chain, c.Raw...)
		}
		r.Svids = append(r.Svids, &workload.X509SVID{SpiffeId: svid.ID.String(), X509Svid: chain, X509SvidKey: key,
			Bundle: bundles["spiffe://"+svid.ID.TrustDomain().Name()], Hint: svid.Hint})
	}
	for name, der := range bundles {
		if name != "spiffe://"+i.TrustDomain.Name() {
			r.FederatedBundles[name] = der
		}
	}
	return r
}

func bundleMap(i Identity) map[string][]byte {
	bundles := map[string][]byte{}
	for _, b := range i.Bundles.Bundles() {
		var raw [][]byte
		for _, a := range b.X509Authorities() {
			raw = append(raw, a.Raw)
		}
		slices.SortFunc(raw, bytes.Compare)
		bundles["spiffe://"+b.TrustDomain().Name()] = bytes.Join(raw, nil)
	}
	return bundles
}

// One thing changes at a time, and each message says everything all the same.
func TestW3W7EveryMessageIsComplete(t *testing.T) {
	conformance.Proves(t, "W3", "W7")
	ca, partner, more := newAuthority(t, trustDomain), newAuthority(t, spiffeid.RequireTrustDomainFromString("partner.org")), newAuthority(t, spiffeid.RequireTrustDomainFromString("more.org"))
	empty := x509bundle.New(spiffeid.RequireTrustDomainFromString("empty.org"))
	second := newAuthority(t, trustDomain)
	first := ca.identity(t, "/a")
	change := func(i Identity, do func(*Identity)) Identity { do(&i); return i }
	rotated := change(first, func(i *Identity) { i.SVIDs = ca.identity(t, "/a").SVIDs })
	federated := change(rotated, func(i *Identity) { i.Bundles = x509bundle.NewSet(ca.bundle(), partner.bundle()) })
	both := change(federated, func(i *Identity) { i.Bundles = x509bundle.NewSet(more.bundle(), partner.bundle(), ca.bundle()) })
	otherRoot := change(both, func(i *Identity) {
		i.Bundles = x509bundle.NewSet(more.bundle(), partner.bundle(), x509bundle.FromX509Authorities(trustDomain, []*x509.Certificate{ca.cert, second.cert}))
	})
	moreSVIDs := change(otherRoot, func(i *Identity) { i.SVIDs = append(slices.Clone(i.SVIDs), ca.svid(t, "/b")) })
	alone := change(moreSVIDs, func(i *Identity) { i.SVIDs, i.Bundles = rotated.SVIDs, x509bundle.NewSet(ca.bundle()) })

	s := newTestServer(t, Options{})
	w := newScripted(first)
	cc := dial(t, s.start("a", w))
	svids := fetchStream(t, cc)
	bundles, err := workload.NewSpiffeWorkloadAPIClient(cc).FetchX509Bundles(withHeader(testContext(t)), &workload.X509BundlesRequest{})
	must(t, err)
	var said map[string][]byte
	for n, i := range []Identity{first, rotated, federated, both, otherRoot, moreSVIDs, alone} {
		told := i
		if n > 0 {
			told.Bundles = x509bundle.NewSet(append(i.Bundles.Bundles(), empty)...) // which is never said
			w.set(told)
		}
		got, err := svids.Recv()
		must(t, err)
		if d := cmp.Diff(svidResponse(t, i), got, protocmp.Transform()); d != "" {
			t.Errorf("message %d (-want +got):\n%s", n, d)
		}
		want := bundleMap(i)
		if !maps.EqualFunc(want, said, bytes.Equal) {
			r, err := bundles.Recv()
			must(t, err)
			said = r.Bundles
		}
		if d := cmp.Diff(want, said); d != "" {
			t.Errorf("bundles %d (-want +got):\n%s", n, d)
		}
	}
}

// svidWith is an SVID for the key, signed through an intermediate.
func svidWith(t *testing.T, ca *authority, path string, key crypto.Signer) *x509svid.SVID {
	t.Helper()
	middleKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{SerialNumber: nextSerial(), NotBefore: ca.cert.NotBefore, NotAfter: ca.cert.NotAfter,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, middleKey.Public(), ca.key)
	must(t, err)
	middle, err := x509.ParseCertificate(der)
	must(t, err)
	id := spiffeid.RequireFromPath(ca.td, path)
	template = &x509.Certificate{SerialNumber: nextSerial(), NotBefore: ca.cert.NotBefore, NotAfter: ca.cert.NotAfter,
		URIs: []*url.URL{id.URL()}, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature}
	der, err = x509.CreateCertificate(rand.Reader, template, middle, key.Public(), middleKey)
	must(t, err)
	leaf, err := x509.ParseCertificate(der)
	must(t, err)
	return &x509svid.SVID{ID: id, Certificates: []*x509.Certificate{leaf, middle}, PrivateKey: key}
}

// The bytes of one message, for every type of key that an SVID may have.
func TestW10W11W12W13FormsOnTheWire(t *testing.T) {
	conformance.Proves(t, "W10", "W11", "W12", "W13", "W30")
	ca, partner := newAuthority(t, trustDomain), newAuthority(t, spiffeid.RequireTrustDomainFromString("partner.org"))
	second := newAuthority(t, trustDomain)
	keys := map[string]func() (crypto.Signer, error){
		"P-256":   func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) },
		"P-384":   func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P384(), rand.Reader) },
		"RSA":     func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 2048) },
		"Ed25519": func() (crypto.Signer, error) { _, key, err := ed25519.GenerateKey(rand.Reader); return key, err },
	}
	s := newTestServer(t, Options{})
	for name, newKey := range keys {
		t.Run(name, func(t *testing.T) {
			key, err := newKey()
			must(t, err)
			i := Identity{Status: Entitled, TrustDomain: trustDomain, SVIDs: []*x509svid.SVID{svidWith(t, ca, "/a", key)},
				Bundles: x509bundle.NewSet(partner.bundle(), x509bundle.FromX509Authorities(trustDomain, []*x509.Certificate{ca.cert, second.cert}))}
			got, err := fetchStream(t, dial(t, s.start(name, newScripted(i)))).Recv()
			must(t, err)
			svid := got.Svids[0]
			if svid.SpiffeId != "spiffe://cluster.local/a" || svid.Hint != "" {
				t.Errorf("svid of %q with hint %q", svid.SpiffeId, svid.Hint)
			}
			chain, err := x509.ParseCertificates(svid.X509Svid) // DER, concatenated, and nothing between or after
			must(t, err)
			if len(chain) != 2 || chain[0].IsCA || !chain[1].IsCA || chain[0].CheckSignatureFrom(chain[1]) != nil || chain[0].URIs[0].String() != svid.SpiffeId {
				t.Errorf("chain of %d is not the leaf and then its issuer", len(chain))
			}
			parsed, err := x509.ParsePKCS8PrivateKey(svid.X509SvidKey)
			must(t, err)
			if !parsed.(crypto.Signer).Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(chain[0].PublicKey) {
				t.Error("the key is not the certificate's")
			}
			own, err := x509.ParseCertificates(svid.Bundle)
			must(t, err)
			if len(own) != 2 || !slices.ContainsFunc(own, ca.cert.Equal) || !slices.ContainsFunc(own, second.cert.Equal) {
				t.Errorf("own bundle of %d", len(own))
			}
			if d := cmp.Diff(map[string][]byte{"spiffe://partner.org": partner.cert.Raw}, got.FederatedBundles); d != "" {
				t.Errorf("federated bundles (-want +got):\n%s", d)
			}
			if len(got.Crl) != 0 {
				t.Error("crl is set")
			}
		})
	}
}

// The field's number is part of the rule: bundles are field 2.
func TestW17BundlesHoldTheOwnTrustDomain(t *testing.T) {
	conformance.Proves(t, "W17", "W13", "W30")
	ca, partner := newAuthority(t, trustDomain), newAuthority(t, spiffeid.RequireTrustDomainFromString("partner.org"))
	i := ca.identity(t, "/a")
	i.Bundles = x509bundle.NewSet(partner.bundle(), ca.bundle())
	raw := encode(t, i, x509BundlesResponse)
	for rest := raw; len(rest) > 0; {
		number, wire, n := protowire.ConsumeTag(rest)
		if n < 0 || number != 2 || wire != protowire.BytesType {
			t.Fatalf("field %d of type %d", number, wire)
		}
		rest = rest[n:]
		rest = rest[protowire.ConsumeFieldValue(number, wire, rest):]
	}
	var got workload.X509BundlesResponse
	must(t, proto.Unmarshal(raw, &got))
	want := map[string][]byte{"spiffe://cluster.local": ca.cert.Raw, "spiffe://partner.org": partner.cert.Raw}
	if d := cmp.Diff(want, got.Bundles); d != "" {
		t.Errorf("bundles (-want +got):\n%s", d)
	}
}

func TestW14W15Hints(t *testing.T) {
	conformance.Proves(t, "W14", "W15")
	ca := newAuthority(t, trustDomain)
	longest := strings.Repeat("ä", 512) // bytes count, not letters
	for name, c := range map[string]struct{ have, want []string }{
		"none":              {[]string{"", ""}, []string{"", ""}},
		"different":         {[]string{"internal", "external"}, []string{"internal", "external"}},
		"the first wins":    {[]string{"x", "x", "", "x"}, []string{"x", "", "", ""}},
		"as long as may be": {[]string{longest, longest + "x"}, []string{longest, ""}},
		"one case apart":    {[]string{"a", "A"}, []string{"a", "A"}},
	} {
		t.Run(name, func(t *testing.T) {
			i := ca.identity(t, "/0")
			i.SVIDs = nil
			for n, hint := range c.have {
				svid := ca.svid(t, fmt.Sprintf("/%d", n))
				svid.Hint = hint
				i.SVIDs = append(i.SVIDs, svid)
			}
			var got workload.X509SVIDResponse
			must(t, proto.Unmarshal(encode(t, i, x509SVIDResponse), &got))
			var hints []string
			for _, svid := range got.Svids {
				hints = append(hints, svid.Hint)
			}
			if !slices.Equal(hints, c.want) {
				t.Errorf("hints %.50q, want %.50q", hints, c.want)
			}
		})
	}
}

// A pod's clients read the keys of their own trust domain at once, and there is none among them that is for something else.
func TestW22W23B4JWTBundlesHoldTheOwnTrustDomain(t *testing.T) {
	conformance.Proves(t, "W22", "W23", "B4")
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	api := workload.NewSpiffeWorkloadAPIClient(dial(t, s.start("a", newScripted(ca.identity(t, "/a")))))
	stream, err := api.FetchJWTBundles(withHeader(testContext(t)), &workload.JWTBundlesRequest{})
	must(t, err)
	got, err := stream.Recv()
	must(t, err)
	if _, ok := got.Bundles["spiffe://cluster.local"]; !ok {
		t.Fatalf("bundles of %v", slices.Collect(maps.Keys(got.Bundles)))
	}
	for name, document := range got.Bundles {
		var jwks struct{ Keys *[]struct{ Use string } }
		must(t, json.Unmarshal(document, &jwks))
		if jwks.Keys == nil {
			t.Errorf("%s: no keys parameter in %s", name, document)
			continue
		}
		for _, key := range *jwks.Keys {
			if key.Use != "jwt-svid" {
				t.Errorf("%s: a key with use %q", name, key.Use)
			}
		}
	}
}

// The order is the workload's own, for as many SVIDs as there are, and outlives a rotation of each.
func TestW27TheOrderOfSVIDsIsKept(t *testing.T) {
	conformance.Proves(t, "W27")
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	paths := []string{"/zebra", "/apple", "/9", "/M", "/mango", "/10", "/z"}
	issue := func() Identity {
		i := ca.identity(t, "/none")
		i.SVIDs = nil
		for _, path := range paths {
			i.SVIDs = append(i.SVIDs, ca.svid(t, path))
		}
		return i
	}
	w := newScripted(issue())
	addr := s.start("a", w)
	stream := fetchStream(t, dial(t, addr))
	for range 3 {
		got, err := stream.Recv()
		must(t, err)
		other, err := fetchStream(t, dial(t, addr)).Recv()
		must(t, err)
		for n, path := range paths {
			if want := "spiffe://cluster.local" + path; got.Svids[n].SpiffeId != want || other.Svids[n].SpiffeId != want {
				t.Errorf("place %d has %s and %s, want %s", n, got.Svids[n].SpiffeId, other.Svids[n].SpiffeId, want)
			}
		}
		w.set(issue())
	}
}

// Rotations and all that a client asks for fit on the one connection that it opened.
func TestW28OneConnectionIsEnough(t *testing.T) {
	conformance.Proves(t, "W28")
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	w := newScripted(ca.identity(t, "/a"))
	addr := s.start("a", w)
	cc, client := dial(t, addr), newClient(t, addr)
	streams := []grpc.ServerStreamingClient[workload.X509SVIDResponse]{fetchStream(t, cc), fetchStream(t, cc), fetchStream(t, cc)}
	for range 20 {
		for _, stream := range streams {
			recv(t, stream)
		}
		_, err := client.FetchX509SVID(testContext(t)) // which opens a stream of its own and ends it
		must(t, err)
		w.set(ca.identity(t, "/a"))
	}
	if n := testutil.ToFloat64(s.metrics.accepted); n != 2 {
		t.Errorf("%v connections for two clients", n)
	}
}

// Appendix A, step by step on one stream: what changes while a client is not looking is checked again before it is answered,
// and a client that has gone is answered no more.
func TestW29EntitlementIsCheckedBeforeEachAnswer(t *testing.T) {
	conformance.Proves(t, "W29")
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	w := newScripted(ca.identity(t, "/a"))
	cc := dial(t, s.start("a", w))
	stream := fetchStream(t, cc)
	recv(t, stream)
	w.set(Identity{Status: NotEntitled})
	_, err := stream.Recv()
	wantStatus(t, err, codes.PermissionDenied, "no identity issued")
	w.set(ca.identity(t, "/a")) // too late for the stream that has ended
	_, err = stream.Recv()
	wantStatus(t, err, codes.PermissionDenied, "no identity issued")
	recv(t, fetchStream(t, cc))
}

// The answer of a server that has one is not delayed by what other streams of the socket wait for, nor by a timer.
func TestW4TheFirstAnswerWaitsForNothing(t *testing.T) {
	conformance.Proves(t, "W4")
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	pending := newScripted(Identity{Status: Pending})
	held := fetchStream(t, dial(t, s.start("pending", pending)))
	pending.waitAsked(1)
	began := time.Now()
	const clients = 20
	addr := s.start("a", newScripted(ca.identity(t, "/a")))
	for range clients {
		recv(t, fetchStream(t, dial(t, addr)))
	}
	if took := time.Since(began); took > 10*time.Second { // a pause of half a second each would show
		t.Errorf("%d first answers took %s", clients, took)
	}
	pending.set(ca.identity(t, "/pending"))
	recv(t, held)
}
