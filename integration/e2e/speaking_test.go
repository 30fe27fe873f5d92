// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"crypto/x509"
	"io"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"

	"github.com/signet-spiffe/signet/internal/conformance"
)

// raw is what `sample dial-raw` prints.
type raw struct {
	Code, Message, ID, Serial, Status string
	Domains                           map[string]string
}

func dialRaw(ctx context.Context, t *testing.T, pod *corev1.Pod, args ...string) raw {
	t.Helper()
	return decodeJSON[raw](t, mustExecute(ctx, t, pod, append([]string{"dial-raw"}, args...)...))
}

// Missing, "True" or "TRUE" security header: InvalidArgument; health and
// reflection work without it.
func testTheSecurityHeaderIsDemanded(t *testing.T) {
	conformance.Proves(t, "E6", "E7", "E17")
	t.Parallel()
	ctx := needCluster(t, testTimeout)
	ns := newNamespace(ctx, t)
	pod := runPod(ctx, t, ns, podSpec{Name: "app", Node: nodeOne})
	for _, header := range []string{"none", "True", "TRUE", "false", ""} {
		for _, method := range []string{"FetchX509SVID", "FetchX509Bundles", "FetchJWTBundles", "FetchJWTSVID", "ValidateJWTSVID"} {
			got := dialRaw(ctx, t, pod, "--header="+header, "--method="+method)
			if got.Code != codes.InvalidArgument.String() || !strings.Contains(got.Message, "security header") {
				t.Errorf("%s with header %q answered %s: %s, want InvalidArgument for the header", method, header, got.Code, got.Message)
			}
		}
	}
	if got := dialRaw(ctx, t, pod, "--header=true"); got.Code != codes.OK.String() || got.ID != spiffeID(ns, "default") {
		t.Errorf("with header \"true\" the answer was %+v, want %s", got, spiffeID(ns, "default"))
	}
	if got := dialRaw(ctx, t, pod, "--header=none", "--method=Health"); got.Code != codes.OK.String() || got.Status != "SERVING" {
		t.Errorf("health without the header answered %+v, want SERVING", got)
	}
	conn := node(ctx, t, nodeOne).podSocket(t, pod)
	if services := reflected(ctx, t, conn); !strings.Contains(services, "SpiffeWorkloadAPI") {
		t.Errorf("reflection without the header lists %s, want SpiffeWorkloadAPI among them", services)
	}
}

// reflected lists the services that a server says it has.
func reflected(ctx context.Context, t *testing.T, conn *grpc.ClientConn) string {
	t.Helper()
	stream, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
	if err != nil {
		t.Fatal(err)
	}
	err = stream.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}})
	if err != nil {
		t.Fatal(err)
	}
	answer, err := stream.Recv()
	if err != nil {
		t.Fatalf("reflection: %v", err)
	}
	var names []string
	for _, s := range answer.GetListServicesResponse().GetService() {
		names = append(names, s.GetName())
	}
	return strings.Join(names, ", ")
}

// JWT off: bundles are an empty key set, SVIDs are not to be had, and both say so
// in a way that clients understand.
func testJWTIsSaidToBeOff(t *testing.T) {
	conformance.Proves(t, "W17", "W22", "B4")
	t.Parallel()
	ctx := needCluster(t, testTimeout)
	ns := newNamespace(ctx, t)
	pod := runPod(ctx, t, ns, podSpec{Name: "app"})
	td := "spiffe://" + trustDomain
	if got := dialRaw(ctx, t, pod, "--method=FetchJWTBundles"); got.Domains[td] != `{"keys":[]}` {
		t.Errorf("JWT bundles are %+v, want an empty key set for %s", got, td)
	}
	got := dialRaw(ctx, t, pod, "--method=FetchJWTSVID")
	if got.Code != codes.Unimplemented.String() || !strings.Contains(got.Message, "JWT functionality is disabled") {
		t.Errorf("FetchJWTSVID answered %s: %s, want Unimplemented, \"JWT functionality is disabled\"", got.Code, got.Message)
	}
	if got := dialRaw(ctx, t, pod, "--method=FetchX509Bundles"); len(got.Domains) != 1 || got.Domains[td] == "" {
		t.Errorf("X.509 bundles are %+v, want those of %s", got, td)
	}
}

