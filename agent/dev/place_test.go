// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package dev

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/signet-spiffe/signet/internal/observe"
)

func isUsage(err error) bool {
	var usage *observe.UsageError
	return errors.As(err, &usage)
}

func mkdir(t *testing.T, path string, mode os.FileMode) string {
	t.Helper()
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDirectoriesThatOthersCouldGetIntoAreRefused(t *testing.T) {
	for name, test := range map[string]struct {
		make func(t *testing.T, base string) string
		want string
	}{
		"open to the group":     {func(t *testing.T, b string) string { return mkdir(t, b+"/d", 0o750) }, "has mode 0750"},
		"searchable by all":     {func(t *testing.T, b string) string { return mkdir(t, b+"/d", 0o711) }, "has mode 0711"},
		"writable by all":       {func(t *testing.T, b string) string { return mkdir(t, b+"/d", 0o777) }, "has mode 0777"},
		"sticky, as /tmp":       {func(t *testing.T, b string) string { return mkdir(t, b+"/d", 0o777|os.ModeSticky) }, "has mode 0777"},
		"not writable":          {func(t *testing.T, b string) string { return mkdir(t, b+"/d", 0o500) }, "it must be 0700"},
		"no directory above it": {func(_ *testing.T, b string) string { return b + "/none/d" }, "there is no directory"},
		"a file": {func(t *testing.T, b string) string {
			if err := os.WriteFile(b+"/d", nil, 0o600); err != nil {
				t.Fatal(err)
			}
			return b + "/d"
		}, "is not a directory"},
		"a symbolic link": {func(t *testing.T, b string) string {
			mkdir(t, b+"/real", 0o700)
			if err := os.Symlink("real", b+"/d"); err != nil {
				t.Fatal(err)
			}
			return b + "/d"
		}, "is a symbolic link"},
		"a link that leads nowhere": {func(t *testing.T, b string) string {
			if err := os.Symlink("none", b+"/d"); err != nil {
				t.Fatal(err)
			}
			return b + "/d"
		}, "is a symbolic link"},
		"below one that others may change": {func(t *testing.T, b string) string {
			return mkdir(t, mkdir(t, b+"/open", 0o777)+"/d", 0o700)
		}, "above it has mode 0777"},
		"to be made where others may change it": {func(t *testing.T, b string) string {
			return mkdir(t, b+"/open", 0o777) + "/d"
		}, "above it has mode 0777"},
		"by a link that others may change": {func(t *testing.T, b string) string {
			mkdir(t, b+"/safe", 0o700)
			open := mkdir(t, b+"/open", 0o777)
			if err := os.Symlink("../safe", open+"/way"); err != nil {
				t.Fatal(err)
			}
			return open + "/way/d"
		}, "above it has mode 0777"},
		"behind a link to one that others may change": {func(t *testing.T, b string) string {
			mkdir(t, mkdir(t, b+"/open", 0o777)+"/safe", 0o700)
			if err := os.Symlink("open/safe", b+"/way"); err != nil {
				t.Fatal(err)
			}
			return b + "/way/d"
		}, "above it has mode 0777"},
		"somebody else's": {func(t *testing.T, b string) string {
			return give(t, mkdir(t, b+"/d", 0o700))
		}, "belongs to user 65534"},
		"below somebody else's": {func(t *testing.T, b string) string {
			return mkdir(t, give(t, mkdir(t, b+"/theirs", 0o755))+"/d", 0o700)
		}, "theirs above it belongs to user 65534"},
		"tcp":              {func(*testing.T, string) string { return "tcp://127.0.0.1:8080" }, "never on TCP or abstract sockets"},
		"a URI":            {func(_ *testing.T, b string) string { return "unix://" + b }, "must be a directory"},
		"abstract":         {func(*testing.T, string) string { return "@signet" }, "never on TCP or abstract sockets"},
		"to be escaped":    {func(_ *testing.T, b string) string { return b + "/with space" }, "characters"},
		"nothing":          {func(*testing.T, string) string { return "" }, "must not be empty"},
		"long, for socket": {func(_ *testing.T, b string) string { return b + "/" + strings.Repeat("x", 100) }, "a socket's address holds"},
	} {
		t.Run(name, func(t *testing.T) {
			base, err := os.MkdirTemp("", "sd")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.RemoveAll(base) })
			path := test.make(t, base)
			_, before := os.Lstat(path)
			p, err := openPlace(path)
			if err == nil {
				_, err = p.openRoom("web")
				_ = p.close()
			}
			if !isUsage(err) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
			if _, after := os.Lstat(path); errors.Is(before, fs.ErrNotExist) && after == nil {
				t.Error("a directory was left behind")
			}
		})
	}
}

