// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/signet-spiffe/signet/internal/conformance"
)

// everyMethod calls do for each method of the Workload API. The request passed on is valid for the method.
func everyMethod(t *testing.T, do func(t *testing.T, method string, request proto.Message, stream bool)) {
	requests := map[string]proto.Message{
		"FetchJWTSVID":    &workload.JWTSVIDRequest{Audience: []string{"a"}},
		"ValidateJWTSVID": &workload.ValidateJWTSVIDRequest{Audience: "a", Svid: "b"},
	}
	desc := workload.SpiffeWorkloadAPI_ServiceDesc
	call := func(name string, stream bool) {
		t.Run(name, func(t *testing.T) {
			r := requests[name]
			if r == nil {
				r = &emptypb.Empty{} // the other requests have no fields that matter
			}
			do(t, "/"+desc.ServiceName+"/"+name, r, stream)
		})
	}
	for _, m := range desc.Methods {
		call(m.MethodName, false)
	}
	for _, m := range desc.Streams {
		call(m.StreamName, true)
	}
	if n := len(desc.Methods) + len(desc.Streams); n != 7 {
		t.Errorf("the Workload API has 7 methods, not %d: decide what the new ones answer", n)
	}
}

// call makes the request and returns the first answer's error.
func call(ctx context.Context, cc *grpc.ClientConn, method string, request proto.Message, stream bool) error {
	if !stream {
		return cc.Invoke(ctx, method, request, &emptypb.Empty{})
	}
	s, err := cc.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method)
	if err != nil {
		return err
	}
	if err := s.SendMsg(request); err != nil {
		return err
	}
	if err := s.CloseSend(); err != nil {
		return err
	}
	return s.RecvMsg(&emptypb.Empty{})
}

func TestSecurityHeaderIsRequired(t *testing.T) {
	conformance.Proves(t, "E6", "E7")
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	cc := dial(t, s.start("a", newScripted(ca.identity(t, "/a"))))
	for name, values := range map[string][]string{
		"missing": nil, "True": {"True"}, "TRUE": {"TRUE"}, "empty": {""}, "1": {"1"}, "twice": {"true", "true"}, "list": {"true,true"},
	} {
		t.Run(name, func(t *testing.T) {
			everyMethod(t, func(t *testing.T, method string, request proto.Message, stream bool) {
				ctx := testContext(t)
				for _, v := range values {
					ctx = metadata.AppendToOutgoingContext(ctx, securityHeader, v)
				}
				wantStatus(t, call(ctx, cc, method, request, stream), codes.InvalidArgument, "security header missing from request")
			})
		})
	}
	t.Run("before the request is read", func(t *testing.T) {
		stream, err := cc.NewStream(testContext(t), &grpc.StreamDesc{ServerStreams: true}, workload.SpiffeWorkloadAPI_FetchX509SVID_FullMethodName)
		must(t, err)
		wantStatus(t, stream.RecvMsg(&emptypb.Empty{}), codes.InvalidArgument, "security header")
	})
}

func TestAnswersOfEveryMethod(t *testing.T) {
	conformance.Proves(t, "W25")
	want := map[string]struct {
		code codes.Code
		text string
	}{
		"FetchX509SVID": {codes.OK, ""}, "FetchX509Bundles": {codes.OK, ""}, "FetchJWTBundles": {codes.OK, ""},
		"FetchJWTSVID":    {codes.Unimplemented, "JWT functionality is disabled"},
		"ValidateJWTSVID": {codes.InvalidArgument, "unable to parse JWT token"},
		"FetchWITSVID":    {codes.Unimplemented, "fetching WIT-SVIDs is not implemented"},
		"FetchWITBundles": {codes.Unimplemented, "not implemented"},
	}
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	cc := dial(t, s.start("a", newScripted(ca.identity(t, "/a"))))
	everyMethod(t, func(t *testing.T, method string, request proto.Message, stream bool) {
		err := call(withHeader(testContext(t)), cc, method, request, stream)
		w := want[strings.TrimPrefix(method, "/SpiffeWorkloadAPI/")]
		if w.code == codes.OK {
			must(t, err)
			return
		}
		wantStatus(t, err, w.code, w.text)
	})
}

