// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

var trustDomain = spiffeid.RequireTrustDomainFromString("cluster.local")

// patience bounds every wait; a test that needs it has failed.
const patience = 30 * time.Second

// authority is a certificate authority for one trust domain.
type authority struct {
	td   spiffeid.TrustDomain
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

var serial = struct {
	sync.Mutex
	n int64
}{}

func nextSerial() *big.Int {
	serial.Lock()
	defer serial.Unlock()
	serial.n++
	return big.NewInt(serial.n)
}

func newAuthority(t testing.TB, td spiffeid.TrustDomain) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: nextSerial(), URIs: []*url.URL{td.ID().URL()},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	cert, err := x509.ParseCertificate(der)
	must(t, err)
	return &authority{td: td, cert: cert, key: key}
}

func (a *authority) bundle() *x509bundle.Bundle {
	return x509bundle.FromX509Authorities(a.td, []*x509.Certificate{a.cert})
}

func (a *authority) svid(t testing.TB, path string) *x509svid.SVID {
	t.Helper()
	id := spiffeid.RequireFromPath(a.td, path)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: nextSerial(), URIs: []*url.URL{id.URL()},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	must(t, err)
	cert, err := x509.ParseCertificate(der)
	must(t, err)
	return &x509svid.SVID{ID: id, Certificates: []*x509.Certificate{cert}, PrivateKey: key}
}

// identity is a complete identity with a fresh SVID.
func (a *authority) identity(t testing.TB, path string) Identity {
	t.Helper()
	return Identity{
		Status:      Entitled,
		SVIDs:       []*x509svid.SVID{a.svid(t, path)},
		Bundles:     x509bundle.NewSet(a.bundle()),
		TrustDomain: a.td,
	}
}

// scripted is a Workload whose identity the test sets.
type scripted struct {
	mu         sync.Mutex
	changed    *sync.Cond
	identity   Identity
	superseded chan struct{}
	asked      int // calls of Identity since the last set
}

func newScripted(i Identity) *scripted {
	w := &scripted{identity: i, superseded: make(chan struct{})}
	w.changed = sync.NewCond(&w.mu)
	return w
}

func (w *scripted) Identity() (Identity, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked++
	w.changed.Broadcast()
	return w.identity, w.superseded
}

func (w *scripted) set(i Identity) {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.superseded)
	w.identity, w.superseded, w.asked = i, make(chan struct{}), 0
}

// waitAsked returns once the present identity has been asked for n times.
func (w *scripted) waitAsked(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.asked < n {
		w.changed.Wait()
	}
}

// taken returns once the n requests that send sends to streams of this workload have been taken in. Streams look at the
// identity after each. Nothing else may be under way.
func (w *scripted) taken(n int, send func()) {
	w.mu.Lock()
	before := w.asked
	w.mu.Unlock()
	send()
	w.waitAsked(before + n)
}

