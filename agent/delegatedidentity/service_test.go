// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package delegatedidentity

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	delegatedidentityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/delegatedidentity/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

var own = spiffeid.RequireTrustDomainFromString("example.org")

// node is a Source whose state a test sets.
type node struct {
	mu        sync.Mutex
	workloads []Workload
	bundles   *x509bundle.Set
	changed   chan struct{}
}

func newNode(authorities ...*x509.Certificate) *node {
	return &node{changed: make(chan struct{}), bundles: x509bundle.NewSet(x509bundle.FromX509Authorities(own, authorities))}
}

func (n *node) Workloads() ([]Workload, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]Workload(nil), n.workloads...), n.changed
}

func (n *node) Bundles() (*x509bundle.Set, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.bundles, n.changed
}

func (n *node) set(workloads []Workload, bundles *x509bundle.Set) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.workloads, n.bundles = workloads, bundles
	close(n.changed)
	n.changed = make(chan struct{})
}

func newSVID(t *testing.T, path string) *x509svid.SVID {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id := spiffeid.RequireFromPath(own, path)
	uri, _ := url.Parse(id.String())
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, URIs: []*url.URL{uri}, KeyUsage: x509.KeyUsageDigitalSignature,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &x509svid.SVID{ID: id, Certificates: []*x509.Certificate{certificate}, PrivateKey: key, Hint: "internal"}
}

type fixture struct {
	client delegatedidentityv1.DelegatedIdentityClient
	stop   chan struct{}
}

var errStopped = status.Error(codes.Unavailable, "the agent is stopping")

// underALife ends calls as the admin socket does when the agent stops.
func (f fixture) underALife(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	go func() {
		select {
		case <-f.stop:
			cancel(errStopped)
		case <-ctx.Done():
		}
	}()
	return handle(srv, living{stream, ctx})
}

type living struct {
	grpc.ServerStream
	ctx context.Context
}

func (l living) Context() context.Context { return l.ctx }

func serve(t *testing.T, source Source) fixture {
	t.Helper()
	lis, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	f := fixture{stop: make(chan struct{})}
	server := grpc.NewServer(grpc.StreamInterceptor(f.underALife))
	New(source, own).Register(server)
	served := make(chan error, 1)
	go func() { served <- server.Serve(lis) }()
	conn, err := grpc.NewClient("unix:"+lis.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		server.Stop()
		if err := <-served; err != nil {
			t.Error("serve:", err)
		}
	})
	f.client = delegatedidentityv1.NewDelegatedIdentityClient(conn)
	return f
}

func selectors(values ...string) []*types.Selector {
	var all []*types.Selector
	for _, v := range values {
		kind, value, _ := strings.Cut(v, ":")
		all = append(all, &types.Selector{Type: kind, Value: value})
	}
	return all
}

// seen is a message in words: a serial for each SVID.
func seen(t *testing.T, stream grpc.ServerStreamingClient[delegatedidentityv1.SubscribeToX509SVIDsResponse]) []string {
	t.Helper()
	m, err := stream.Recv()
	if err != nil {
		t.Fatal("receive:", err)
	}
	got := []string{}
	for _, s := range m.X509Svids {
		parsed, err := x509svid.ParseRaw(s.X509Svid.CertChain[0], s.X509SvidKey)
		if err != nil {
			t.Fatalf("the message holds no SVID with its key: %v", err)
		}
		if name := "spiffe://" + s.X509Svid.Id.TrustDomain + s.X509Svid.Id.Path; name != parsed.ID.String() {
			t.Errorf("message names %s, the certificate %s", name, parsed.ID)
		}
		if s.X509Svid.ExpiresAt != parsed.Certificates[0].NotAfter.Unix() {
			t.Errorf("expires_at is %d, the certificate's end %d", s.X509Svid.ExpiresAt, parsed.Certificates[0].NotAfter.Unix())
		}
		if s.X509Svid.Hint != "internal" {
			t.Errorf("hint is %q", s.X509Svid.Hint)
		}
		got = append(got, parsed.Certificates[0].SerialNumber.String())
	}
	return got
}

func serials(svids ...*x509svid.SVID) []string {
	all := []string{}
	for _, s := range svids {
		all = append(all, s.Certificates[0].SerialNumber.String())
	}
	return all
}