func TestMalformedJWTRequests(t *testing.T) {
	conformance.Proves(t, "W8", "W19")
	s := newTestServer(t, Options{})
	api := workload.NewSpiffeWorkloadAPIClient(dial(t, s.start("a", newScripted(Identity{Status: NotEntitled}))))
	ctx := withHeader(testContext(t))
	_, err := api.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{})
	wantStatus(t, err, codes.InvalidArgument, "audience must be specified")
	_, err = api.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"a"}, SpiffeId: "spiffe://Cluster.Local/%61"})
	wantStatus(t, err, codes.InvalidArgument, "invalid requested SPIFFE ID")
	_, err = api.ValidateJWTSVID(ctx, &workload.ValidateJWTSVIDRequest{Svid: "x"})
	wantStatus(t, err, codes.InvalidArgument, "audience must be specified")
	_, err = api.ValidateJWTSVID(ctx, &workload.ValidateJWTSVIDRequest{Audience: "a"})
	wantStatus(t, err, codes.InvalidArgument, "svid must be specified")
}

func TestStatusDecidesWhatStreamsSay(t *testing.T) {
	conformance.Proves(t, "E13", "E14", "W16", "W18", "W29")
	ca := newAuthority(t, trustDomain)
	complete := ca.identity(t, "/a")
	// The fields are complete each time: only the status keeps them back.
	with := func(s Status) Identity { i := complete; i.Status = s; return i }
	for _, method := range []string{"FetchX509SVID", "FetchX509Bundles", "FetchJWTBundles"} {
		t.Run(method, func(t *testing.T) {
			s := newTestServer(t, Options{})
			w := newScripted(with(NotEntitled))
			cc := dial(t, s.start("a", w))
			full := "/SpiffeWorkloadAPI/" + method
			open := func() grpc.ClientStream {
				stream, err := cc.NewStream(withHeader(testContext(t)), &grpc.StreamDesc{ServerStreams: true}, full)
				must(t, err)
				must(t, stream.SendMsg(&emptypb.Empty{}))
				must(t, stream.CloseSend())
				return stream
			}
			next := func(s grpc.ClientStream) error { return s.RecvMsg(&emptypb.Empty{}) }

			wantStatus(t, next(open()), codes.PermissionDenied, "no identity issued")
			w.set(with(Initializing))
			wantStatus(t, next(open()), codes.Unavailable, "starting")
			w.set(with(Status(99)))
			wantStatus(t, next(open()), codes.Unavailable, "starting")

			w.set(with(Pending))
			held := open()
			w.waitAsked(1)
			w.set(complete)
			must(t, next(held))
			live := open()
			must(t, next(live))
			w.waitAsked(2)
			w.set(with(NotEntitled))
			wantStatus(t, next(held), codes.PermissionDenied, "no identity issued")
			wantStatus(t, next(live), codes.PermissionDenied, "no identity issued")
		})
	}
}

func TestRotationIsPushedAndNothingIsRepeated(t *testing.T) {
	conformance.Proves(t, "W5")
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	first, second := ca.identity(t, "/a"), ca.identity(t, "/a")
	w := newScripted(first)
	stream := fetchStream(t, dial(t, s.start("a", w)))
	wantSameSVID(t, recv(t, stream), first.SVIDs[0])

	w.set(first)
	w.waitAsked(1)
	w.set(Identity{Status: Pending}) // a renewal that cannot be served keeps what the workload has
	w.waitAsked(1)
	w.set(first)
	w.waitAsked(1)
	w.set(second)
	wantSameSVID(t, recv(t, stream), second.SVIDs[0])
}

func TestBundleChangesReachOnlyWhoTheyConcern(t *testing.T) {
	ca, other := newAuthority(t, trustDomain), newAuthority(t, spiffeid.RequireTrustDomainFromString("example.org"))
	s := newTestServer(t, Options{})
	first := ca.identity(t, "/a")
	w := newScripted(first)
	api := workload.NewSpiffeWorkloadAPIClient(dial(t, s.start("a", w)))
	stream, err := api.FetchX509Bundles(withHeader(testContext(t)), &workload.X509BundlesRequest{})
	must(t, err)
	keys := func() []string {
		t.Helper()
		r, err := stream.Recv()
		must(t, err)
		var names []string
		for name := range r.Bundles {
			names = append(names, name)
		}
		slices.Sort(names)
		return names
	}
	if got := keys(); !slices.Equal(got, []string{"spiffe://cluster.local"}) {
		t.Errorf("bundles of %v", got)
	}
	rotated := ca.identity(t, "/a") // another SVID, the same bundles: nothing to say
	w.set(rotated)
	w.waitAsked(1)
	federated := rotated
	federated.Bundles = x509bundle.NewSet(other.bundle(), ca.bundle(), x509bundle.New(spiffeid.RequireTrustDomainFromString("empty.org")))
	w.set(federated)
	if got := keys(); !slices.Equal(got, []string{"spiffe://cluster.local", "spiffe://example.org"}) {
		t.Errorf("bundles of %v", got)
	}
	w.set(rotated)
	if got := keys(); !slices.Equal(got, []string{"spiffe://cluster.local"}) {
		t.Errorf("bundles of %v after the end of a federation", got)
	}
}

