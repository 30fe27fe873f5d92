// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const hybridMounts = `22 1 254:0 / / rw - ext4 /dev/vda rw
30 22 0:25 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
32 30 0:27 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
33 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/lib/agent,name=systemd
34 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
35 22 0:27 / /mnt/again rw - cgroup cgroup rw,pids
36 30 0:30 /docker/x /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
`

func TestParseHierarchies(t *testing.T) {
	got, err := parseHierarchies(strings.NewReader(hybridMounts))
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, h := range got {
		line := h.path + " " + strings.Join(h.controllers, "+")
		if h.tracksOnly() {
			line += " tracks only"
		}
		lines = append(lines, line)
	}
	want := []string{
		"/sys/fs/cgroup/cpu,cpuacct cpu+cpuacct",
		"/sys/fs/cgroup/pids pids tracks only",
		"/sys/fs/cgroup/systemd name=systemd tracks only",
		"/sys/fs/cgroup/unified  tracks only",
	}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	unified, err := parseHierarchies(strings.NewReader("30 22 0:25 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"))
	if err != nil || len(unified) != 1 || !unified[0].unified {
		t.Errorf("a host with version 2 only: %+v, %v", unified, err)
	}
}

func FuzzParseHierarchies(f *testing.F) {
	f.Add(hybridMounts)
	f.Add(" - \n- - -\n")
	f.Fuzz(func(t *testing.T, mountinfo string) {
		list, err := parseHierarchies(strings.NewReader(mountinfo))
		if err != nil {
			return
		}
		for _, h := range list {
			if h.path != "/sys/fs/cgroup" && !strings.HasPrefix(h.path, "/sys/fs/cgroup/") {
				t.Errorf("would write to %q", h.path)
			}
		}
	})
}

func TestParseProcStatus(t *testing.T) {
	for _, test := range []struct {
		name, status string
		ppid         int
		numbers      []int
	}{
		{"nested", "Name:\tx\nPPid:\t41\nNSpid:\t42\t7\t1\n", 41, []int{42, 7, 1}},
		{"host", "PPid:\t1\nNSpid:\t9\n", 1, []int{9}},
		{"old kernel", "PPid:\t1\n", 1, nil},
		{"nonsense", "PPid:\tx\nNSpid:\t9\ty\n", 0, nil},
	} {
		ppid, numbers := parseProcStatus([]byte(test.status))
		if diff := cmp.Diff(test.numbers, numbers); ppid != test.ppid || diff != "" {
			t.Errorf("%s: parent %d, numbers (-want +got):\n%s", test.name, ppid, diff)
		}
	}
}

func TestDecode(t *testing.T) {
	objects, err := decode([]byte(`# only a comment
---
apiVersion: v1
kind: Namespace
metadata: {name: a}
---
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Secret, metadata: {name: b, namespace: a}}
- {apiVersion: v1, kind: Secret, metadata: {name: c, namespace: a}}
`))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, o := range objects {
		got = append(got, describeObject(o))
	}
	if diff := cmp.Diff([]string{"Namespace a", "Secret a/b", "Secret a/c"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for manifest, want := range map[string]string{
		"kind: Pod":                         "document 1: has no apiVersion",
		"a: 1\n---\n":                       "document 1: has no apiVersion",
		"apiVersion: v1\nkind: X\n---\n- a": "document 2",
		"{":                                 "document 1",
	} {
		if _, err := decode([]byte(manifest)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", manifest, err, want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: Pod}]\n"))
	f.Add([]byte("---\n...\n---"))
	f.Fuzz(func(t *testing.T, manifest []byte) {
		objects, err := decode(manifest)
		if err != nil {
			return
		}
		for _, o := range objects {
			_ = describeObject(o)
		}
	})
}

func TestTail(t *testing.T) {
	if got := tail([]byte("a\nb\nc\n\n"), 2); got != "b\nc" {
		t.Errorf("got %q", got)
	}
	if got := tail(bytes.Repeat([]byte("x"), 3), 5); got != "xxx" {
		t.Errorf("got %q", got)
	}
}