func TestSelectorsMeanPods(t *testing.T) {
	a1, a2, b, z := newSVID(t, "/ns/x/sa/a"), newSVID(t, "/ns/x/sa/a"), newSVID(t, "/ns/x/sa/b"), newSVID(t, "/ns/z/sa/a")
	n := newNode(z.Certificates[0])
	n.workloads = []Workload{
		{Namespace: "z", ServiceAccount: "a", Pod: "p", PodUID: "4", Volume: "v4", SVID: z},
		{Namespace: "x", ServiceAccount: "b", Pod: "p3", PodUID: "3", Volume: "v3", SVID: b},
		{Namespace: "x", ServiceAccount: "a", Pod: "p2", PodUID: "2", Volume: "v2", SVID: a2},
		{Namespace: "x", ServiceAccount: "a", Pod: "p1", PodUID: "1", Volume: "v1", SVID: a1},
		{Namespace: "x", ServiceAccount: "a", Pod: "pending", PodUID: "5", Volume: "v5"},
	}
	f := serve(t, n)
	for _, test := range []struct {
		selectors []string
		want      []string
	}{
		{[]string{"k8s:ns:x"}, serials(a1, a2, b)},
		{[]string{"k8s:ns:x", "k8s:sa:a"}, serials(a1, a2)},
		{[]string{"k8s:sa:a"}, serials(a1, a2, z)},
		{[]string{"k8s:pod-uid:2"}, serials(a2)},
		{[]string{"k8s:ns:z", "k8s:pod-name:p"}, serials(z)},
		{[]string{"k8s:ns:x", "k8s:ns:z"}, serials()}, // Both cannot be true of one pod.
		{[]string{"k8s:pod-name:pending"}, serials()},
		{[]string{"k8s:ns:x:y"}, serials()},
	} {
		t.Run(strings.Join(test.selectors, ","), func(t *testing.T) {
			stream, err := f.client.SubscribeToX509SVIDs(t.Context(), &delegatedidentityv1.SubscribeToX509SVIDsRequest{Selectors: selectors(test.selectors...)})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, seen(t, stream)); diff != "" {
				t.Errorf("SVIDs (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWhatCannotBeCheckedIsRefused(t *testing.T) {
	f := serve(t, newNode())
	for name, test := range map[string]struct {
		request *delegatedidentityv1.SubscribeToX509SVIDsRequest
		words   string
	}{
		"nothing":      {&delegatedidentityv1.SubscribeToX509SVIDsRequest{}, "no selectors"},
		"another type": {&delegatedidentityv1.SubscribeToX509SVIDsRequest{Selectors: selectors("unix:uid:0")}, `"unix:uid:0"`},
		"another kind": {&delegatedidentityv1.SubscribeToX509SVIDsRequest{Selectors: selectors("k8s:ns:x", "k8s:pod-label:app:a")}, `"k8s:pod-label:app:a"`},
		"no value":     {&delegatedidentityv1.SubscribeToX509SVIDsRequest{Selectors: selectors("k8s:ns:")}, `"k8s:ns:"`},
		"nil selector": {&delegatedidentityv1.SubscribeToX509SVIDsRequest{Selectors: []*types.Selector{nil}}, `":"`},
		"too many":     {&delegatedidentityv1.SubscribeToX509SVIDsRequest{Selectors: make([]*types.Selector, maxSelectors+1)}, "at most 32"},
		"a process":    {&delegatedidentityv1.SubscribeToX509SVIDsRequest{Pid: 1}, "not by PID"},
		"both":         {&delegatedidentityv1.SubscribeToX509SVIDsRequest{Pid: 1, Selectors: selectors("k8s:ns:x")}, "not by PID"},
	} {
		t.Run(name, func(t *testing.T) {
			stream, err := f.client.SubscribeToX509SVIDs(t.Context(), test.request)
			if err != nil {
				t.Fatal(err)
			}
			_, err = stream.Recv()
			if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), test.words) {
				t.Errorf("error %v, want InvalidArgument with %q", err, test.words)
			}
		})
	}
}

func TestChangesAreSentAndNothingElse(t *testing.T) {
	first, second, other := newSVID(t, "/ns/x/sa/a"), newSVID(t, "/ns/x/sa/a"), newSVID(t, "/ns/y/sa/a")
	n := newNode(first.Certificates[0])
	f := serve(t, n)
	stream, err := f.client.SubscribeToX509SVIDs(t.Context(), &delegatedidentityv1.SubscribeToX509SVIDsRequest{Selectors: selectors("k8s:ns:x")})
	if err != nil {
		t.Fatal(err)
	}
	pod := Workload{Namespace: "x", ServiceAccount: "a", Pod: "p", Volume: "v"}
	with := func(svid *x509svid.SVID) Workload { w := pod; w.SVID = svid; return w }
	stranger := Workload{Namespace: "y", ServiceAccount: "a", Pod: "q", Volume: "w", SVID: other}

	if got := seen(t, stream); len(got) != 0 {
		t.Errorf("before any pod: %v", got)
	}
	n.set([]Workload{pod}, n.bundles)           // Pending: nothing to say.
	n.set([]Workload{pod, stranger}, n.bundles) // Somebody else's.
	for _, step := range []struct {
		workloads []Workload
		want      []string
	}{
		{[]Workload{stranger, with(first)}, serials(first)},
		{[]Workload{with(second), stranger}, serials(second)},
		{[]Workload{stranger}, serials()},
	} {
		n.set(step.workloads, n.bundles)
		if diff := cmp.Diff(step.want, seen(t, stream)); diff != "" {
			t.Errorf("SVIDs (-want +got):\n%s", diff)
		}
	}
	close(f.stop)
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the agent stops: %v, want Unavailable", err)
	}
}

func TestBundlesAreWhole(t *testing.T) {
	ours, theirs := newSVID(t, "/a").Certificates[0], newSVID(t, "/b").Certificates[0]
	partner := spiffeid.RequireTrustDomainFromString("partner.org")
	empty := x509bundle.New(spiffeid.RequireTrustDomainFromString("empty.org"))
	n := newNode()
	n.bundles = nil
	f := serve(t, n)
	stream, err := f.client.SubscribeToX509Bundles(t.Context(), &delegatedidentityv1.SubscribeToX509BundlesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	svids, err := f.client.SubscribeToX509SVIDs(t.Context(), &delegatedidentityv1.SubscribeToX509SVIDsRequest{Selectors: selectors("k8s:ns:x")})
	if err != nil {
		t.Fatal(err)
	}
	_ = seen(t, svids)
	mine := x509bundle.FromX509Authorities(own, []*x509.Certificate{ours})
	for _, step := range []struct {
		set       *x509bundle.Set
		want      map[string][]byte
		news      bool // To the SVIDs' stream.
		federated []string
	}{
		{x509bundle.NewSet(mine, empty), map[string][]byte{"spiffe://example.org": ours.Raw}, false, nil},
		{x509bundle.NewSet(mine, x509bundle.FromX509Authorities(partner, []*x509.Certificate{theirs})),
			map[string][]byte{"spiffe://example.org": ours.Raw, "spiffe://partner.org": theirs.Raw}, true, []string{"spiffe://partner.org"}},
		{x509bundle.NewSet(mine), map[string][]byte{"spiffe://example.org": ours.Raw}, true, nil}, // Gone is gone.
	} {
		n.set(nil, step.set)
		m, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(step.want, m.CaCertificates); diff != "" {
			t.Errorf("bundles (-want +got):\n%s", diff)
		}
		if !step.news {
			continue
		}
		s, err := svids.Recv()
		if err != nil || !cmp.Equal(s.FederatesWith, step.federated) {
			t.Errorf("the SVIDs' stream hears of %v, %v, want %v", s.GetFederatesWith(), err, step.federated)
		}
	}
}

func TestJWTIsOff(t *testing.T) {
	f := serve(t, newNode())
	_, err := f.client.FetchJWTSVIDs(t.Context(), &delegatedidentityv1.FetchJWTSVIDsRequest{Audience: []string{"a"}, Selectors: selectors("k8s:ns:x")})
	if status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "JWT functionality is disabled") {
		t.Errorf("FetchJWTSVIDs: %v", err)
	}
	stream, err := f.client.SubscribeToJWTBundles(t.Context(), &delegatedidentityv1.SubscribeToJWTBundlesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	m, err := stream.Recv()
	if err != nil || string(m.Bundles["spiffe://example.org"]) != `{"keys":[]}` {
		t.Errorf("SubscribeToJWTBundles: %v, %v", m, err)
	}
}