func TestIncompleteIdentityKeepsTheGoodOne(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	good := ca.identity(t, "/a")
	noBundle := good
	noBundle.Bundles = x509bundle.NewSet(x509bundle.New(trustDomain))
	for name, bad := range map[string]Identity{"no svid": {Status: Entitled, Bundles: good.Bundles, TrustDomain: trustDomain}, "empty bundle": noBundle} {
		t.Run(name, func(t *testing.T) {
			s := newTestServer(t, Options{})
			w := newScripted(good)
			cc := dial(t, s.start("a", w))
			live := fetchStream(t, cc)
			recv(t, live)
			w.set(bad)
			w.waitAsked(1)
			wantStatus(t, fetchOnce(t, cc), codes.Unavailable, "could not serialize response")
			next := ca.identity(t, "/a")
			w.set(next)
			wantSameSVID(t, recv(t, live), next.SVIDs[0])
			if n := testutil.ToFloat64(s.metrics.unserved); n != 1 {
				t.Errorf("counted %v unserved identities, want 1 for both streams", n)
			}
			if !strings.Contains(s.log.String(), "identity cannot be served") {
				t.Errorf("log says %q", s.log)
			}
		})
	}
}

// TestWorkloadsNeverMix: whatever a client sends, its socket decides whose SVID it gets.
func TestWorkloadsNeverMix(t *testing.T) {
	conformance.Proves(t, "E10", "E11", "E12")
	const workloads, rotations = 8, 20
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	var addrs []string
	var entries []*scripted
	for n := range workloads {
		entries = append(entries, newScripted(ca.identity(t, fmt.Sprintf("/w/%d", n))))
		addrs = append(addrs, s.start(fmt.Sprint(n), entries[n]))
	}
	var clients sync.WaitGroup
	for n := range workloads {
		own, victim := fmt.Sprintf("spiffe://cluster.local/w/%d", n), fmt.Sprintf("spiffe://cluster.local/w/%d", (n+1)%workloads)
		cc := dial(t, addrs[n], grpc.WithAuthority(filepath.Base(addrs[(n+1)%workloads])), grpc.WithUserAgent(victim))
		ctx := metadata.AppendToOutgoingContext(withHeader(testContext(t)),
			"x-spiffe-id", victim, "spiffe_id", victim, "x-forwarded-for", addrs[(n+1)%workloads], "host", victim, "authorization", "Bearer "+victim)
		clients.Go(func() {
			// The request is another method's, with a field number that names somebody else.
			stream, err := cc.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, workload.SpiffeWorkloadAPI_FetchX509SVID_FullMethodName)
			if err != nil {
				t.Error(err)
				return
			}
			if err := errors.Join(stream.SendMsg(&workload.JWTSVIDRequest{Audience: []string{victim}, SpiffeId: victim}), stream.CloseSend()); err != nil {
				t.Error(err)
				return
			}
			for range rotations {
				var r workload.X509SVIDResponse
				if err := stream.RecvMsg(&r); err != nil {
					t.Error(err)
					return
				}
				if len(r.Svids) != 1 || r.Svids[0].SpiffeId != own {
					t.Errorf("client of %s got %v", own, r.Svids[0].SpiffeId)
				}
				entries[n].set(ca.identity(t, fmt.Sprintf("/w/%d", n)))
			}
		})
	}
	clients.Wait()
}

