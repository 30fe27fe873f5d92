// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	debugv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/debug/v1"
	loggerv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/logger/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/signet-spiffe/signet/agent/issue"
	"github.com/signet-spiffe/signet/agent/workload"
	agentv1 "github.com/signet-spiffe/signet/proto/signet/agent/v1"
)

func TestGetVersion(t *testing.T) {
	got, err := start(t).client(t).GetVersion(t.Context(), &agentv1.GetVersionRequest{})
	must(t, err)
	if got.Version != "v9.8.7" || got.Node != "node-1" || got.Driver != "driver.example" || got.TrustDomain != "example.org" ||
		!strings.HasPrefix(got.GoVersion, "go1.") || time.Since(got.StartedAt.AsTime()) < 90*time.Second {
		t.Errorf("%v", got)
	}
}

// Every call is in the log with who called, and what became of it.
func TestCallsAreLogged(t *testing.T) {
	f := start(t)
	_, err := f.client(t).GetVersion(t.Context(), &agentv1.GetVersionRequest{})
	must(t, err)
	_, err = f.client(t).RenewWorkloads(t.Context(), &agentv1.RenewWorkloadsRequest{})
	wantCode(t, "renewing nothing", err, codes.InvalidArgument)
	for _, want := range []string{
		fmt.Sprintf("level=INFO msg=\"admin call\" method=/signet.agent.v1.AgentService/GetVersion peer.pid=%d peer.uid=%d code=OK", os.Getpid(), os.Getuid()),
		fmt.Sprintf("method=/signet.agent.v1.AgentService/RenewWorkloads peer.pid=%d peer.uid=%d code=InvalidArgument", os.Getpid(), os.Getuid()),
	} {
		if !strings.Contains(f.log.String(), want) {
			t.Errorf("the log has no %q:\n%s", want, f.log)
		}
	}
}

func list(t *testing.T, c agentv1.AgentServiceClient, r *agentv1.ListWorkloadsRequest) (ids []string, next string) {
	t.Helper()
	page, err := c.ListWorkloads(t.Context(), r)
	must(t, err)
	for _, w := range page.Workloads {
		ids = append(ids, w.VolumeId)
	}
	return ids, page.NextPageToken
}

func TestListWorkloads(t *testing.T) {
	f := start(t)
	c := f.client(t)
	if ids, next := list(t, c, nil); len(ids) != 0 || next != "" {
		t.Errorf("with no volume: %v, %q", ids, next)
	}
	f.publish(t, "v3", "shop", "cart")
	f.publish(t, "v1", "shop", "cart")
	f.publish(t, "v2", "bank", "vault")
	for _, tt := range []struct {
		selector *agentv1.WorkloadSelector
		want     []string
	}{
		{nil, []string{"v1", "v2", "v3"}},
		{&agentv1.WorkloadSelector{Namespace: "shop"}, []string{"v1", "v3"}},
		{&agentv1.WorkloadSelector{Namespace: "bank", PodName: "vault"}, []string{"v2"}},
		{&agentv1.WorkloadSelector{Namespace: "shop", PodName: "vault"}, nil},
		{&agentv1.WorkloadSelector{VolumeId: "v3"}, []string{"v3"}},
		{&agentv1.WorkloadSelector{VolumeId: "v3", Namespace: "bank"}, nil},
	} {
		if ids, _ := list(t, c, &agentv1.ListWorkloadsRequest{Selector: tt.selector}); !slices.Equal(ids, tt.want) {
			t.Errorf("%v selects %v, want %v", tt.selector, ids, tt.want)
		}
	}
	_, err := c.ListWorkloads(t.Context(), &agentv1.ListWorkloadsRequest{Selector: &agentv1.WorkloadSelector{PodName: "cart"}})
	wantCode(t, "a pod without a namespace", err, codes.InvalidArgument, "namespace")

	// Volumes that go between two pages take no other with them.
	first, next := list(t, c, &agentv1.ListWorkloadsRequest{PageSize: 2})
	must(t, f.registry.Unpublish(t.Context(), "v2"))
	second, end := list(t, c, &agentv1.ListWorkloadsRequest{PageSize: 2, PageToken: next})
	if !slices.Equal(first, []string{"v1", "v2"}) || !slices.Equal(second, []string{"v3"}) || end != "" {
		t.Errorf("pages %v (%q) and %v (%q)", first, next, second, end)
	}
	if ids, next := list(t, c, &agentv1.ListWorkloadsRequest{PageSize: 2}); len(ids) != 2 || next != "" {
		t.Errorf("a full last page: %v, %q", ids, next)
	}

	page, err := c.ListWorkloads(t.Context(), &agentv1.ListWorkloadsRequest{Selector: &agentv1.WorkloadSelector{VolumeId: "v1"}})
	must(t, err)
	w, s := page.Workloads[0], f.registry.List()[0]
	if w.Namespace != "shop" || w.PodName != "cart" || w.PodUid != "uid-cart" || w.ServiceAccount != "account" || w.SpiffeId != "spiffe://example.org/ns/shop/sa/account" ||
		w.State != agentv1.WorkloadState_WORKLOAD_STATE_READY || w.Serial != s.Serial || w.Serial == "" || !w.NotBefore.AsTime().Equal(s.NotBefore) || !w.NotAfter.AsTime().Equal(s.NotAfter) ||
		w.KeyType != "P-256" || !w.NextRenewal.AsTime().Equal(s.Next) || w.InFlight || w.Failures != 0 || w.LastError != "" || w.LastErrorAt != nil {
		t.Errorf("%v\nis not %+v", w, s)
	}
}

