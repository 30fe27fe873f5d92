// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestProcessesOfACluster(t *testing.T) {
	root := t.TempDir()
	for path, content := range map[string]string{
		"pids/signet-c1/cgroup.procs":              "",
		"pids/signet-c1/control/cgroup.procs":      "10\n11\n0\n",
		"cpu/signet-c1/node-1/pod/cgroup.procs":    "12\n",
		"pids/signet-c1/node-1/pod/cgroup.procs":   "12\n",
		"pids/signet-c2/control/cgroup.procs":      "99\n",
		"pids/signet-c1/node-1/pod/tasks":          "77\n",
		"signet-c1/cgroup.procs":                   "13\n",
		"systemd/elsewhere/signet-c1/cgroup.procs": "98\n",
	} {
		if err := os.MkdirAll(filepath.Join(root, filepath.Dir(path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, path), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := clusterProcesses(root, "c1")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]int{10, 11, 12, 13}, slices.Sorted(maps.Keys(got))); diff != "" {
		t.Error(diff)
	}
}

func TestCensus(t *testing.T) {
	before := census{"etcd": 1 * time.Second, "webhook": 5 * time.Second}
	after := census{"etcd": 3 * time.Second, "webhook": 5 * time.Second, "agent": time.Second}
	grown := after.since(before)
	if diff := cmp.Diff(census{"etcd": 2 * time.Second, "agent": time.Second}, grown); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(census{"etcd": 20 * time.Millisecond, "agent": 10 * time.Millisecond}, grown.each(100)); diff != "" {
		t.Error(diff)
	}
	if got := grown.total(); got != 3*time.Second {
		t.Errorf("%s in all", got)
	}
	got := programs(Pair[census]{grown, census{"etcd": time.Second, "apiserver": 2 * time.Second, "agent": 2 * time.Second}})
	if diff := cmp.Diff([]string{"agent", "etcd", "apiserver"}, got); diff != "" {
		t.Error(diff)
	}
	if len(grown.each(0)) != 0 {
		t.Error("a share of nothing")
	}
}

func TestProgramName(t *testing.T) {
	for line, want := range map[string]string{
		"/usr/bin/etcd\x00--data-dir=x\x00": "etcd",
		"kube-apiserver\x00":                "kube-apiserver",
	} {
		if got := programName([]byte(line)); got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}

// This process is counted, under a name of its own.
func TestCensusCountsThisProcess(t *testing.T) {
	c, err := takeCensus("no-such-cluster", -1)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := c[thisProgram]; !ok || len(c) != 1 {
		t.Errorf("%v", c)
	}
}