func TestASocketUsedAgainBelongsToItsNewWorkloadOnly(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	a, b := newScripted(ca.identity(t, "/a")), newScripted(ca.identity(t, "/b"))
	addr := s.start("socket", a)
	cc := dial(t, addr)
	streamA := fetchStream(t, cc)
	recv(t, streamA)
	s.Detach(a)
	_, err := streamA.Recv()
	wantStatus(t, err, codes.PermissionDenied, "no identity issued")

	s.start("socket", b)
	if got := recv(t, fetchStream(t, dial(t, addr))); got.ID.Path() != "/b" {
		t.Errorf("got %s", got.ID)
	}
	s.start("again", a) // a workload may come back
	if got := recv(t, fetchStream(t, dial(t, "unix://"+filepath.Join(s.dir, "again")))); got.ID.Path() != "/a" {
		t.Errorf("got %s", got.ID)
	}
}

func TestDetachEndsOneWorkloadAlone(t *testing.T) {
	conformance.Proves(t, "W16")
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	gone, stays := newScripted(ca.identity(t, "/gone")), newScripted(ca.identity(t, "/stays"))
	goneAddr := s.start("gone", gone)
	otherLis := s.listen("gone2")
	served := make(chan error, 1)
	go func() { served <- s.Serve(otherLis, gone) }()

	cc := dial(t, goneAddr)
	streams := []grpc.ServerStreamingClient[workload.X509SVIDResponse]{
		fetchStream(t, cc), fetchStream(t, cc), fetchStream(t, dial(t, "unix://"+filepath.Join(s.dir, "gone2"))),
	}
	for _, stream := range streams {
		recv(t, stream)
	}
	watch, err := healthpb.NewHealthClient(cc).Watch(testContext(t), &healthpb.HealthCheckRequest{})
	must(t, err)
	_, err = watch.Recv()
	must(t, err)
	held := newScripted(Identity{Status: Pending})
	heldStream := fetchStream(t, dial(t, s.start("held", held)))
	held.waitAsked(1)
	live := fetchStream(t, dial(t, s.start("stays", stays)))
	recv(t, live)

	s.Detach(gone)
	s.Detach(gone)
	for _, stream := range streams {
		_, err := stream.Recv()
		wantStatus(t, err, codes.PermissionDenied, "no identity issued")
	}
	_, err = watch.Recv()
	wantStatus(t, err, codes.PermissionDenied, "no identity issued")
	must(t, <-served)
	wantStatus(t, fetchOnce(t, cc), codes.Unavailable, "") // nobody listens

	s.Detach(held)
	_, err = heldStream.Recv()
	wantStatus(t, err, codes.PermissionDenied, "no identity issued")

	next := ca.identity(t, "/stays")
	stays.set(next)
	wantSameSVID(t, recv(t, live), next.SVIDs[0])
	s.Detach(newScripted(Identity{})) // never attached
	s.Detach(nil)
}

func TestStartThenDetachLeavesNothing(t *testing.T) {
	s := newTestServer(t, Options{})
	for range 200 {
		w := newScripted(Identity{Status: Pending})
		addr := s.start("quick", w)
		s.Detach(w)
		if c, err := net.Dial("unix", strings.TrimPrefix(addr, "unix://")); err == nil {
			_ = c.Close()
			t.Fatal("socket answers after detach")
		}
	}
	if len(s.endpoints) != 0 {
		t.Errorf("%d endpoints left", len(s.endpoints))
	}
}

// TestDetachFreesTheFileSystem: accepted Unix connections keep the mount of their listener busy. After Detach an ordinary
// unmount must succeed, also if clients connect at that very moment.
func TestDetachFreesTheFileSystem(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	if err := unix.Mount("tmpfs", s.dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("needs the right to mount: %v", err)
	}
	must(t, unix.Unmount(s.dir, 0))
	for range 30 {
		must(t, unix.Mount("tmpfs", s.dir, "tmpfs", 0, "size=64k"))
		w := newScripted(ca.identity(t, "/a"))
		addr := s.start("s", w)
		recv(t, fetchStream(t, dial(t, addr)))
		var clients sync.WaitGroup
		for range 4 {
			clients.Go(func() {
				for {
					c, err := net.Dial("unix", strings.TrimPrefix(addr, "unix://"))
					if err != nil {
						return
					}
					defer func() { _ = c.Close() }()
				}
			})
		}
		s.Detach(w)
		if err := unix.Unmount(s.dir, 0); err != nil {
			_ = unix.Unmount(s.dir, unix.MNT_DETACH)
			t.Fatalf("unmount after detach: %v", err)
		}
		clients.Wait()
	}
}

