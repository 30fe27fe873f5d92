// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/signet-spiffe/signet/internal/conformance"
)

// The endpoint of a workload is a Unix socket in a file system that no other host can mount.
func TestE1E2E4E5SocketsAreOfThisHost(t *testing.T) {
	conformance.Proves(t, "E1", "E2", "E4", "E5")
	needMounts(t)
	d, pod := published(t)
	l, err := d.Listen("spiffe.sock")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if network := l.Addr().Network(); network != "unix" {
		t.Errorf("the socket is of the network %s", network)
	}
	for _, path := range []string{pod, l.Addr().String(), filepath.Join(pod, "spiffe.sock")} {
		var at unix.Statfs_t
		if err := unix.Statfs(path, &at); err != nil || at.Type != unix.TMPFS_MAGIC {
			t.Errorf("%s is on a file system of type %x, %v; want tmpfs", path, at.Type, err)
		}
	}
}