// Each state of the lifecycle has its own here.
func TestStates(t *testing.T) {
	for want, s := range map[agentv1.WorkloadState]workload.Standing{
		agentv1.WorkloadState_WORKLOAD_STATE_PENDING: {Phase: workload.Pending},
		agentv1.WorkloadState_WORKLOAD_STATE_READY:   {Phase: workload.Ready},
		agentv1.WorkloadState_WORKLOAD_STATE_OVERDUE: {Phase: workload.Ready, Lateness: workload.Overdue},
		agentv1.WorkloadState_WORKLOAD_STATE_EXPIRED: {Phase: workload.Ready, Lateness: workload.Expired},
	} {
		if got := state(s); got != want {
			t.Errorf("%+v is %s, want %s", s, got, want)
		}
	}
}

// recvUntil reads messages until done, which sees everything that was told.
func recvUntil(t *testing.T, stream grpc.ServerStreamingClient[agentv1.WatchWorkloadsResponse], followed map[string]*agentv1.Workload, done func(*agentv1.WatchWorkloadsResponse) bool) {
	t.Helper()
	for {
		m, err := stream.Recv()
		must(t, err)
		for _, w := range m.Workloads {
			followed[w.VolumeId] = w
		}
		for _, id := range m.RemovedVolumeIds {
			delete(followed, id)
		}
		if done(m) {
			return
		}
	}
}