// stubborn opens a stream over plain HTTP/2 with a window of size zero and never reads.
func stubborn(t *testing.T, addr string) {
	t.Helper()
	c, err := net.Dial("unix", strings.TrimPrefix(addr, "unix://"))
	must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	_, err = c.Write([]byte(http2.ClientPreface))
	must(t, err)
	fr := http2.NewFramer(c, c)
	must(t, fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}))
	var block strings.Builder
	enc := hpack.NewEncoder(&block)
	for _, f := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", workload.SpiffeWorkloadAPI_FetchX509SVID_FullMethodName},
		{":authority", "x"}, {"content-type", "application/grpc"}, {"te", "trailers"}, {securityHeader, "true"}} {
		must(t, enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}))
	}
	must(t, fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte(block.String()), EndHeaders: true}))
	must(t, fr.WriteData(1, true, make([]byte, 5)))
}

func TestClientsThatDoNotReadOrSpeakHoldUpNobody(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	for _, end := range []string{"detach", "shutdown"} {
		t.Run(end, func(t *testing.T) {
			s := newTestServer(t, Options{})
			w := newScripted(ca.identity(t, "/a"))
			addr := s.start("a", w)
			silent, err := net.Dial("unix", strings.TrimPrefix(addr, "unix://"))
			must(t, err)
			t.Cleanup(func() { _ = silent.Close() })
			good := fetchStream(t, dial(t, addr))
			recv(t, good)
			stubborn(t, addr)
			w.waitAsked(2)
			for range 200 { // more than the transport takes for a client that does not read
				next := ca.identity(t, "/a")
				w.set(next)
				wantSameSVID(t, recv(t, good), next.SVIDs[0])
			}
			began := time.Now()
			if end == "detach" {
				s.Detach(w)
				_, err := good.Recv()
				wantStatus(t, err, codes.PermissionDenied, "no identity issued")
			} else {
				must(t, s.Shutdown(context.Background()))
				_, err := good.Recv()
				wantStatus(t, err, codes.Unavailable, "")
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("%s took %s", end, took)
			}
		})
	}
}

func TestShutdownEndsAllWithUnavailable(t *testing.T) {
	conformance.Proves(t, "E13")
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	a, pending := newScripted(ca.identity(t, "/a")), newScripted(Identity{Status: Pending})
	lis := s.listen("a")
	served := make(chan error, 1)
	go func() { served <- s.Serve(lis, a) }()
	cc := dial(t, "unix://"+filepath.Join(s.dir, "a"))
	live := fetchStream(t, cc)
	recv(t, live)
	held := fetchStream(t, dial(t, s.start("p", pending)))
	pending.waitAsked(1)
	watch, err := healthpb.NewHealthClient(cc).Watch(testContext(t), &healthpb.HealthCheckRequest{})
	must(t, err)
	_, err = watch.Recv()
	must(t, err)
	// A reflection stream is only ended by its client; shutdown must not wait for it.
	idle, err := reflectionpb.NewServerReflectionClient(dial(t, "unix://"+filepath.Join(s.dir, "p"))).ServerReflectionInfo(testContext(t))
	must(t, err)
	must(t, idle.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}))
	_, err = idle.Recv()
	must(t, err)

	must(t, s.Shutdown(context.Background()))
	_, err = live.Recv()
	wantStatus(t, err, codes.Unavailable, "shutting down")
	_, err = held.Recv()
	wantStatus(t, err, codes.Unavailable, "shutting down")
	_, err = watch.Recv()
	wantStatus(t, err, codes.Unavailable, "shutting down")
	_, err = idle.Recv()
	wantStatus(t, err, codes.Unavailable, "")
	must(t, <-served)
	if err := s.Start(s.listen("late"), a); !errors.Is(err, ErrStopped) {
		t.Errorf("start after shutdown: %v", err)
	}
	must(t, s.Shutdown(context.Background()))
}

func TestShutdownHeedsItsContext(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	addr := s.start("a", newScripted(ca.identity(t, "/a")))
	silent, err := net.Dial("unix", strings.TrimPrefix(addr, "unix://"))
	must(t, err)
	t.Cleanup(func() { _ = silent.Close() })
	recv(t, fetchStream(t, dial(t, addr))) // the listener has accepted in order, so the silent client is in
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("shutdown with an ended context: %v", err)
	}
}

