// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// fakeAPI is the least of a Workload API: it refuses the first streams and then
// pushes what comes through svids.
type fakeAPI struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	ca     *testCA
	refuse atomic.Int64
	svids  chan *x509svid.SVID
}

func (f *fakeAPI) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	md, _ := metadata.FromIncomingContext(stream.Context())
	if got := md.Get(securityHeader); len(got) != 1 || got[0] != "true" {
		return status.Error(codes.InvalidArgument, "security header missing from request")
	}
	if f.refuse.Add(-1) >= 0 {
		return status.Error(codes.Unavailable, "not yet")
	}
	for {
		select {
		case svid := <-f.svids:
			if err := stream.Send(f.response(svid)); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func (f *fakeAPI) response(svid *x509svid.SVID) *workload.X509SVIDResponse {
	key, err := x509.MarshalPKCS8PrivateKey(svid.PrivateKey)
	if err != nil {
		f.ca.t.Error(err)
	}
	return &workload.X509SVIDResponse{Svids: []*workload.X509SVID{{
		SpiffeId: svid.ID.String(), X509Svid: svid.Certificates[0].Raw, X509SvidKey: key, Bundle: f.ca.root.Raw,
	}}}
}

func startAPI(t *testing.T, refuse int64) (api *fakeAPI, address string) {
	t.Helper()
	api = &fakeAPI{ca: newTestCA(t), svids: make(chan *x509svid.SVID, 10)}
	api.refuse.Store(refuse)
	path := filepath.Join(t.TempDir(), "s.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	workload.RegisterSpiffeWorkloadAPIServer(server, api)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return api, "unix://" + path
}

// run executes the command line as main does and returns what it printed.
func run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	root := newRootCommand(&out)
	root.SetArgs(args)
	err := root.ExecuteContext(t.Context())
	return out.String(), err
}

func TestFetchCountsAttempts(t *testing.T) {
	for name, test := range map[string]struct {
		refuse   int64
		attempts int
		fails    bool
	}{
		"ready at the first try": {0, 1, false},
		"refused once":           {1, 2, true},
	} {
		t.Run(name, func(t *testing.T) {
			api, address := startAPI(t, test.refuse)
			svid := api.ca.issue("/a", time.Now().Add(time.Hour))
			api.svids <- svid
			got, err := fetch(t.Context(), sourceOptions{socket: address, timeout: 20 * time.Second})
			if err != nil {
				t.Fatal(err)
			}
			if got.Attempts != test.attempts || got.ID != "spiffe://test.example/a" || got.Serial != serialOf(svid.Certificates[0]) || got.Roots != 1 {
				t.Errorf("got %+v", got)
			}
			// Another server: the first one's stream may not have noticed yet that
			// nobody listens, and would take the SVID.
			api, address = startAPI(t, test.refuse)
			api.svids <- api.ca.issue("/a", time.Now().Add(time.Hour))
			out, err := run(t, "fetch", "--socket="+address, "--max-attempts=1", "--timeout=20s")
			if (err != nil) != test.fails {
				t.Errorf("fetch --max-attempts=1: %v, printed %s", err, out)
			}
		})
	}
}

func TestFetchSaysWhyThereIsNoIdentity(t *testing.T) {
	_, address := startAPI(t, 1000)
	_, err := run(t, "fetch", "--socket="+address, "--timeout=300ms")
	if err == nil || !strings.Contains(err.Error(), "not yet") || !strings.Contains(err.Error(), "no identity after 300ms") {
		t.Errorf("error is %v, want the server's words and ours", err)
	}
}

func TestHoldPrintsEachUpdate(t *testing.T) {
	api, address := startAPI(t, 1)
	first, second := api.ca.issue("/a", time.Now().Add(time.Hour)), api.ca.issue("/a", time.Now().Add(time.Hour))
	api.svids <- first
	api.svids <- second
	out, err := run(t, "hold", "--socket="+address, "--updates=2")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(out) {
		var e event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		got = append(got, e.Event+" "+e.Code+e.OwnSerial)
	}
	want := []string{"error Unavailable", "update " + serialOf(first.Certificates[0]), "update " + serialOf(second.Certificates[0])}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("printed %q, want %q", got, want)
	}
}

func TestDialRawPrintsTheCode(t *testing.T) {
	api, address := startAPI(t, 0)
	for _, test := range []struct{ header, method, code string }{
		{"none", "FetchX509SVID", "InvalidArgument"},
		{"True", "FetchX509SVID", "InvalidArgument"},
		{"TRUE", "FetchX509SVID", "InvalidArgument"},
		{"true", "FetchX509SVID", "OK"},
		{"true", "FetchJWTSVID", "Unimplemented"},
		{"none", "Health", "Unimplemented"},
	} {
		if test.code == "OK" {
			api.svids <- api.ca.issue("/a", time.Now().Add(time.Hour))
		}
		out, err := run(t, "dial-raw", "--socket="+address, "--header="+test.header, "--method="+test.method, "--expect="+test.code)
		if err != nil {
			t.Errorf("header %s, method %s: %v", test.header, test.method, err)
		}
		var got rawAnswer
		if err := json.Unmarshal([]byte(out), &got); err != nil {
			t.Fatal(err)
		}
		if got.Code == "OK" && got.ID != "spiffe://test.example/a" {
			t.Errorf("got %+v", got)
		}
	}
	if _, err := run(t, "dial-raw", "--socket="+address, "--header=none", "--expect=OK"); err == nil {
		t.Error("--expect=OK succeeded although the answer was InvalidArgument")
	}
}