func watching(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// A watch begins with the present state, even an empty one, and goes on with what
// changes; what does not match is never told.
func TestWatchWorkloads(t *testing.T) {
	f := start(t)
	stream, err := f.client(t).WatchWorkloads(watching(t), &agentv1.WatchWorkloadsRequest{Selector: &agentv1.WorkloadSelector{Namespace: "shop"}})
	must(t, err)
	m, err := stream.Recv()
	if err != nil || !m.Synced || len(m.Workloads)+len(m.RemovedVolumeIds) != 0 {
		t.Fatalf("the first message, of no volume: %v, %v", m, err)
	}
	followed := map[string]*agentv1.Workload{}
	f.publish(t, "v2", "bank", "vault")
	f.publish(t, "v1", "shop", "cart")
	recvUntil(t, stream, followed, func(*agentv1.WatchWorkloadsResponse) bool { return followed["v1"].GetSerial() != "" })
	before := followed["v1"].Serial

	late, err := f.client(t).WatchWorkloads(watching(t), &agentv1.WatchWorkloadsRequest{})
	must(t, err)
	if m, err := late.Recv(); err != nil || !m.Synced || len(m.Workloads) != 2 {
		t.Errorf("the first message, of two volumes: %v, %v", m, err)
	}

	renewed, err := f.client(t).RenewWorkloads(t.Context(), &agentv1.RenewWorkloadsRequest{Selector: &agentv1.WorkloadSelector{Namespace: "shop", PodName: "cart"}})
	if err != nil || len(renewed.Renewals) != 1 || renewed.Renewals[0].Serial != before || renewed.Renewals[0].VolumeId != "v1" || renewed.Renewals[0].Namespace != "shop" || renewed.Renewals[0].PodName != "cart" {
		t.Fatalf("renew: %v, %v", renewed, err)
	}
	recvUntil(t, stream, followed, func(*agentv1.WatchWorkloadsResponse) bool { return followed["v1"].Serial != before })
	must(t, f.registry.Unpublish(t.Context(), "v2"))
	must(t, f.registry.Unpublish(t.Context(), "v1"))
	recvUntil(t, stream, followed, func(m *agentv1.WatchWorkloadsResponse) bool {
		if slices.Contains(m.RemovedVolumeIds, "v2") {
			t.Error("told that a volume of another namespace is gone")
		}
		return len(m.RemovedVolumeIds) > 0
	})
	if len(followed) != 0 {
		t.Errorf("left: %v", followed)
	}

	refused, err := f.client(t).WatchWorkloads(watching(t), &agentv1.WatchWorkloadsRequest{Selector: &agentv1.WorkloadSelector{PodName: "cart"}})
	must(t, err)
	_, err = refused.Recv()
	wantCode(t, "watching a pod without a namespace", err, codes.InvalidArgument)
}

// collector takes what a watch sends.
type collector struct {
	grpc.ServerStreamingServer[agentv1.WatchWorkloadsResponse]
	messages []*agentv1.WatchWorkloadsResponse
}

func (c *collector) Send(m *agentv1.WatchWorkloadsResponse) error {
	c.messages = append(c.messages, m)
	return nil
}

// Many volumes come in several messages, of which the last alone says that this is
// all.
func TestWatchIsSentInPortions(t *testing.T) {
	many := make([]workload.Standing, 2*maxPage+1)
	for i := range many {
		many[i].Volume = fmt.Sprintf("v%05d", i)
	}
	var c collector
	w := &watch{stream: &c, sent: map[string]bool{}}
	must(t, w.send(slices.Clone(many), nil))
	told := 0
	for i, m := range c.messages {
		told += len(m.Workloads)
		if last := i == len(c.messages)-1; m.Synced != last || len(m.Workloads) > maxPage {
			t.Errorf("message %d of %d has %d workloads, synced %t", i, len(c.messages), len(m.Workloads), m.Synced)
		}
	}
	if told != len(many) {
		t.Errorf("%d volumes were told, want %d", told, len(many))
	}
	c.messages = nil
	must(t, w.send(slices.Clone(many), []string{"nobody's"}))
	for _, m := range c.messages {
		if !m.Synced || len(m.RemovedVolumeIds) != 0 {
			t.Errorf("after the whole state was told: synced %t, removed %v", m.Synced, m.RemovedVolumeIds)
		}
	}
}

func TestRenewWorkloads(t *testing.T) {
	f := start(t)
	c := f.client(t)
	f.publish(t, "v1", "shop", "cart")
	f.publish(t, "v2", "shop", "till")
	for _, tt := range []struct {
		name string
		r    *agentv1.RenewWorkloadsRequest
		want codes.Code
	}{
		{"nothing", nil, codes.InvalidArgument},
		{"an empty selector", &agentv1.RenewWorkloadsRequest{Selector: &agentv1.WorkloadSelector{}}, codes.InvalidArgument},
		{"a selector and all", &agentv1.RenewWorkloadsRequest{Selector: &agentv1.WorkloadSelector{Namespace: "shop"}, All: true}, codes.InvalidArgument},
		{"a pod without a namespace", &agentv1.RenewWorkloadsRequest{Selector: &agentv1.WorkloadSelector{PodName: "cart"}}, codes.InvalidArgument},
		{"an unknown volume", &agentv1.RenewWorkloadsRequest{Selector: &agentv1.WorkloadSelector{VolumeId: "v9"}}, codes.NotFound},
		{"an unknown pod", &agentv1.RenewWorkloadsRequest{Selector: &agentv1.WorkloadSelector{Namespace: "shop", PodName: "x"}}, codes.NotFound},
	} {
		_, err := c.RenewWorkloads(t.Context(), tt.r)
		wantCode(t, tt.name, err, tt.want)
	}
	for name, r := range map[string]*agentv1.RenewWorkloadsRequest{
		"v1":    {Selector: &agentv1.WorkloadSelector{VolumeId: "v1"}},
		"v2":    {Selector: &agentv1.WorkloadSelector{Namespace: "shop", PodName: "till"}},
		"v1 v2": {Selector: &agentv1.WorkloadSelector{Namespace: "shop"}},
		"v2 v1": {All: true},
	} {
		got, err := c.RenewWorkloads(t.Context(), r)
		must(t, err)
		var ids []string
		for _, renewal := range got.Renewals {
			ids = append(ids, renewal.VolumeId)
		}
		want := strings.Fields(name)
		slices.Sort(want)
		if !slices.Equal(ids, want) {
			t.Errorf("%v renews %v, want %v", r, ids, want)
		}
	}
}

// A renewal that is refused shows, and leaves the SVID in use alone.
func TestRenewalThatFails(t *testing.T) {
	f := start(t)
	f.publish(t, "v1", "shop", "cart")
	before := f.registry.List()[0]
	f.issuer.refuseWith(fmt.Errorf("%w: not today", issue.ErrDenied))
	stream, err := f.client(t).WatchWorkloads(watching(t), &agentv1.WatchWorkloadsRequest{})
	must(t, err)
	_, err = f.client(t).RenewWorkloads(t.Context(), &agentv1.RenewWorkloadsRequest{All: true})
	must(t, err)
	followed := map[string]*agentv1.Workload{}
	recvUntil(t, stream, followed, func(*agentv1.WatchWorkloadsResponse) bool { return followed["v1"].GetFailures() > 0 })
	if w := followed["v1"]; w.Serial != before.Serial || w.State != agentv1.WorkloadState_WORKLOAD_STATE_READY || !strings.Contains(w.LastError, "not today") || w.LastErrorAt == nil {
		t.Errorf("%v", w)
	}
}

// busy has volumes that do not answer, or answer oddly.
type busy struct {
	Workloads
	err error
}

func (b busy) Renew(ctx context.Context, _ string) (workload.Renewal, error) {
	if b.err != nil {
		return workload.Renewal{}, b.err
	}
	<-ctx.Done()
	return workload.Renewal{}, fmt.Errorf("renew: %w", context.Cause(ctx))
}

// Every error of the lifecycle has its code.
func TestErrorsOfTheLifecycle(t *testing.T) {
	for name, tt := range map[string]struct {
		err  error
		want codes.Code
	}{
		"stopping":            {fmt.Errorf("renew: %w: %w", issue.ErrUnavailable, issue.ErrStopping), codes.Unavailable},
		"gone meanwhile":      {fmt.Errorf("%w: v1", workload.ErrUnknown), codes.NotFound},
		"of another kind":     {errors.New("of another kind"), codes.Internal},
		"with a code already": {fmt.Errorf("as said: %w", status.Error(codes.DataLoss, "words")), codes.DataLoss},
	} {
		t.Run(name, func(t *testing.T) {
			f := start(t, func(o *Options) { o.Workloads = busy{o.Workloads, tt.err} })
			f.publish(t, "v1", "shop", "cart")
			_, err := f.client(t).RenewWorkloads(t.Context(), &agentv1.RenewWorkloadsRequest{All: true})
			wantCode(t, name, err, tt.want)
		})
	}
	f := start(t, func(o *Options) { o.Workloads = busy{Workloads: o.Workloads} })
	f.publish(t, "v1", "shop", "cart")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := f.client(t).RenewWorkloads(ctx, &agentv1.RenewWorkloadsRequest{All: true})
	wantCode(t, "a volume that hangs", err, codes.DeadlineExceeded)
}

// What a handler returns when its call's time is over, or its caller has gone.
func TestStatusOfContextErrors(t *testing.T) {
	for err, want := range map[error]codes.Code{
		context.DeadlineExceeded: codes.DeadlineExceeded, context.Canceled: codes.Canceled, errStopping: codes.Unavailable, errors.New("?"): codes.Internal,
	} {
		wantCode(t, err.Error(), statusOf(fmt.Errorf("renew: %w", err)), want)
	}
	wantCode(t, "no error", statusOf(nil), codes.OK)
}

// A request is a few names.
func TestHugeRequestsAreRefused(t *testing.T) {
	f := start(t)
	_, err := f.client(t).ListWorkloads(t.Context(), &agentv1.ListWorkloadsRequest{PageToken: strings.Repeat("x", maxRequest)})
	wantCode(t, "a huge request", err, codes.ResourceExhausted)
}

// An agent that stops ends its streams with Unavailable, and Run without an error.
func TestStopEndsStreams(t *testing.T) {
	f := start(t)
	stream, err := f.client(t).WatchWorkloads(watching(t), &agentv1.WatchWorkloadsRequest{})
	must(t, err)
	_, err = stream.Recv()
	must(t, err)
	healthy, err := grpc_health_v1.NewHealthClient(f.dial(t)).Watch(watching(t), &grpc_health_v1.HealthCheckRequest{})
	must(t, err)
	_, err = healthy.Recv()
	must(t, err)
	begin := time.Now()
	must(t, f.stop())
	if _, err := healthy.Recv(); err == nil {
		t.Error("the watch of its health goes on")
	}
	_, err = stream.Recv()
	wantCode(t, "a watch of an agent that stops", err, codes.Unavailable, "stopping")
	if took := time.Since(begin); took >= stopGrace {
		t.Errorf("stopping took %s, although everybody heard of it", took)
	}
	if _, err := os.Lstat(f.path); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
}

// A server that is told to stop before it runs does not run.
func TestStopBeforeRun(t *testing.T) {
	f := start(t)
	server, err := NewServer(Options{Path: f.path + "2", Workloads: f.registry, Level: f.level, Log: f.logger()})
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	must(t, server.Run(ctx))
}

func TestHealthAndReflection(t *testing.T) {
	f := start(t)
	healthy, err := grpc_health_v1.NewHealthClient(f.dial(t)).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if err != nil || healthy.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("health: %v, %v", healthy, err)
	}
	stream, err := reflectionv1.NewServerReflectionClient(f.dial(t)).ServerReflectionInfo(t.Context())
	must(t, err)
	must(t, stream.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}}))
	answer, err := stream.Recv()
	must(t, err)
	var names []string
	for _, s := range answer.GetListServicesResponse().GetService() {
		names = append(names, s.Name)
	}
	slices.Sort(names)
	want := []string{"grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection",
		"signet.agent.v1.AgentService", "spire.agent.debug.v1.Debug", "spire.api.agent.logger.v1.Logger"}
	if !slices.Equal(names, want) {
		t.Errorf("services %v, want %v", names, want)
	}
}

