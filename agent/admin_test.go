// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/signet-spiffe/signet/agent/issue/certmanager"
	"github.com/signet-spiffe/signet/agent/workload"
	"github.com/signet-spiffe/signet/internal/observe"
	agentv1 "github.com/signet-spiffe/signet/proto/signet/agent/v1"
)

// openTestAdmin opens the admin socket at path, of a driver that is called so.
func openTestAdmin(t *testing.T, path string, log *strings.Builder) *administration {
	t.Helper()
	o, err := parse(t, "--node-id=node-1", "--csi-driver-name=driver.example", "--kubeconfig="+writeKubeconfig(t), "--admin-socket-path="+path)
	must(t, err)
	return openAdmin(o, (*workload.Registry)(nil), (*certmanager.Issuer)(nil), observe.NewLevel(slog.LevelInfo), prometheus.NewRegistry(), slog.New(slog.NewTextHandler(log, nil)))
}

// The driver's name is put into the path, and the socket is served there.
func TestAdminSocket(t *testing.T) {
	dir := t.TempDir()
	var log strings.Builder
	a := openTestAdmin(t, filepath.Join(dir, driverPlaceholder, "admin.sock"), &log)
	if a.server == nil {
		t.Fatalf("there is none: %s", log.String())
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); a.run(ctx) }()
	conn, err := grpc.NewClient("unix://"+filepath.Join(dir, "driver.example", "admin.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	defer conn.Close()
	got, err := agentv1.NewAgentServiceClient(conn).GetVersion(t.Context(), &agentv1.GetVersionRequest{})
	if err != nil || got.Version != version || got.Node != "node-1" || got.Driver != "driver.example" || got.TrustDomain != "cluster.local" {
		t.Errorf("%v, %v", got, err)
	}
	if up := testutil.ToFloat64(a.up); up != 1 {
		t.Errorf("the metric says %v while it is served", up)
	}
	cancel()
	<-ended
	if up := testutil.ToFloat64(a.up); up != 0 {
		t.Errorf("the metric says %v after that", up)
	}
}

// An agent that cannot have its admin socket says so and does without; one that was
// told to have none has none.
func TestAgentWorksWithoutAdminSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d", "admin.sock")
	must(t, os.Mkdir(filepath.Dir(path), 0o700))
	l, err := net.Listen("unix", path)
	must(t, err)
	defer l.Close()
	for given, word := range map[string]string{path: "another process serves", "": ""} {
		var log strings.Builder
		a := openTestAdmin(t, given, &log)
		a.run(t.Context()) // Returns at once.
		if a.server != nil || testutil.ToFloat64(a.up) != 0 {
			t.Errorf("--admin-socket-path=%q: there is one", given)
		}
		if !strings.Contains(log.String(), word) || (word == "") != (log.Len() == 0) {
			t.Errorf("--admin-socket-path=%q: the log says %q, want %q", given, log.String(), word)
		}
	}
}
