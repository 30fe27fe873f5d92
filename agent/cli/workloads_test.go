// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/signet-spiffe/signet/proto/signet/agent/v1"
)

// agent is an admin socket whose workloads are what the test says.
type agent struct {
	agentv1.UnimplementedAgentServiceServer
	path string

	mu        sync.Mutex
	workloads []*agentv1.Workload
	requests  []*agentv1.RenewWorkloadsRequest
	// changes go to the one watch, after the first message.
	changes chan *agentv1.WatchWorkloadsResponse
	// renewed is called by each renewal.
	renewed func()
}

func newAgent(t *testing.T, workloads ...*agentv1.Workload) *agent {
	t.Helper()
	a := &agent{path: filepath.Join(t.TempDir(), "admin.sock"), workloads: workloads, changes: make(chan *agentv1.WatchWorkloadsResponse, 10), renewed: func() {}}
	l, err := net.Listen("unix", a.path)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	agentv1.RegisterAgentServiceServer(s, a)
	go s.Serve(l)
	t.Cleanup(s.Stop)
	return a
}

// ListWorkloads has pages of one workload.
func (a *agent) ListWorkloads(_ context.Context, r *agentv1.ListWorkloadsRequest) (*agentv1.ListWorkloadsResponse, error) {
	if r.GetSelector().GetNamespace() == "refused" {
		return nil, status.Error(codes.PermissionDenied, "not\x1b[2Jyou")
	}
	for i, w := range a.workloads {
		if w.VolumeId > r.GetPageToken() {
			page := &agentv1.ListWorkloadsResponse{Workloads: []*agentv1.Workload{w}}
			if i+1 < len(a.workloads) {
				page.NextPageToken = w.VolumeId
			}
			return page, nil
		}
	}
	return &agentv1.ListWorkloadsResponse{}, nil
}

