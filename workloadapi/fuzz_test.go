// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"net"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// rawCodec sends bytes as they are.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }
func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}
func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

// FuzzRequest sends any header value, method and request bytes. Only the exact header may open the Workload API, no answer
// may name another workload, no stream of the Workload API may end with OK, and the server stays up.
func FuzzRequest(f *testing.F) {
	for _, method := range []string{"/SpiffeWorkloadAPI/FetchX509SVID", "/SpiffeWorkloadAPI/FetchJWTSVID", "/SpiffeWorkloadAPI/FetchX509Bundles",
		"SpiffeWorkloadAPI/FetchX509SVID", "//SpiffeWorkloadAPI/FetchX509SVID", "/spiffeworkloadapi/FetchX509SVID", "/grpc.health.v1.Health/Check", "/", "x"} {
		for _, header := range []string{"true", "True", "TRUE", "", "true ", "true,true"} {
			f.Add(method, header, []byte("\x0a\x01a\x12\x18spiffe://cluster.local/b"))
		}
	}
	ca := newAuthority(f, trustDomain)
	s := newTestServer(f, Options{})
	addr := s.start("a", newScripted(ca.identity(f, "/a")))
	s.start("b", newScripted(ca.identity(f, "/b")))
	cc := dial(f, addr, grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawCodec{})))
	f.Fuzz(func(t *testing.T, method, header string, request []byte) {
		ctx := metadata.AppendToOutgoingContext(testContext(t), securityHeader, header)
		stream, err := cc.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method)
		if err != nil {
			return // refused by the client library
		}
		_ = stream.SendMsg(request)
		_ = stream.CloseSend()
		var got []byte
		err = stream.RecvMsg(&got)
		api := strings.Contains(strings.ToLower(method), "spiffeworkloadapi")
		if err == nil && api && header != "true" {
			t.Errorf("%q answered with header %q", method, header)
		}
		if api && (err != nil && status.Code(err) == codes.OK) {
			t.Errorf("%q ended with OK", method)
		}
		if strings.Contains(string(got), "cluster.local/b") {
			t.Errorf("%q on a's socket named b", method)
		}
	})
}

// FuzzConnection sends any bytes as a connection and then checks that the socket still works.
func FuzzConnection(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
	f.Add([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
	f.Add([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x08\x01\x05\x00\x00\x00\x01\xff\xff\xff\xff\xff\xff\xff\xff"))
	ca := newAuthority(f, trustDomain)
	s := newTestServer(f, Options{})
	w := newScripted(ca.identity(f, "/a"))
	addr := s.start("a", w)
	cc := dial(f, addr)
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := net.Dial("unix", strings.TrimPrefix(addr, "unix://"))
		must(t, err)
		_, _ = c.Write(b)
		must(t, c.Close())
		stream, err := workload.NewSpiffeWorkloadAPIClient(cc).FetchX509SVID(withHeader(t.Context()), &workload.X509SVIDRequest{})
		must(t, err)
		recv(t, stream)
	})
}
