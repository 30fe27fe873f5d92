// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMountTableShowsUnescapedPaths(t *testing.T) {
	needMounts(t)
	path := filepath.Join(tempDir(t), `a b`+"\t"+`c\d#e`)
	mustMount(t, "x y", path, "tmpfs", 0, "")
	at, err := lookAt(path)
	if err != nil {
		t.Fatal(err)
	}
	m, err := topMount(path, at)
	if err != nil {
		t.Fatal(err)
	}
	if m.MountPoint != path || m.Source != "x y" || m.FsType != "tmpfs" || !at.mountRoot {
		t.Errorf("got %+v, %+v", m, at)
	}
	// What kernels before 5.8 need.
	for p, want := range map[string]bool{path: true, filepath.Dir(path): false} {
		if got, err := listedInMountInfo(p); got != want || err != nil {
			t.Errorf("%s is a mount point: %v, %v; want %v", p, got, err, want)
		}
	}
}

func TestLookAtDoesNotFollowLinks(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	at, err := lookAt(link)
	if err != nil || at.isDir() {
		t.Errorf("got %+v, %v", at, err)
	}
	if _, err := lookAt(filepath.Join(link, "missing")); !isNotExist(err) {
		t.Errorf("missing path: %v", err)
	}
}

func FuzzUnescape(f *testing.F) {
	for _, s := range []string{"", "/a", "/a b", "/\\", "/a\tb\nc\\d#e", `/\040`, `\4`, `\04`, `\999`, `\777`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		unescape(s) // any input, also what no kernel writes
		// The kernel's seq_path and mangle escape " \t\n\\#".
		var b strings.Builder
		for i := range len(s) {
			if strings.IndexByte(" \t\n\\#", s[i]) >= 0 {
				fmt.Fprintf(&b, `\%03o`, s[i])
				continue
			}
			b.WriteByte(s[i])
		}
		if got := unescape(b.String()); got != s {
			t.Fatalf("%q came back as %q", s, got)
		}
	})
}
