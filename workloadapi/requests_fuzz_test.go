// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// twoSockets serves a and b and returns a's address, and what gives a another SVID.
func twoSockets(f *testing.F) (addr string, rotate func(testing.TB)) {
	ca := newAuthority(f, trustDomain)
	s := newTestServer(f, Options{})
	a := newScripted(ca.identity(f, "/a"))
	s.start("b", newScripted(ca.identity(f, "/b")))
	return s.start("a", a), func(t testing.TB) { a.set(ca.identity(t, "/a")) }
}

// FuzzMessages sends any bytes as the message of any method, with the security header. A message that parses is answered as
// its method demands, one that does not is an error; nothing is answered in another workload's name.
func FuzzMessages(f *testing.F) {
	methods := []string{"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"}
	requests := map[string]proto.Message{}
	desc := workload.SpiffeWorkloadAPI_ServiceDesc
	for _, m := range desc.Methods {
		methods = append(methods, "/"+desc.ServiceName+"/"+m.MethodName)
	}
	for _, m := range desc.Streams {
		methods = append(methods, "/"+desc.ServiceName+"/"+m.StreamName)
	}
	for method, m := range map[string]proto.Message{
		"FetchX509SVID": &workload.X509SVIDRequest{}, "FetchX509Bundles": &workload.X509BundlesRequest{}, "FetchJWTBundles": &workload.JWTBundlesRequest{},
		"FetchJWTSVID": &workload.JWTSVIDRequest{}, "ValidateJWTSVID": &workload.ValidateJWTSVIDRequest{},
		"FetchWITSVID": &workload.WITSVIDRequest{}, "FetchWITBundles": &workload.WITBundlesRequest{},
	} {
		requests["/"+desc.ServiceName+"/"+method] = m
	}
	full, err := proto.Marshal(&workload.JWTSVIDRequest{Audience: []string{"a", "b"}, SpiffeId: "spiffe://cluster.local/b"})
	must(f, err)
	for n := range methods {
		for _, message := range [][]byte{nil, full, {0x0a, 0xff}, {0x0b}, bytes.Repeat([]byte{0x0a, 0}, 1000)} {
			f.Add(uint8(n), message)
		}
	}
	addr, _ := twoSockets(f)
	cc := dial(f, addr, grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawCodec{})))
	f.Fuzz(func(t *testing.T, n uint8, message []byte) {
		method := methods[int(n)%len(methods)]
		ctx, cancel := context.WithTimeout(withHeader(t.Context()), patience)
		defer cancel()
		stream, err := cc.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method)
		must(t, err)
		_ = stream.SendMsg(message)
		_ = stream.CloseSend()
		var got []byte
		err = stream.RecvMsg(&got)
		if bytes.Contains(got, []byte("cluster.local/b")) {
			t.Errorf("%s on a's socket named b", method)
		}
		request := requests[method]
		if request == nil {
			return // no method of the Workload API
		}
		code := status.Code(err)
		if err != nil && code == codes.OK {
			t.Errorf("%s ended with OK", method)
		}
		if proto.Unmarshal(message, proto.Clone(request)) != nil {
			if code != codes.Internal { // gRPC's own word for a message that is none
				t.Errorf("%s with a message that does not parse: %v", method, err)
			}
			return
		}
		if allowed := []codes.Code{codes.OK, codes.InvalidArgument, codes.Unimplemented}; !slices.Contains(allowed, code) {
			t.Errorf("%s: %v", method, err)
		}
	})
}

// FuzzJWTRequests sends any values of the two requests that have fields. While JWT is off, none of them gets anything.
func FuzzJWTRequests(f *testing.F) {
	for _, audience := range []string{"", "db", "a\x00b", strings.Repeat("a", 5000)} {
		for _, value := range []string{"", "spiffe://cluster.local/b", "spiffe://cluster.local/%62", "a.b.c", "..", "eyJhbGciOiJub25lIn0.e30.", "ä"} {
			f.Add(audience, value)
		}
	}
	addr, _ := twoSockets(f)
	api := workload.NewSpiffeWorkloadAPIClient(dial(f, addr))
	f.Fuzz(func(t *testing.T, audience, value string) {
		ctx, cancel := context.WithTimeout(withHeader(t.Context()), patience)
		defer cancel()
		var audiences []string
		if audience != "" {
			audiences = []string{audience}
		}
		svid, err := api.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: audiences, SpiffeId: value})
		check := func(method string, err error, mustBeWrong bool) {
			t.Helper()
			code := status.Code(err)
			switch {
			case err == nil || !slices.Contains([]codes.Code{codes.InvalidArgument, codes.Unimplemented, codes.Internal, codes.ResourceExhausted}, code):
				t.Errorf("%s(%q, %q): %v", method, audience, value, err)
			case mustBeWrong && code == codes.Unimplemented:
				t.Errorf("%s(%q, %q) is no valid request: %v", method, audience, value, err)
			case len(status.Convert(err).Message()) > 20_000:
				t.Errorf("%s repeats all that it was sent", method)
			}
		}
		check("FetchJWTSVID", err, audience == "")
		if svid != nil {
			t.Errorf("got %v", svid)
		}
		valid, err := api.ValidateJWTSVID(ctx, &workload.ValidateJWTSVIDRequest{Audience: audience, Svid: value})
		check("ValidateJWTSVID", err, audience == "" || value == "")
		if valid != nil {
			t.Errorf("%q is valid", value)
		}
	})
}