func (a *agent) WatchWorkloads(_ *agentv1.WatchWorkloadsRequest, stream grpc.ServerStreamingServer[agentv1.WatchWorkloadsResponse]) error {
	if err := stream.Send(&agentv1.WatchWorkloadsResponse{Workloads: a.workloads, Synced: true}); err != nil {
		return err
	}
	for {
		select {
		case m := <-a.changes:
			if m == nil {
				return status.Error(codes.Unavailable, "the agent is stopping")
			}
			if err := stream.Send(m); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func (a *agent) RenewWorkloads(_ context.Context, r *agentv1.RenewWorkloadsRequest) (*agentv1.RenewWorkloadsResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.requests = append(a.requests, r)
	if r.GetSelector().GetNamespace() == "nowhere" {
		return nil, status.Error(codes.NotFound, "no such volume that matches")
	}
	var answer agentv1.RenewWorkloadsResponse
	for i, w := range a.workloads {
		answer.Renewals = append(answer.Renewals, &agentv1.Renewal{VolumeId: w.VolumeId, Namespace: w.Namespace, PodName: w.PodName, Serial: w.Serial, Joined: i == 1, LastErrorAt: w.LastErrorAt})
	}
	a.renewed()
	return &answer, nil
}

// workloadsCommand runs "workloads ARGS" and returns what it printed.
func workloadsCommand(ctx context.Context, args ...string) (string, error) {
	var out bytes.Buffer
	root := New("v0", Workloads())
	root.SetOut(&out)
	err := Execute(ctx, root, append([]string{"workloads"}, args...))
	return out.String(), err
}

var expiry = timestamppb.New(time.Now().Add(40*time.Hour + 30*time.Minute))

func cartWorkload() *agentv1.Workload {
	return &agentv1.Workload{
		VolumeId: "csi-1", Namespace: "shop", PodName: "cart", SpiffeId: "spiffe://example.org/ns/shop/sa/cart", State: agentv1.WorkloadState_WORKLOAD_STATE_READY,
		Serial: "abc1", NotAfter: expiry, NextRenewal: expiry,
	}
}

func vaultWorkload() *agentv1.Workload {
	return &agentv1.Workload{
		VolumeId: "csi-2", Namespace: "bank", PodName: "vault", SpiffeId: "spiffe://example.org/ns/bank/sa/vault", State: agentv1.WorkloadState_WORKLOAD_STATE_EXPIRED,
		Serial: "abc2", InFlight: true, WaitsFor: "approval", LastError: "denied\x1b[31m: no", LastErrorAt: timestamppb.New(time.Now().Add(-2 * time.Minute)), Failures: 3,
	}
}

func TestWorkloadsList(t *testing.T) {
	a := newAgent(t, cartWorkload(), vaultWorkload())
	got, err := workloadsCommand(t.Context(), "list", "-socketPath", a.path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(got), "\n")
	if len(lines) != 3 || !strings.HasPrefix(lines[0], "NAMESPACE  POD") || !strings.HasPrefix(lines[1], "bank ") || !strings.HasPrefix(lines[2], "shop ") {
		t.Errorf("listed:\n%s", got)
	}
	for _, want := range []string{"expired", "under way: approval", " ago: denied [31m: no", "ready", "in 40h", "abc1", "spiffe://example.org/ns/shop/sa/cart", "csi-1"} {
		if !strings.Contains(got, want) {
			t.Errorf("the list has no %q:\n%s", want, got)
		}
	}
	if strings.Contains(got, "\x1b") {
		t.Error("the list commands the terminal")
	}

	got, err = workloadsCommand(t.Context(), "list", "-socketPath", "unix://"+a.path, "-output", "json")
	var parsed struct {
		Workloads []map[string]any `json:"workloads"`
	}
	if err != nil || json.Unmarshal([]byte(got), &parsed) != nil || len(parsed.Workloads) != 2 || parsed.Workloads[0]["volume_id"] != "csi-2" || parsed.Workloads[1]["serial"] != "abc1" {
		t.Errorf("listed %s, %v", got, err)
	}
	if got, err := workloadsCommand(t.Context(), "list", "-socketPath", newAgent(t).path); err != nil || got != "no workloads\n" {
		t.Errorf("with no workload it says %q, %v", got, err)
	}
}

func TestWorkloadsMistakes(t *testing.T) {
	a := newAgent(t, cartWorkload())
	for _, tt := range []struct {
		args  []string
		usage bool
		want  string
	}{
		{[]string{"list", "-pod", "cart"}, true, "-namespace"},
		{[]string{"list", "-output", "xml"}, true, "json"},
		{[]string{"list", "shop"}, true, "no argument"},
		{[]string{"list", "-socketPath", "tcp://x"}, true, "-socketPath"},
		{[]string{"renew"}, true, "-all"},
		{[]string{"renew", "-all", "-namespace", "shop"}, true, "contradict"},
		{[]string{"renew", "-namespace", "nowhere"}, false, "NotFound: no such volume"},
		{[]string{"renew", "-namespace", "nowhere", "-wait"}, false, "NotFound: no such volume"},
		{[]string{"list", "-namespace", "refused"}, false, "PermissionDenied: not [2Jyou"},
		{[]string{"list", "-socketPath", a.path + "x"}, false, "no socket"},
		{[]string{"watch", "-socketPath", a.path + "x"}, false, "no socket"},
	} {
		args := tt.args
		if !slices.Contains(args, "-socketPath") {
			args = append(slices.Clone(args), "-socketPath", a.path)
		}
		_, err := workloadsCommand(t.Context(), args...)
		if err == nil || isUsage(err) != tt.usage || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v: %v (usage: %t), want %q", tt.args, err, isUsage(err), tt.want)
		}
	}
}

// The socket is the flag's, the environment's, or the only one there is.
func TestAdminSocketIsFound(t *testing.T) {
	dir := t.TempDir()
	pattern := filepath.Join(dir, "*", "admin.sock")
	make := func(driver string) string {
		path := filepath.Join(dir, driver, "admin.sock")
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	var f adminFlags
	if _, err := f.path(pattern); err == nil || isUsage(err) {
		t.Errorf("with no agent: %v", err)
	}
	one := make("one")
	if got, err := f.path(pattern); err != nil || got != one {
		t.Errorf("with one agent: %s, %v", got, err)
	}
	make("two")
	if _, err := f.path(pattern); !isUsage(err) || !strings.Contains(err.Error(), one) {
		t.Errorf("with two agents: %v", err)
	}
	t.Setenv(AdminSocketEnv, "/from/environment")
	if got, err := f.path(pattern); err != nil || got != "/from/environment" {
		t.Errorf("by the environment: %s, %v", got, err)
	}
	f.socket = "/from/flag"
	if got, err := f.path(pattern); err != nil || got != "/from/flag" {
		t.Errorf("by the flag: %s, %v", got, err)
	}
}

func TestWorkloadsRenew(t *testing.T) {
	a := newAgent(t, cartWorkload(), vaultWorkload())
	got, err := workloadsCommand(t.Context(), "renew", "-socketPath", a.path, "-namespace", "shop", "-pod", "cart")
	if err != nil || got != "shop/cart, volume csi-1: renewal begun\nbank/vault, volume csi-2: a renewal was under way already\n" {
		t.Errorf("%q, %v", got, err)
	}
	if r := a.requests[0]; r.All || r.Selector.GetNamespace() != "shop" || r.Selector.GetPodName() != "cart" || r.Selector.GetVolumeId() != "" {
		t.Errorf("asked for %v", r)
	}
	got, err = workloadsCommand(t.Context(), "renew", "-socketPath", a.path, "-all", "-output", "json")
	if err != nil || !strings.Contains(got, `"volume_id":"csi-1"`) || !a.requests[1].All {
		t.Errorf("%q, %v", got, err)
	}
}

// With -wait the command ends with the renewals, and its exit code tells how.
func TestWorkloadsRenewAndWait(t *testing.T) {
	renewed, failed := cartWorkload(), vaultWorkload()
	renewed.Serial = "def1"
	failed.LastError, failed.LastErrorAt = "denied again", timestamppb.Now()
	for name, tt := range map[string]struct {
		changes []*agentv1.WatchWorkloadsResponse
		print   string
		err     string
	}{
		"both renewed": {[]*agentv1.WatchWorkloadsResponse{
			{Workloads: []*agentv1.Workload{cartWorkload(), vaultWorkload()}}, // As before: nothing to see in it.
			{Workloads: []*agentv1.Workload{renewed}},
			{Workloads: []*agentv1.Workload{{VolumeId: "csi-2", Serial: "def2", NotAfter: expiry}}},
		}, "serial abc1 → def1, expires in 40h", ""},
		"one failed": {[]*agentv1.WatchWorkloadsResponse{{Workloads: []*agentv1.Workload{failed, renewed}}}, "csi-2: failed: denied again", "1 of 2 renewals failed"},
		"one removed": {[]*agentv1.WatchWorkloadsResponse{
			{Workloads: []*agentv1.Workload{renewed}, RemovedVolumeIds: []string{"csi-9"}}, {RemovedVolumeIds: []string{"csi-2"}},
		}, "failed: the volume was removed", "1 of 2 renewals failed"},
		"the agent stops": {[]*agentv1.WatchWorkloadsResponse{{Workloads: []*agentv1.Workload{renewed}}, nil}, "csi-2: no result yet", "1 of 2 renewals have not ended: Unavailable"},
		"nothing happens": {nil, "csi-1: no result yet", "2 of 2 renewals have not ended: no answer within"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAgent(t, cartWorkload(), vaultWorkload())
			a.renewed = func() {
				for _, m := range tt.changes {
					a.changes <- m
				}
			}
			timeout := "20s"
			if tt.changes == nil {
				timeout = "2s"
			}
			got, err := workloadsCommand(t.Context(), "renew", "-socketPath", a.path, "-all", "-wait", "-timeout", timeout)
			if !strings.Contains(got, tt.print) {
				t.Errorf("printed %q, want %q", got, tt.print)
			}
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) || isUsage(err) {
				t.Errorf("ended with %v, want %q", err, tt.err)
			}
		})
	}
}

func TestWhen(t *testing.T) {
	now := time.Now()
	for offset, want := range map[time.Duration]string{
		40*time.Minute + 400*time.Millisecond: "in 40m0s", 0: "in 0s", -2 * time.Minute: "2m0s ago", -90*time.Hour + time.Second: "89h59m59s ago",
	} {
		if got := when(timestamppb.New(now.Add(offset)), now); got != want {
			t.Errorf("%s from now is %q, want %q", offset, got, want)
		}
	}
	if got := when(nil, now); got != "-" {
		t.Errorf("no time is %q", got)
	}
}

// An agent whose clock runs ahead ends a call before its caller does.
func TestDeadlineOfTheAgent(t *testing.T) {
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errors.New("no answer within 50ms (-timeout)"))
	defer cancel()
	if err := Explain(ctx, status.Error(codes.DeadlineExceeded, "stream terminated")); err == nil || err.Error() != "no answer within 50ms (-timeout)" {
		t.Errorf("%v", err)
	}
	if err := Explain(t.Context(), status.Error(codes.DeadlineExceeded, "a volume hangs")); err == nil || !strings.Contains(err.Error(), "a volume hangs") {
		t.Errorf("without a deadline: %v", err)
	}
}