// give gives a directory to another user.
func give(t *testing.T, path string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to give a directory away")
	}
	if err := os.Chown(path, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	return path
}

func newPlace(t *testing.T) *place {
	t.Helper()
	base, err := os.MkdirTemp("", "sd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	p, err := openPlace(filepath.Join(base, "d"))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// What somebody keeps in a directory that we are given is not ours to remove.
func TestForeignFilesAreNotTouched(t *testing.T) {
	p := newPlace(t)
	for name, content := range map[string]string{"web/notes.txt": "", "cart/tls.key": "", "db": ""} {
		path := filepath.Join(p.path, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		room, _, _ := strings.Cut(name, "/")
		if _, err := p.openRoom(room); err == nil || !strings.Contains(err.Error(), "of signet-agent dev") {
			t.Errorf("%s: got %v", name, err)
		}
		if err := p.removeRoom(room); err == nil {
			t.Errorf("%s is removed at the end", name)
		}
		if _, err := os.Stat(path); err != nil {
			t.Errorf("%s is gone: %v", name, err)
		}
	}
	if err := p.close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(p.path); err != nil {
		t.Errorf("a directory with something in it was removed: %v", err)
	}
}

// A run that was killed leaves a socket and files; the next takes their place.
func TestLeftoversAreReplaced(t *testing.T) {
	p := newPlace(t)
	r, err := p.openRoom("web")
	if err != nil {
		t.Fatal(err)
	}
	l, err := r.listen()
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // As when it is killed.
	if err := errors.Join(l.Close(), r.write(map[string][]byte{keyName: []byte("old")}), r.write(map[string][]byte{keyName: []byte("old")})); err != nil {
		t.Fatal(err)
	}
	again, err := p.openRoom("web")
	if err != nil {
		t.Fatal(err)
	}
	wantEmpty(t, again.path)
	if l, err = again.listen(); err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	if err := errors.Join(p.removeRoom("web"), p.close()); err != nil {
		t.Error(err)
	}
	wantEmpty(t, filepath.Dir(p.path))
}

// Between looking at the directory and locking it, the process that had it may end
// and take it away.
func TestADirectoryThatGoesAwayIsMadeAgain(t *testing.T) {
	p := newPlace(t)
	if err := p.lock.Close(); err != nil { // The lock is free, the directory is another.
		t.Fatal(err)
	}
	var err error
	if p.lock, err = p.root.Open("."); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(p.path); err != nil {
		t.Fatal(err)
	}
	if err := p.take(); !errors.Is(err, errReplaced) {
		t.Errorf("gone: got %v", err)
	}
	mkdir(t, p.path, 0o700)
	if err := p.take(); !errors.Is(err, errReplaced) {
		t.Errorf("another: got %v", err)
	}
}

// Two sets of files are kept: a reader may hold the one before.
func TestSetsOfFilesBeforeAreRemoved(t *testing.T) {
	p := newPlace(t)
	r, err := p.openRoom("web")
	if err != nil {
		t.Fatal(err)
	}
	var held string
	for _, content := range []string{"1", "2", "3", "4"} {
		before := held
		if err := r.write(map[string][]byte{keyName: []byte(content), caName: []byte(content)}); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(r.path, keyName)); err != nil || string(got) != content {
			t.Errorf("read %q, %v", got, err)
		}
		if held, err = os.Readlink(filepath.Join(r.path, currentLink)); err != nil {
			t.Fatal(err)
		}
		if before != "" {
			if _, err := os.ReadFile(filepath.Join(r.path, before, caName)); err != nil {
				t.Errorf("the set before is gone: %v", err)
			}
		}
	}
	sets, err := filepath.Glob(filepath.Join(r.path, generation+"*"))
	if err != nil || len(sets) != 2 {
		t.Errorf("sets are %v, %v", sets, err)
	}
}
