// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// inNamespace marks the process that runs in a mount namespace of its own.
const inNamespace = "SIGNET_TEST_MOUNT_NAMESPACE"

// TestMain runs the tests in a private mount namespace, so that no mount can leak, whatever fails. Without
// root the tests that mount skip themselves.
func TestMain(m *testing.M) {
	if agent := os.Getenv(childAgent); agent != "" {
		runChildAgent(agent)
		return
	}
	if os.Geteuid() != 0 || os.Getenv(inNamespace) != "" {
		os.Exit(m.Run())
	}
	runtime.LockOSThread() // Pdeathsig is tied to the thread
	child := exec.Command("/proc/self/exe", os.Args[1:]...)
	child.Stdin, child.Stdout, child.Stderr = os.Stdin, os.Stdout, os.Stderr
	child.Env = append(os.Environ(), inNamespace+"=1")
	child.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := child.Run(); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			fmt.Fprintln(os.Stderr, "run tests in a mount namespace of their own:", err)
			os.Exit(1)
		}
		os.Exit(max(exit.ExitCode(), 1))
	}
}

// needMounts skips a test that cannot mount.
func needMounts(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	if os.Getenv(inNamespace) == "" {
		t.Skip("not in a mount namespace of its own")
	}
}

// tempDir is a directory whose mounts are gone before it is removed. Pods' users can reach it.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "signet-csi-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, path := range slices.Backward(mountsUnder(t, dir)) {
			if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
				t.Errorf("unmount %s: %v", path, err)
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// mountsUnder lists mount points in dir, in the order they were mounted, once per layer.
func mountsUnder(t testing.TB, dir string) []string {
	t.Helper()
	mounts, err := readMounts()
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, m := range mounts {
		if within(m.MountPoint, dir) {
			paths = append(paths, m.MountPoint)
		}
	}
	return paths
}

func mountsAt(t testing.TB, path string) int {
	t.Helper()
	n := 0
	for _, p := range mountsUnder(t, path) {
		if p == path {
			n++
		}
	}
	return n
}

const testDriver = "spiffe.csi.cert-manager.io"

func openStore(t testing.TB, root string) *Store {
	t.Helper()
	s, err := OpenStore(StoreOptions{DataRoot: root, DriverName: testDriver, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func create(t testing.TB, s *Store, id string) *Dir {
	t.Helper()
	d, err := s.Create(id)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func write(t testing.TB, d *Dir, payload map[string]string, gid *int64) {
	t.Helper()
	f := Files{Payload: map[string][]byte{}, GID: gid}
	for name, content := range payload {
		f.Payload[name] = []byte(content)
	}
	if err := d.Write(f); err != nil {
		t.Fatal(err)
	}
}

// makeTargetParent does what kubelet does before it publishes.
func makeTargetParent(t testing.TB, root, podUID, name string) string {
	t.Helper()
	target := filepath.Join(root, "pods", podUID, "volumes", "kubernetes.io~csi", name, "mount")
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		t.Fatal(err)
	}
	return target
}

func mustMount(t testing.TB, source, target, fstype string, flags uintptr, data string) {
	t.Helper()
	if err := os.MkdirAll(target, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		t.Fatalf("mount %s: %v", target, err)
	}
}

func mustUnmount(t testing.TB, target string) {
	t.Helper()
	if err := unix.Unmount(target, 0); err != nil {
		t.Fatalf("unmount %s: %v", target, err)
	}
}

// asUser runs f on a thread with another user's credentials.
func asUser(t testing.TB, uid, gid int, f func()) {
	t.Helper()
	var wg sync.WaitGroup
	wg.Go(func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		for _, call := range [][4]uintptr{
			{unix.SYS_SETGROUPS, 0, 0, 0},
			{unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)},
			{unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)},
		} {
			if _, _, errno := unix.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
				t.Errorf("change user: %v", errno)
				return
			}
		}
		f()
	})
	wg.Wait()
}

func gid(g int64) *int64 { return &g }

// logBuffer collects a log at the finest level.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logBuffer) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug - 8}))
}

// testLog shows the log of a test that failed.
func testLog(t testing.TB) *slog.Logger {
	t.Helper()
	var b logBuffer
	t.Cleanup(func() {
		if t.Failed() && b.String() != "" {
			t.Logf("log:\n%s", b.String())
		}
	})
	return b.logger()
}

// contextOf ends with the test and before it times out.
func contextOf(t testing.TB) context.Context {
	t.Helper()
	return t.Context()
}

func contains(t testing.TB, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error; want one with %q", words)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not mention %q", err, w)
		}
	}
}