// lines gives what was printed line by line.
type lines chan string

func (l lines) Write(p []byte) (int, error) {
	for line := range strings.Lines(string(p)) {
		l <- line
	}
	return len(p), nil
}

func (l lines) want(t *testing.T, words ...string) {
	t.Helper()
	select {
	case line := <-l:
		for _, word := range words {
			if !strings.Contains(line, word) {
				t.Errorf("printed %q, want %q", line, word)
			}
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("nothing is printed, want %q", words)
	}
}

// A watch prints what is there and what changes, and ends well when it is interrupted.
func TestWorkloadsWatch(t *testing.T) {
	for _, output := range []string{"pretty", "json"} {
		t.Run(output, func(t *testing.T) {
			a := newAgent(t, cartWorkload())
			out := make(lines)
			root := New("v0", Workloads())
			root.SetOut(out)
			ctx, interrupt := context.WithCancel(t.Context())
			defer interrupt()
			ended := make(chan error, 1)
			go func() {
				ended <- Execute(ctx, root, []string{"workloads", "watch", "-socketPath", a.path, "-output", output})
			}()
			changed := cartWorkload()
			changed.Serial, changed.LastError = "def1", "late"
			first, second, third := []string{"shop/cart  ready", "serial abc1"}, []string{"serial def1", "last error -: late"}, []string{"shop/cart  gone"}
			if output == "json" {
				first, second, third = []string{`"synced":true`, `"serial":"abc1"`}, []string{`"serial":"def1"`}, []string{`"removed_volume_ids":["csi-1"]`}
			}
			out.want(t, first...)
			a.changes <- &agentv1.WatchWorkloadsResponse{Workloads: []*agentv1.Workload{changed}}
			out.want(t, second...)
			a.changes <- &agentv1.WatchWorkloadsResponse{RemovedVolumeIds: []string{"csi-1"}}
			out.want(t, third...)
			interrupt()
			if err := <-ended; err != nil {
				t.Errorf("interrupted, it ended with %v", err)
			}
		})
	}
	a := newAgent(t)
	a.changes <- nil
	if _, err := workloadsCommand(t.Context(), "watch", "-socketPath", a.path); err == nil || !strings.Contains(err.Error(), "stopping") {
		t.Errorf("when the agent stops, it ends with %v", err)
	}
}