// connectAs is a client of another user.
func connectAs(t *testing.T, path string, uid int) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+path, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(_ context.Context, path string) (net.Conn, error) { return dialAs(path, uid) }))
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// Another user does not get to the socket; and one that does, since somebody has
// opened all doors, is told by every service that it may not.
func TestOtherUsersAreRefused(t *testing.T) {
	needRoot(t)
	f := start(t)
	if conn, err := dialAs(f.path, nobody); err == nil || !os.IsPermission(errors.Unwrap(err)) {
		t.Errorf("user %d got to the socket: %v, %v", nobody, conn, err)
	}
	open(t, f.path)
	conn := connectAs(t, f.path, nobody)
	for method, call := range map[string]func() error{
		"version": func() error {
			_, err := agentv1.NewAgentServiceClient(conn).GetVersion(t.Context(), &agentv1.GetVersionRequest{})
			return err
		},
		"renew": func() error {
			_, err := agentv1.NewAgentServiceClient(conn).RenewWorkloads(t.Context(), &agentv1.RenewWorkloadsRequest{All: true})
			return err
		},
		"watch": func() error {
			stream, err := agentv1.NewAgentServiceClient(conn).WatchWorkloads(t.Context(), &agentv1.WatchWorkloadsRequest{})
			must(t, err)
			_, err = stream.Recv()
			return err
		},
		"debug": func() error {
			_, err := debugv1.NewDebugClient(conn).GetInfo(t.Context(), &debugv1.GetInfoRequest{})
			return err
		},
		"logger": func() error {
			_, err := loggerv1.NewLoggerClient(conn).ResetLogLevel(t.Context(), &loggerv1.ResetLogLevelRequest{})
			return err
		},
		"health": func() error {
			_, err := grpc_health_v1.NewHealthClient(conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
			return err
		},
		"reflection": func() error {
			stream, err := reflectionv1.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
			must(t, err)
			_, err = stream.Recv()
			return err
		},
	} {
		wantCode(t, method, call(), codes.PermissionDenied, "65534")
	}
	if !strings.Contains(f.log.String(), "peer.uid=65534 code=PermissionDenied") {
		t.Errorf("the log does not tell who was refused:\n%s", f.log)
	}
}

// open lets everybody get to the socket.
func open(t *testing.T, path string) {
	t.Helper()
	must(t, os.Chmod(path, 0o666))
	openAbove(t, path)
}

// openAbove lets everybody pass the directories in which path is.
func openAbove(t *testing.T, path string) {
	t.Helper()
	for dir := filepath.Dir(path); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		must(t, os.Chmod(dir, 0o755))
	}
}