func TestServeReportsAListenerThatFails(t *testing.T) {
	s := newTestServer(t, Options{})
	lis := s.listen("a")
	must(t, lis.Close())
	w := newScripted(Identity{})
	if err := s.Serve(lis, w); !errors.Is(err, net.ErrClosed) {
		t.Errorf("serve on a closed listener: %v", err)
	}
	if err := s.Serve(s.listen("b"), nil); err == nil {
		t.Error("nil workload accepted")
	}
	if err := s.Serve(s.listen("c"), incomparable{}); err == nil {
		t.Error("workload that cannot be found again accepted")
	}
}

type incomparable struct{ _ []int }

func (incomparable) Identity() (Identity, <-chan struct{}) { return Identity{}, nil }

func TestHealth(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	w := newScripted(Identity{Status: Initializing})
	health := healthpb.NewHealthClient(dial(t, s.start("a", w)))
	ctx := testContext(t)
	watch, err := health.Watch(ctx, &healthpb.HealthCheckRequest{Service: "SpiffeWorkloadAPI"})
	must(t, err)
	check := func(want healthpb.HealthCheckResponse_ServingStatus) {
		t.Helper()
		for _, service := range []string{"", "SpiffeWorkloadAPI"} {
			r, err := health.Check(ctx, &healthpb.HealthCheckRequest{Service: service})
			must(t, err)
			if r.Status != want {
				t.Errorf("check %q: %s, want %s", service, r.Status, want)
			}
		}
	}
	next := func(want healthpb.HealthCheckResponse_ServingStatus) {
		t.Helper()
		r, err := watch.Recv()
		must(t, err)
		if r.Status != want {
			t.Errorf("watch: %s, want %s", r.Status, want)
		}
	}
	next(healthpb.HealthCheckResponse_NOT_SERVING)
	check(healthpb.HealthCheckResponse_NOT_SERVING)
	w.set(Identity{Status: Pending})
	w.waitAsked(1)
	check(healthpb.HealthCheckResponse_NOT_SERVING)
	w.set(ca.identity(t, "/a"))
	next(healthpb.HealthCheckResponse_SERVING)
	check(healthpb.HealthCheckResponse_SERVING)
	w.set(Identity{Status: NotEntitled})
	w.waitAsked(1)
	check(healthpb.HealthCheckResponse_SERVING)
	w.set(Identity{Status: Initializing})
	next(healthpb.HealthCheckResponse_NOT_SERVING)

	_, err = health.Check(ctx, &healthpb.HealthCheckRequest{Service: "other"})
	wantStatus(t, err, codes.NotFound, "other")
	list, err := health.List(ctx, &healthpb.HealthListRequest{})
	must(t, err)
	if len(list.Statuses) != 2 || list.Statuses[""].Status != healthpb.HealthCheckResponse_NOT_SERVING {
		t.Errorf("list: %v", list)
	}
	unknown, err := health.Watch(ctx, &healthpb.HealthCheckRequest{Service: "other"})
	must(t, err)
	r, err := unknown.Recv()
	must(t, err)
	if r.Status != healthpb.HealthCheckResponse_SERVICE_UNKNOWN {
		t.Errorf("watch of an unknown service: %s", r.Status)
	}
}

func TestReflectionNeedsNoHeader(t *testing.T) {
	conformance.Proves(t, "E17")
	s := newTestServer(t, Options{})
	stream, err := reflectionpb.NewServerReflectionClient(dial(t, s.start("a", newScripted(Identity{})))).ServerReflectionInfo(testContext(t))
	must(t, err)
	must(t, stream.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}))
	r, err := stream.Recv()
	must(t, err)
	var names []string
	for _, service := range r.GetListServicesResponse().GetService() {
		names = append(names, service.Name)
	}
	want := []string{"SpiffeWorkloadAPI", "envoy.service.secret.v3.SecretDiscoveryService", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"}
	slices.Sort(names)
	if !slices.Equal(names, want) {
		t.Errorf("services %v, want %v", names, want)
	}
	must(t, stream.CloseSend())
}