// testServer is a Server with a directory for its sockets. Everything is shut down, and checked for leaks, at the end.
type testServer struct {
	*Server
	t   testing.TB
	dir string
	log *syncBuffer
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func newTestServer(t testing.TB, o Options) *testServer {
	t.Helper()
	checkLeaks(t)
	// Not t.TempDir: its path grows with the test's name, and a socket's path must stay below 108 bytes.
	dir, err := os.MkdirTemp("", "wl")
	must(t, err)
	log := &syncBuffer{}
	o.Log = slog.New(slog.NewTextHandler(log, nil))
	s := &testServer{Server: NewServer(o), t: t, dir: dir, log: log}
	t.Cleanup(func() {
		must(t, s.Shutdown(context.Background()))
		must(t, os.RemoveAll(dir))
	})
	return s
}

func (s *testServer) listen(name string) net.Listener {
	s.t.Helper()
	lis, err := net.Listen("unix", filepath.Join(s.dir, name))
	must(s.t, err)
	return lis
}

// start serves w on a new socket and returns the socket's address as in SPIFFE_ENDPOINT_SOCKET.
func (s *testServer) start(name string, w Workload) (addr string) {
	s.t.Helper()
	must(s.t, s.Start(s.listen(name), w))
	return "unix://" + filepath.Join(s.dir, name)
}

func dial(t testing.TB, addr string, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	cc, err := grpc.NewClient(addr, append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	must(t, err)
	t.Cleanup(func() { _ = cc.Close() })
	return cc
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// withHeader is a context for Workload API requests.
func withHeader(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, securityHeader, "true")
}

func fetchStream(t testing.TB, cc *grpc.ClientConn) grpc.ServerStreamingClient[workload.X509SVIDResponse] {
	t.Helper()
	stream, err := workload.NewSpiffeWorkloadAPIClient(cc).FetchX509SVID(withHeader(testContext(t)), &workload.X509SVIDRequest{})
	must(t, err)
	return stream
}

// fetchOnce asks for an SVID and returns the error.
func fetchOnce(t testing.TB, cc *grpc.ClientConn) error {
	t.Helper()
	stream, err := workload.NewSpiffeWorkloadAPIClient(cc).FetchX509SVID(withHeader(testContext(t)), &workload.X509SVIDRequest{})
	if err != nil {
		return err
	}
	_, err = stream.Recv()
	return err
}

// recv returns the next message's default SVID.
func recv(t testing.TB, stream grpc.ServerStreamingClient[workload.X509SVIDResponse]) *x509svid.SVID {
	t.Helper()
	r, err := stream.Recv()
	must(t, err)
	svid, err := x509svid.ParseRaw(r.Svids[0].X509Svid, r.Svids[0].X509SvidKey)
	must(t, err)
	return svid
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantStatus checks code and text of an RPC's error.
func wantStatus(t testing.TB, err error, code codes.Code, text string) {
	t.Helper()
	if s := status.Convert(err); err == nil || s.Code() != code || !strings.Contains(s.Message(), text) {
		t.Errorf("got %v, want %s with %q", err, code, text)
	}
}

func wantSameSVID(t testing.TB, got, want *x509svid.SVID) {
	t.Helper()
	if got.ID != want.ID || !got.Certificates[0].Equal(want.Certificates[0]) || !want.PrivateKey.(*ecdsa.PrivateKey).Equal(got.PrivateKey) {
		t.Errorf("got svid %s serial %s, want %s serial %s", got.ID, got.Certificates[0].SerialNumber, want.ID, want.Certificates[0].SerialNumber)
	}
}

// checkLeaks fails the test if, at its end, goroutines of this package or of gRPC run that did not run before.
func checkLeaks(t testing.TB) {
	before := grpcGoroutines()
	t.Cleanup(func() {
		deadline := time.Now().Add(10 * time.Second)
		for {
			var leaked []string
			for id, stack := range grpcGoroutines() {
				if _, ok := before[id]; !ok {
					leaked = append(leaked, stack)
				}
			}
			if len(leaked) == 0 {
				return
			}
			if time.Now().After(deadline) {
				t.Errorf("%d goroutines leaked, the first:\n%s", len(leaked), leaked[0])
				return
			}
			runtime.Gosched() // transports take a moment to see their connection closed; they report it to nobody
		}
	})
}

func grpcGoroutines() map[string]string {
	buf := make([]byte, 4<<20)
	buf = buf[:runtime.Stack(buf, true)]
	r := make(map[string]string)
	for stack := range strings.SplitSeq(string(buf), "\n\n") {
		first, _ := bufio.NewReader(strings.NewReader(stack)).ReadString('\n')
		test := strings.Contains(stack, "testing.tRunner") || strings.Contains(stack, "testing.(*B)") || strings.Contains(stack, "testing.(*F)")
		if !test && (strings.Contains(stack, "/workloadapi") || strings.Contains(stack, "google.golang.org/grpc")) {
			id, _, _ := strings.Cut(first, " [")
			r[id] = stack
		}
	}
	return r
}
