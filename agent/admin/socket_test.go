// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCheckPath(t *testing.T) {
	root := t.TempDir()
	plugins := filepath.Join(root, "kubelet", "plugins")
	must(t, os.MkdirAll(plugins, 0o755))
	must(t, os.Symlink(plugins, filepath.Join(root, "link")))
	must(t, os.Symlink(filepath.Join(root, "kubelet"), filepath.Join(root, "aka")))
	for path, want := range map[string]string{
		"":                                     "",
		"/run/signet/driver/admin.sock":        "",
		filepath.Join(root, "kubeletx/a.sock"): "",
		"run/admin.sock":                       "absolute",
		"/run/../run/admin.sock":               "absolute",
		"/run/signet/":                         "absolute",
		"/" + strings.Repeat("a", 107):         "108 bytes",
		filepath.Join(plugins, "admin.sock"):   "must not be in",
		filepath.Join(root, "kubelet/pods/x/admin.sock"): "must not be in",
		filepath.Join(root, "link/new/admin.sock"):       "must not be in",
		filepath.Join(root, "aka/admin.sock"):            "must not be in",
		filepath.Join(root, "kubelet"):                   "must not be in",
	} {
		err := CheckPath(path, filepath.Join(root, "kubelet"))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("CheckPath(%q): %v, want %q", path, err, want)
		}
	}
	// The other way round: what is forbidden is itself a link.
	if err := CheckPath(filepath.Join(plugins, "admin.sock"), filepath.Join(root, "link")); err == nil {
		t.Error("a path in what a forbidden link leads to was taken")
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mode(t *testing.T, path string) fs.FileMode {
	t.Helper()
	info, err := os.Lstat(path)
	must(t, err)
	return info.Mode()
}

func TestListen(t *testing.T) {
	old := unix.Umask(0) // As lax as can be.
	defer unix.Umask(old)
	dir := filepath.Join(t.TempDir(), "signet", "driver")
	path := filepath.Join(dir, "admin.sock")
	l, err := listen(path, ownerOnly)
	must(t, err)
	if got := mode(t, dir).Perm(); got != 0o700 {
		t.Errorf("the directory has mode %o, want 700", got)
	}
	if got := mode(t, path); got.Perm() != 0o600 || got.Type() != fs.ModeSocket {
		t.Errorf("the socket is %s, want a socket with mode 600", got)
	}
	if _, err := listen(path, ownerOnly); err == nil || !strings.Contains(err.Error(), "another agent") {
		t.Errorf("a second agent with the path: %v", err)
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Errorf("the first agent's socket was taken away: %v", err)
	} else {
		conn.Close()
	}
	must(t, l.Close())
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after the end of the agent: %v", err)
	}
	l, err = listen(path, ownerOnly)
	must(t, err)
	must(t, l.Close())
}

// For delegates the directory can be passed through and the socket connected to, and
// no more; whether it is new or was for the owner alone. An agent without delegates
// does not take such a directory for its own.
func TestListenForEveryUser(t *testing.T) {
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	for name, there := range map[string]bool{"new": false, "there": true} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "d")
			if there {
				must(t, os.Mkdir(dir, 0o700))
			}
			path := filepath.Join(dir, "admin.sock")
			l, err := listen(path, everyUser)
			must(t, err)
			if d, s := mode(t, dir).Perm(), mode(t, path).Perm(); d != 0o711 || s != 0o666 {
				t.Errorf("directory and socket have modes %o and %o, want 711 and 666", d, s)
			}
			if lock := mode(t, path+".lock").Perm(); lock != 0o600 {
				t.Errorf("the lock has mode %o: anybody could hold it", lock)
			}
			must(t, l.Close())
			if l, err := listen(path, ownerOnly); err == nil {
				l.Close()
				t.Error("a directory that others can pass was taken for one that they cannot")
			}
		})
	}
}

// An agent that was killed leaves its socket behind.
func TestListenReplacesAStaleSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d", "admin.sock")
	l, err := listen(path, ownerOnly)
	must(t, err)
	l.SetUnlinkOnClose(false)
	must(t, l.Close())
	mode(t, path)
	l, err = listen(path, ownerOnly)
	must(t, err)
	defer l.Close()
	conn, err := net.Dial("unix", path)
	must(t, err)
	must(t, conn.Close())
}

// What is not a stale socket is left alone, and said to be there.
func TestListenTakesNothingAway(t *testing.T) {
	for name, tt := range map[string]struct {
		arrange func(t *testing.T, dir, path string)
		want    string
	}{
		"a socket that somebody serves": {func(t *testing.T, _, path string) {
			l, err := net.Listen("unix", path)
			must(t, err)
			t.Cleanup(func() { l.Close() })
		}, "another process serves"},
		"a socket of somebody too busy to answer": {func(t *testing.T, _, path string) { crowd(t, path) }, "whether the admin socket is served"},
		"a file": {func(t *testing.T, _, path string) { must(t, os.WriteFile(path, []byte("mine"), 0o600)) }, "no socket"},
		"a link to a socket": {func(t *testing.T, dir, path string) {
			must(t, os.Symlink(filepath.Join(dir, "other"), path))
		}, "no socket"},
		"a directory for others":   {func(t *testing.T, dir, _ string) { must(t, os.Chmod(dir, 0o711)) }, "mode 0711"},
		"a directory of a group":   {func(t *testing.T, dir, _ string) { must(t, os.Chmod(dir, 0o770)) }, "mode 0770"},
		"a directory of another":   {func(t *testing.T, dir, _ string) { needRoot(t); must(t, os.Chown(dir, nobody, 0)) }, "user 65534"},
		"a link for the directory": {func(t *testing.T, dir, _ string) { must(t, os.Rename(dir, dir+"2")); must(t, os.Symlink(dir+"2", dir)) }, "no directory"},
		"a link for the lock":      {func(t *testing.T, dir, path string) { must(t, os.Symlink(filepath.Join(dir, "x"), path+".lock")) }, "lock"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "d")
			path := filepath.Join(dir, "admin.sock")
			must(t, os.Mkdir(dir, 0o700))
			tt.arrange(t, dir, path)
			before := listing(t, dir)
			l, err := listen(path, ownerOnly)
			if err == nil {
				l.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
			if after := listing(t, dir); after != before {
				t.Errorf("there was %s, there is %s", before, after)
			}
		})
	}
}

// crowd makes a socket at path that takes no more connections and accepts none.
func crowd(t *testing.T, path string) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	must(t, unix.Bind(fd, &unix.SockaddrUnix{Name: path}))
	must(t, unix.Listen(fd, 0))
	for range 10 {
		conn, err := net.Dial("unix", path)
		if err != nil {
			return
		}
		t.Cleanup(func() { conn.Close() })
	}
	t.Fatal("the socket takes ever more connections")
}

// listing is what is in dir but for the lock, and how dir itself is.
func listing(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	all := []string{mode(t, dir).String()}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".lock") {
			all = append(all, e.Type().String()+e.Name())
		}
	}
	return strings.Join(all, " ")
}