// Pod A can never get pod B's SVID, whatever it sends: neither by what it calls
// itself, nor in metadata, nor by asking for B by name.
func testAPodGetsItsOwnIdentityOnly(t *testing.T) {
	conformance.Proves(t, "E10", "E11", "E12")
	t.Parallel()
	ctx := needCluster(t, testTimeout)
	ns := newNamespace(ctx, t)
	newServiceAccount(ctx, t, ns, "a")
	newServiceAccount(ctx, t, ns, "b")
	a := runPod(ctx, t, ns, podSpec{Name: "a", ServiceAccount: "a", Node: nodeOne})
	b := runPod(ctx, t, ns, podSpec{Name: "b", ServiceAccount: "b", Node: nodeOne})
	ofA, ofB := fetch(ctx, t, a), fetch(ctx, t, b)
	if ofA.ID != spiffeID(ns, "a") || ofB.ID != spiffeID(ns, "b") {
		t.Errorf("a is %s and b is %s", ofA.ID, ofB.ID)
	}

	conn := node(ctx, t, nodeOne).podSocket(t, a)
	api := workload.NewSpiffeWorkloadAPIClient(conn)
	for name, claims := range map[string][]string{
		"nothing":           nil,
		"its SPIFFE ID":     {"spiffe-id", ofB.ID, "x-spiffe-id", ofB.ID},
		"its pod":           {"pod-uid", string(b.UID), "pod-name", b.Name, "namespace", ns},
		"its socket":        {":authority", "b", "host", "b", "x-forwarded-for", "b"},
		"an authority of B": {"authorization", "Bearer " + string(b.UID)},
	} {
		claims := append([]string{"workload.spiffe.io", "true"}, claims...)
		stream, err := api.FetchX509SVID(withMetadata(ctx, claims...), &workload.X509SVIDRequest{})
		if err != nil {
			t.Fatal(err)
		}
		answer, err := stream.Recv()
		if err != nil {
			// Being refused is safe too, but nothing here is malformed beyond ":authority".
			if status.Code(err) == codes.OK {
				t.Errorf("claiming %s: the stream ended with OK", name)
			}
			continue
		}
		for _, svid := range answer.GetSvids() {
			if svid.GetSpiffeId() != ofA.ID {
				t.Errorf("claiming %s, pod a got %s", name, svid.GetSpiffeId())
			}
			if leaf, err := x509.ParseCertificates(svid.GetX509Svid()); err != nil || leaf[0].URIs[0].String() != ofA.ID {
				t.Errorf("claiming %s, pod a got a certificate of %v (%v)", name, leaf, err)
			}
		}
	}
	_, err := api.FetchJWTSVID(withMetadata(ctx, "workload.spiffe.io", "true"),
		&workload.JWTSVIDRequest{Audience: []string{"x"}, SpiffeId: ofB.ID})
	if err == nil {
		t.Error("pod a got a JWT-SVID of b")
	}
	// Nothing of b is to be seen in a's volume.
	for name := range list(ctx, t, a, mountPath) {
		if strings.Contains(name, string(b.UID)) {
			t.Errorf("pod a sees %s of b", name)
		}
	}
}

func withMetadata(ctx context.Context, pairs ...string) context.Context {
	var clean []string
	for i := 0; i+1 < len(pairs); i += 2 {
		if !strings.HasPrefix(pairs[i], ":") { // gRPC's own
			clean = append(clean, pairs[i], pairs[i+1])
		}
	}
	return metadata.AppendToOutgoingContext(ctx, clean...)
}

// The end of a volume ends its streams, and never with OK; health on the socket
// says the same to who asks before.
func testTheEndOfAVolumeEndsItsStreams(t *testing.T) {
	conformance.Proves(t, "W29")
	t.Parallel()
	ctx := needCluster(t, testTimeout)
	ns := newNamespace(ctx, t)
	pod := runPod(ctx, t, ns, podSpec{Name: "app", Node: nodeOne})
	conn := node(ctx, t, nodeOne).podSocket(t, pod)
	health, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
	if err != nil || health.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("health is %v, %v; want SERVING", health.GetStatus(), err)
	}
	stream := openStream(ctx, t, conn)
	deletePod(ctx, t, pod)
	code := endOf(t, stream)
	if code != codes.PermissionDenied && code != codes.Unavailable {
		t.Errorf("the stream ended with %s, want PermissionDenied or Unavailable", code)
	}
}

type svidStream = grpc.ServerStreamingClient[workload.X509SVIDResponse]

// openStream opens an X.509-SVID stream and takes its first message.
func openStream(ctx context.Context, t *testing.T, conn *grpc.ClientConn) svidStream {
	t.Helper()
	stream, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(withMetadata(ctx, "workload.spiffe.io", "true"), &workload.X509SVIDRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatalf("first message: %v", err)
	}
	return stream
}

// endOf reads a stream to its end and returns with which code it ended.
func endOf(t *testing.T, stream svidStream) codes.Code {
	t.Helper()
	for {
		_, err := stream.Recv()
		if err == io.EOF { // gRPC's spelling of OK
			return codes.OK
		}
		if err != nil {
			return status.Code(err)
		}
	}
}
