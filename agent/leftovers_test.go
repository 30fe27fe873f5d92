// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// published is a node on which a pod's volume was published and the agent died.
func published(t *testing.T) *node {
	t.Helper()
	n := newNode(t)
	a := n.start()
	if _, err := a.NodePublishVolume(t.Context(), n.publishRequest()); err != nil {
		t.Fatal(err)
	}
	a.kill()
	return n
}

func (n *node) unmountTarget() {
	n.t.Helper()
	if err := unix.Unmount(n.target("v", "mount"), 0); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) removePod() {
	n.t.Helper()
	if err := os.RemoveAll(filepath.Join(n.root, "pods", pod.UID)); err != nil {
		n.t.Fatal(err)
	}
}

// volumesInStore are the volumes that the store has on disk.
func (n *node) volumesInStore() int {
	n.t.Helper()
	entries, err := os.ReadDir(filepath.Join(n.root, "plugins/test.driver/volumes"))
	if err != nil {
		n.t.Fatal(err)
	}
	return len(entries)
}

// The pod went away while there was no agent: kubelet's folder of it is gone, and
// the agent that comes back keeps nothing of it, key and mount included.
func TestLeftoverOfADeadPodIsRemoved(t *testing.T) {
	n := published(t)
	n.unmountTarget()
	n.removePod()
	a := n.start()
	a.kill()
	n.wantNothingLeft()
	if got := n.issued.Load(); got != 1 {
		t.Errorf("%d issuances, want 1", got)
	}
}

// What is kept, for each reason that there is.
func TestVolumesOfLivingPodsAreKept(t *testing.T) {
	for name, change := range map[string]func(n *node){
		"as it was":                          func(*node) {},
		"kubelet is about to mount it again": func(n *node) { n.unmountTarget() },
		"pods directory cannot be seen": func(n *node) {
			n.unmountTarget()
			n.removePod()
			n.pods = podsDir(filepath.Join(n.root, "elsewhere"))
		},
		"kubelet's root is another one": func(n *node) { n.pods = podsDir(n.t.TempDir()) },
		"no pods directory to ask":      func(n *node) { n.unmountTarget(); n.removePod(); n.pods = "" },
	} {
		t.Run(name, func(t *testing.T) {
			n := published(t)
			change(n)
			a := n.start()
			if n.volumesInStore() != 1 {
				t.Fatal("the volume was removed")
			}
			if _, err := a.NodePublishVolume(t.Context(), n.publishRequest()); err != nil {
				t.Error(err)
			}
			n.serial()
			if got := n.issued.Load(); got != 1 {
				t.Errorf("%d issuances, want 1", got)
			}
			a.kill()
			n.unmountTarget()
		})
	}
}

func TestPodsDir(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "here"), 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		dir, uid string
		gone     bool
		fails    bool
	}{
		{dir, "here", false, false},
		{dir, "not-here", true, false},
		{"", "not-here", false, false},
		{dir, "", false, true},
		{dir, "..", false, true},
		{dir, "a/b", false, true},
		{dir, "/", false, true},
		{filepath.Join(dir, "missing"), "u", false, true},
		{file, "u", false, true},
	} {
		gone, err := podsDir(tt.dir).gone(tt.uid)
		if gone != tt.gone || (err != nil) != tt.fails {
			t.Errorf("pod %q in %q: gone %t, error %v", tt.uid, tt.dir, gone, err)
		}
	}
}
