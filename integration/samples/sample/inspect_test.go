// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestListShowsModesOwnersAndTargets(t *testing.T) {
	ca := newTestCA(t)
	v := newVolume(t)
	v.write(ca.files(ca.issue("/a", time.Now().Add(time.Hour))))
	v.must(os.Symlink("nowhere", filepath.Join(v.dir, "zz")))
	v.must(os.Chmod(v.dir, 0o751))
	out, err := run(t, "ls", v.dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []entry
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatal(err)
	}
	uid, gid := uint32(os.Getuid()), uint32(os.Getgid())
	at := func(kind, mode string) node { return node{Type: kind, Mode: mode, UID: uid, GID: gid} }
	file, dir := at("file", "0400"), at("directory", "0700")
	link := at("symlink", "0777")
	want := []entry{
		{Name: ".", node: at("directory", "0751")},
		{Name: "..data", node: link, Target: "..gen-1", Resolved: &dir},
		{Name: "..gen-1", node: dir},
		{Name: "ca.crt", node: link, Target: "..data/ca.crt", Resolved: &file},
		{Name: "tls.crt", node: link, Target: "..data/tls.crt", Resolved: &file},
		{Name: "tls.key", node: link, Target: "..data/tls.key", Resolved: &file},
		{Name: "zz", node: link, Target: "nowhere"},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(entry{}), cmpopts.IgnoreFields(node{}, "Size")); diff != "" {
		t.Errorf("ls (-want +got):\n%s", diff)
	}
}

func TestCatPrintsTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("as it is\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := run(t, "cat", path); err != nil || out != "as it is\n" {
		t.Errorf("cat printed %q, %v", out, err)
	}
	if _, err := run(t, "cat", path+".missing"); err == nil {
		t.Error("cat of a missing file succeeded")
	}
}