// FuzzFrames sends well-formed HTTP/2 frames of any type, in any order, on a connection that has begun as a real client's
// does, with a request open. The server may end that connection. It may not end another, and a's other clients are served.
func FuzzFrames(f *testing.F) {
	frame := func(kind http2.FrameType, flags http2.Flags, stream uint32, payload string) []byte {
		b := []byte{byte(kind), byte(flags)}
		b = binary.BigEndian.AppendUint32(b, stream)
		b = append(b, byte(len(payload)))
		return append(b, payload...)
	}
	f.Add(frame(http2.FrameData, http2.FlagDataEndStream, 1, "\x00\x00\x00\x00\x00"))
	f.Add(frame(http2.FrameData, 0, 1, "\x00\xff\xff\xff\xff"))
	f.Add(bytes.Repeat(frame(http2.FrameRSTStream, 0, 1, "\x00\x00\x00\x08"), 20))
	f.Add(frame(http2.FrameSettings, 0, 0, "\x00\x04\xff\xff\xff\xff"))
	f.Add(frame(http2.FrameSettings, 0, 0, "\x00\x04\x00\x00\x00\x00"))
	f.Add(frame(http2.FrameWindowUpdate, 0, 0, "\x7f\xff\xff\xff"))
	f.Add(frame(http2.FrameWindowUpdate, 0, 1, "\x00\x00\x00\x00"))
	f.Add(bytes.Repeat(frame(http2.FramePing, 0, 0, "12345678"), 20))
	f.Add(frame(http2.FrameGoAway, 0, 0, "\x00\x00\x00\x01\x00\x00\x00\x02"))
	f.Add(frame(http2.FrameContinuation, 4, 1, "\x82"))
	f.Add(frame(http2.FramePushPromise, 4, 1, "\x00\x00\x00\x02\x82"))
	f.Add(frame(http2.FrameHeaders, 5, 3, "\x82\x84"))
	f.Add(frame(http2.FramePriority, 0, 1, "\x00\x00\x00\x01\x10"))
	f.Add(frame(http2.FrameType(0x42), 0xff, 1<<31, "?"))
	addr, rotate := twoSockets(f)
	ctx, cancel := context.WithCancel(withHeader(context.Background())) // the other client lives through all of it
	f.Cleanup(cancel)
	other, err := workload.NewSpiffeWorkloadAPIClient(dial(f, addr)).FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	must(f, err)
	recv(f, other)
	f.Fuzz(func(t *testing.T, script []byte) {
		c, err := net.Dial("unix", strings.TrimPrefix(addr, "unix://"))
		must(t, err)
		must(t, c.SetDeadline(time.Now().Add(patience)))
		_, err = io.WriteString(c, http2.ClientPreface)
		must(t, err)
		framer := http2.NewFramer(c, c)
		framer.AllowIllegalWrites = true
		must(t, framer.WriteSettings())
		must(t, framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: requestHeaders(workload.SpiffeWorkloadAPI_FetchX509SVID_FullMethodName)}))
		for len(script) >= 7 {
			n := min(int(script[6]), len(script)-7)
			err := framer.WriteRawFrame(http2.FrameType(script[0]), http2.Flags(script[1]), binary.BigEndian.Uint32(script[2:]), script[7:7+n])
			if err != nil {
				break // the server has had enough
			}
			script = script[7+n:]
		}
		must(t, c.Close())
		rotate(t)
		if got := recv(t, other); got.ID.Path() != "/a" {
			t.Errorf("a's client got %s", got.ID)
		}
	})
}

// requestHeaders are those that a gRPC client sends.
func requestHeaders(method string) []byte {
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, field := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", method}, {":authority", "localhost"},
		{"content-type", "application/grpc"}, {"te", "trailers"}, {securityHeader, "true"}} {
		_ = encoder.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]}) // a Buffer takes everything
	}
	return block.Bytes()
}