// echo is a service of somebody else's.
var echo = grpc.ServiceDesc{
	ServiceName: "test.Echo", HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{MethodName: "Say", Handler: func(_ any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
		if err := decode(&emptypb.Empty{}); err != nil {
			return nil, err
		}
		return intercept(ctx, nil, &grpc.UnaryServerInfo{FullMethod: "/test.Echo/Say"}, func(ctx context.Context, _ any) (any, error) {
			if p, ok := PeerFrom(ctx); !ok || p.UID != nobody {
				panic("not who it was made for")
			}
			return &emptypb.Empty{}, nil
		})
	}}},
}

// A further service has its own rule of who may call it, which opens no other. A call
// that panics fails alone.
func TestFurtherServices(t *testing.T) {
	needRoot(t)
	f := start(t, func(o *Options) {
		o.Services = []Service{{
			Register: func(r grpc.ServiceRegistrar) { r.RegisterService(&echo, nil) },
			Allow: func(p Peer) error {
				if p.UID == 1 {
					return status.Error(codes.PermissionDenied, "not this one")
				}
				return nil
			},
		}}
	})
	open(t, f.path)
	say := func(uid int) error {
		return connectAs(t, f.path, uid).Invoke(t.Context(), "/test.Echo/Say", &emptypb.Empty{}, &emptypb.Empty{})
	}
	wantCode(t, "one that may", say(nobody), codes.OK)
	wantCode(t, "one that may not", say(1), codes.PermissionDenied, "not this one")
	wantCode(t, "one that makes it panic", say(0), codes.Internal)
	if !strings.Contains(f.log.String(), "not who it was made for") || strings.Contains(fmt.Sprint(say(0)), "made for") {
		t.Errorf("a panic belongs into the log and not into the answer:\n%s", f.log)
	}
	_, err := agentv1.NewAgentServiceClient(connectAs(t, f.path, nobody)).GetVersion(t.Context(), &agentv1.GetVersionRequest{})
	wantCode(t, "another service", err, codes.PermissionDenied)
}

