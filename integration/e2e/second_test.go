// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	corev1 "k8s.io/api/core/v1"

	"github.com/signet-spiffe/signet/integration/install"
)

// Two agents with two driver names and trust domains on one node, and a pod with a
// volume of each: both are killed and come back with what is theirs. Neither takes
// away what is the other's, whoever asks.
func testTwoDriversOnOneNode(t *testing.T) {
	ctx := needCluster(t, testTimeout)
	needSecond(t)
	ns := newNamespace(ctx, t)
	n := node(ctx, t, nodeOne)
	pod := runPod(ctx, t, ns, podSpec{Name: "both", Node: nodeOne, Change: addSecondVolume})
	k := newKeeper(ctx, t)
	first, other := k.keep(t, n, pod, volumeName, spiffeID(ns, "default")), k.keep(t, n, pod, secondVolume, secondID(ns))
	k.waitStreams(ctx, t, keptOnes(first, other))
	k.waitQuiet(ctx, keptOnes(first), svidLife/4)
	serials := k.serials(first, other)

	for _, namespace := range []string{install.Namespace, second.Namespace()} {
		if err := agentProcess(ctx, t, mustAgentIn(ctx, t, namespace, nodeOne)).Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	k.wait(ctx, t, "both streams to break and to be back", keptOnes(first, other), func(v *kept) error {
		if v.broken == 0 || !v.cutAt.IsZero() {
			return fmt.Errorf("it broke %d times; cut: %t", v.broken, !v.cutAt.IsZero())
		}
		return nil
	})
	if got := k.serials(first, other); !slices.Equal(got, serials) {
		t.Errorf("the serials were %q and are %q", serials, got)
	}
	handle, target := n.volumeHandleOf(t, pod, secondVolume), filepath.Join(volumeDirOf(pod, secondVolume), "mount")
	_, err := n.driver(t).NodeUnpublishVolume(ctx, &csipb.NodeUnpublishVolumeRequest{VolumeId: handle, TargetPath: target})
	if err == nil {
		t.Error("the standard driver said that it has unpublished a volume of the second")
	}
	if got := n.mountsWith(t, target); len(got) != 1 {
		t.Errorf("the second driver's volume is mounted %d times, want once", len(got))
	}
	if got := n.mountsWith(t, handle); len(got) != 1 {
		t.Errorf("the second driver's tmpfs is mounted %d times, want once", len(got))
	}
	k.waitStreams(ctx, t, keptOnes(first, other))
	k.check(t, keptOnes(first, other))
	k.release(first)
	k.release(other)
	deletePod(ctx, t, pod)
	n.waitMounts(ctx, t, func(all []mount) error {
		for _, m := range all {
			if strings.Contains(m.Point, string(pod.UID)) || strings.Contains(m.Point, handle) {
				return fmt.Errorf("%s is still mounted", m.Point)
			}
		}
		return nil
	})
	if err := env.WaitReady(ctx); err != nil {
		t.Error(err)
	}
}

// Junk, half-made and foreign entries in the state directory when an agent starts:
// it starts, serves its volumes, sets aside what can be moved, takes away what it
// had not finished, and leaves alone what is another's.
func testJunkIsSetAside(t *testing.T) {
	ctx := needCluster(t, testTimeout)
	ns := newNamespace(ctx, t)
	n := node(ctx, t, nodeOne)
	pod := runPod(ctx, t, ns, podSpec{Name: "app", Node: nodeOne})
	k := newKeeper(ctx, t)
	kept := k.keepAll(ctx, t, pod)
	k.waitQuiet(ctx, kept, svidLife/4)
	serials := k.serials(kept...)

	volumes := filepath.Join(pluginDir, "volumes")
	at := func(parts ...string) string { return n.path(filepath.Join(append([]string{volumes}, parts...)...)) }
	mountTmpfs := func(name string) {
		t.Helper()
		if err := os.Mkdir(at(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if out, err := n.Exec(ctx, "mount", "-t", "tmpfs", "junk", filepath.Join(volumes, name)).CombinedOutput(); err != nil {
			t.Fatalf("mount: %v: %s", err, out)
		}
		t.Cleanup(func() {
			_ = n.Exec(context.WithoutCancel(ctx), "umount", filepath.Join(volumes, name)).Run() // It may be gone.
			_ = os.Remove(at(name))
		})
	}
	ownedBy := func(name, owner string) {
		t.Helper()
		mountTmpfs(name)
		for _, dir := range []string{"pod", "private"} {
			if err := os.Mkdir(at(name, dir), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if owner != "" {
			mustWriteFile(t, at(name, "private", "owner"), []byte(owner))
		}
	}
	mustWriteFile(t, at("a-file"), []byte("junk"))
	if err := os.MkdirAll(at("a-folder", "with", "more"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(at("made-but-not-mounted"), 0o700); err != nil {
		t.Fatal(err)
	}
	ownedBy("half-made", "")
	ownedBy("half-written-owner", `{"driver":"spiffe.csi.ce`)
	ownedBy("another-driver", `{"driver":"another.example","volume":"another-driver"}`)
	ownedBy("another-volume", `{"driver":"`+install.DriverName+`","volume":"x"}`)
	ownedBy("half-written-state", `{"driver":"`+install.DriverName+`","volume":"half-written-state"}`)
	mustWriteFile(t, at("half-written-state", "private", "state"), []byte(`{"version":1,"volume":"half-w`))

	restartAgent(ctx, t, func(process *os.Process, _ *corev1.Pod) error { return process.Signal(syscall.SIGKILL) })
	k.waitStreams(ctx, t, kept)
	if got := k.serials(kept...); !slices.Equal(got, serials) {
		t.Errorf("the serials were %q and are %q", serials, got)
	}
	k.check(t, kept)

	for _, gone := range []string{"a-file", "a-folder", "made-but-not-mounted", "half-made"} {
		if _, err := os.Lstat(at(gone)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", gone, err)
		}
	}
	for _, left := range []string{"half-written-owner", "another-driver", "another-volume", "half-written-state"} {
		if got := n.mountsWith(t, filepath.Join(volumes, left)); len(got) != 1 {
			t.Errorf("%s is mounted %d times, want once: it is not the agent's to take away", left, len(got))
		}
	}
	entries, err := os.ReadDir(at())
	if err != nil {
		t.Fatal(err)
	}
	aside := 0
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), ".junk-") && (strings.HasSuffix(entry.Name(), "-a-file") || strings.HasSuffix(entry.Name(), "-a-folder")) {
			aside++
			if err := os.RemoveAll(at(entry.Name())); err != nil {
				t.Error(err)
			}
		}
	}
	if aside != 2 {
		t.Errorf("%d entries were set aside, want the file and the folder", aside)
	}
	// A volume that is new does not mind its neighbours.
	next := runPod(ctx, t, ns, podSpec{Name: "next", Node: nodeOne})
	if _, err := readVolume(n.path(filepath.Join(volumeDir(next), "mount")), spiffeid.RequireFromString(spiffeID(ns, "default"))); err != nil {
		t.Error(err)
	}
}
