// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/signet-spiffe/signet/integration/clients"
	"github.com/signet-spiffe/signet/integration/cluster"
)

// The SPIRE agent's commands for its administrator, on the node, with Signet's admin
// socket. The log's level is changed to one that shows as much: other tests read
// that log.
func testSpireAgentAdministers(t *testing.T) {
	t.Parallel()
	needClients(t)
	ctx := needCluster(t, testTimeout)
	ns := newNamespace(ctx, t)
	runPod(ctx, t, ns, podSpec{Name: "app", Node: nodeTwo})
	n, agent := node(ctx, t, nodeTwo), mustAgentOn(ctx, t, nodeTwo)
	socket := filepath.Join(t.TempDir(), "admin.sock") // sun_path is short
	if err := os.Symlink(n.path(filepath.Join(adminDir(agent), "admin.sock")), socket); err != nil {
		t.Fatal(err)
	}
	spire := spireAgent(ctx, t, socket)

	t.Run("debug getinfo", func(t *testing.T) {
		if out := spire("debug", "getinfo"); !strings.Contains(out, "Cached X.509 SVIDs:") || strings.Contains(out, "(never)") {
			t.Errorf("it printed %q", out)
		}
		info := decodeJSON[struct {
			SVIDs    int   `json:"cached_x509_svids_count"`
			LastSync int64 `json:"last_sync_success,string"`
		}](t, []byte(spire("debug", "getinfo", "-output", "json")))
		if info.SVIDs < 1 || time.Since(time.Unix(info.LastSync, 0)).Abs() > time.Minute {
			t.Errorf("the agent has %d SVIDs and heard of the API server at %s, want one at least, now", info.SVIDs, time.Unix(info.LastSync, 0))
		}
	})
	t.Run("logger", func(t *testing.T) {
		for _, step := range []struct {
			args []string
			want string
		}{
			{[]string{"logger", "get"}, "Logger Level : debug\nLaunch Level : debug"},
			{[]string{"logger", "set", "-level", "trace"}, "Logger Level : trace\nLaunch Level : debug"},
			{[]string{"logger", "get"}, "Logger Level : trace\nLaunch Level : debug"},
			{[]string{"logger", "reset"}, "Logger Level : debug\nLaunch Level : debug"},
		} {
			if out := spire(step.args...); !strings.Contains(out, step.want) {
				t.Errorf("spire-agent %s printed %q, want %q", strings.Join(step.args, " "), out, step.want)
			}
		}
	})
}

// spireAgent runs the program where this process is, with an admin socket.
func spireAgent(ctx context.Context, t *testing.T, socket string) func(args ...string) string {
	t.Helper()
	binaries, err := cluster.EnsurePrograms(ctx, clients.Programs, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	return func(args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(ctx, binaries[clients.SpireAgent], append(args, "-socketPath", socket)...).CombinedOutput()
		if err != nil {
			t.Fatalf("spire-agent %s: %v: %s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
}