// With a socket for every user, one who may call nothing does not get so far that it
// costs the agent a descriptor or a line of log. Those who may are served.
func TestStrangersAreTurnedAway(t *testing.T) {
	needRoot(t)
	const delegate, stranger = nobody, 1
	f := start(t, func(o *Options) {
		o.EveryUser = true
		o.Services = []Service{{
			Register: func(r grpc.ServiceRegistrar) { r.RegisterService(&echo, nil) },
			Allow: func(p Peer) error {
				if p.UID != delegate {
					return status.Error(codes.PermissionDenied, "not this one")
				}
				return nil
			},
		}}
	})
	openAbove(t, filepath.Dir(f.path)) // The socket's own directory is open already.
	say := func(uid int) error {
		return connectAs(t, f.path, uid).Invoke(t.Context(), "/test.Echo/Say", &emptypb.Empty{}, &emptypb.Empty{})
	}
	wantCode(t, "a stranger", say(stranger), codes.Unavailable)
	if strings.Contains(f.log.String(), "peer.uid=1 ") {
		t.Errorf("a stranger writes into the log:\n%s", f.log)
	}
	wantCode(t, "the delegate", say(delegate), codes.OK)
	_, err := agentv1.NewAgentServiceClient(connectAs(t, f.path, 0)).GetVersion(t.Context(), &agentv1.GetVersionRequest{})
	wantCode(t, "the administrator", err, codes.OK)
}

// A user namespace's root is not root here; the agent's own user is one of those who
// may.
func TestAdministrator(t *testing.T) {
	for uid, want := range map[uint32]bool{0: true, uint32(os.Geteuid()): true, 65534: false, 100000: false} {
		if got := administrator(Peer{UID: uid}) == nil; got != want {
			t.Errorf("user %d may: %t, want %t", uid, got, want)
		}
	}
}