func TestMetricsAreBoundedAndTrue(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	reg := prometheus.NewPedanticRegistry()
	s := newTestServer(t, Options{Registerer: reg})
	w := newScripted(ca.identity(t, "/a"))
	cc := dial(t, s.start("a", w))
	stream := fetchStream(t, cc)
	recv(t, stream)
	for n := range 20 { // made-up names must not become labels
		err := cc.Invoke(withHeader(testContext(t)), fmt.Sprintf("/SpiffeWorkloadAPI/Made%dUp", n), &emptypb.Empty{}, &emptypb.Empty{})
		wantStatus(t, err, codes.Unimplemented, "")
	}
	const svid = "/SpiffeWorkloadAPI/FetchX509SVID"
	for name, c := range map[string]prometheus.Collector{
		"listeners": s.metrics.listeners, "connections": s.metrics.connections, "streams": s.metrics.open[svid], "messages": s.metrics.messages[svid],
	} {
		if got := testutil.ToFloat64(c); got != 1 {
			t.Errorf("%s: %v, want 1", name, got)
		}
	}
	families, err := reg.Gather()
	must(t, err)
	for _, f := range families {
		if len(f.Metric) > 15 || strings.Contains(f.String(), "Made") || !strings.HasPrefix(f.GetName(), "signet_workloadapi_") {
			t.Errorf("metric family %s has %d series: %s", f.GetName(), len(f.Metric), f)
		}
	}
	must(t, s.Shutdown(context.Background()))
	for name, c := range map[string]prometheus.Collector{
		"listeners": s.metrics.listeners, "connections": s.metrics.connections, "streams": s.metrics.open[svid],
	} {
		if got := testutil.ToFloat64(c); got != 0 {
			t.Errorf("%s: %v after shutdown", name, got)
		}
	}
	if got := testutil.ToFloat64(s.metrics.finished.WithLabelValues(svid, codes.Unavailable.String())); got != 1 {
		t.Errorf("finished as unavailable: %v, want 1", got)
	}
}

func TestEndedClientsFreeTheirStream(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	w := newScripted(ca.identity(t, "/a"))
	cc := dial(t, s.start("a", w))
	ctx, cancel := context.WithCancel(withHeader(context.Background()))
	stream, err := workload.NewSpiffeWorkloadAPIClient(cc).FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	must(t, err)
	recv(t, stream)
	cancel()
	if _, err := stream.Recv(); status.Code(err) != codes.Canceled {
		t.Errorf("got %v", err)
	}
	// Detach waits for open streams: it would take more than a second if the cancelled one were still there.
	began := time.Now()
	s.Detach(w)
	if took := time.Since(began); took > drainTimeout {
		t.Errorf("detach took %s", took)
	}
}

func TestAWorkloadMayComeBackWhileItIsBeingDetached(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	w := newScripted(ca.identity(t, "/a"))
	recv(t, fetchStream(t, dial(t, s.start("old", w)))) // an open stream makes Detach take its time
	old := s.endpoints[w]
	detached := make(chan struct{})
	go func() {
		defer close(detached)
		s.Detach(w)
	}()
	<-old.ended
	addr := s.start("new", w)
	<-detached
	recv(t, fetchStream(t, dial(t, addr)))
}

// slowListener hands a connection over only after it was closed, as a kernel may.
type slowListener struct {
	net.Listener
	closed chan struct{}
	conn   net.Conn
}

func (l *slowListener) Accept() (net.Conn, error) {
	<-l.closed
	time.Sleep(20 * time.Millisecond) // the wait that Detach must not run ahead of
	return l.conn, nil
}

func (l *slowListener) Close() error {
	close(l.closed)
	return l.Listener.Close()
}

func TestDetachWaitsForAnAcceptUnderWay(t *testing.T) {
	s := newTestServer(t, Options{})
	client, server := net.Pipe()
	l := &slowListener{Listener: s.listen("a"), closed: make(chan struct{}), conn: &closeRecorder{Conn: server}}
	ep := newEndpoint(newScripted(Identity{}), s.share, s.metrics, s.Server.log)
	tagged := ep.addListener(l)
	locked := make(chan error, 1)
	go func() {
		_, err := tagged.Accept()
		locked <- err
	}()
	for tagged.accepting.TryLock() { // until Accept has begun
		tagged.accepting.Unlock()
	}
	ep.detach()
	if !l.conn.(*closeRecorder).closed.Load() {
		t.Error("detach returned before a connection was closed")
	}
	if err := <-locked; !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept after the end: %v", err)
	}
	must(t, client.Close())
	ep.dropListener(tagged)
}

type closeRecorder struct {
	net.Conn
	closed atomic.Bool
}

func (c *closeRecorder) Close() error {
	c.closed.Store(true)
	return c.Conn.Close()
}
