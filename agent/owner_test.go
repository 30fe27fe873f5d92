// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	coreclient "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/signet-spiffe/signet/agent/boundpods"
	"github.com/signet-spiffe/signet/agent/issue"
	"github.com/signet-spiffe/signet/agent/workload"
)

// wantFilesOf checks who owns the files in the volume, and that the way to the
// socket is root's and open to all.
func (n *node) wantFilesOf(uid uint32) {
	n.t.Helper()
	dir := n.target("v", "mount")
	for name, want := range map[string]struct {
		uid  uint32
		mode fs.FileMode
	}{
		"..data/.": {uid, fs.ModeDir | 0o550}, "tls.crt": {uid, 0o440}, "tls.key": {uid, 0o440}, "ca.crt": {uid, 0o440},
		".": {0, fs.ModeDir | 0o555}, "spiffe.sock": {0, fs.ModeSocket | 0o777},
	} {
		at, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			n.t.Fatal(err)
		}
		if got := at.Sys().(*syscall.Stat_t).Uid; got != want.uid || at.Mode() != want.mode {
			n.t.Errorf("%s is %v and belongs to %d, want %v and %d", name, at.Mode(), got, want.mode, want.uid)
		}
	}
}

// Files keep the owner that the first agent found, though the next one can find
// out nothing, or is not to look.
func TestOwnerOutlivesAgents(t *testing.T) {
	n := newNode(t)
	user := int64(1321)
	n.owner = func(context.Context, workload.Volume) (*int64, error) { return &user, nil }
	a := n.start()
	if _, err := a.NodePublishVolume(t.Context(), n.publishRequest()); err != nil {
		t.Fatal(err)
	}
	n.wantFilesOf(1321)
	for name, owner := range map[string]func(context.Context, workload.Volume) (*int64, error){
		"the API server is away": func(context.Context, workload.Volume) (*int64, error) {
			return nil, fmt.Errorf("%w: connection refused", issue.ErrUnavailable)
		},
		"pods are not watched any more": nil,
	} {
		a.kill()
		// Were they not written anew, they would not show who they belong to now.
		if err := os.Remove(filepath.Join(n.root, "plugins/test.driver/volumes/v/pod/..data")); err != nil {
			t.Fatal(err)
		}
		n.owner = owner
		a = n.start()
		if _, err := a.NodePublishVolume(t.Context(), n.publishRequest()); err != nil {
			t.Errorf("%s: republish: %v", name, err)
		}
		n.fromSocket() // Comes after the files.
		n.wantFilesOf(1321)
	}
	if got := n.issued.Load(); got != 1 {
		t.Errorf("%d issuances, want 1", got)
	}
	if _, err := a.NodeUnpublishVolume(t.Context(), &csipb.NodeUnpublishVolumeRequest{VolumeId: "v", TargetPath: n.target("v", "mount")}); err != nil {
		t.Fatal(err)
	}
	a.kill()
	n.wantNothingLeft()
}

// A mount whose owner cannot be found fails as an outage, which kubelet tries
// again, and leaves nothing.
func TestMountWithoutAnOwnerIsTriedAgain(t *testing.T) {
	n := newNode(t)
	n.owner = func(context.Context, workload.Volume) (*int64, error) {
		return nil, fmt.Errorf("%w: connection refused", issue.ErrUnavailable)
	}
	a := n.start()
	_, err := a.NodePublishVolume(t.Context(), n.publishRequest())
	if status.Code(err) != codes.Unavailable {
		t.Errorf("%v, want Unavailable", err)
	}
	a.kill()
	if n.issued.Load() != 0 {
		t.Error("asked for an SVID all the same")
	}
	n.wantNothingLeft()
}

// A volume without files needs no owner: its mount does not depend on it.
func TestVolumeWithoutFilesNeedsNoOwner(t *testing.T) {
	if ownerOf(nil) != nil {
		t.Error("without --watch-pods somebody is asked")
	}
	pods, err := boundpods.New(boundpods.Options{Client: coreclient.New(nil), Node: "node-1"})
	if err != nil {
		t.Fatal(err)
	}
	v := workload.Volume{ID: "v", Pod: pod}
	v.Attributes.Delivery.NoFiles = true
	if user, err := ownerOf(pods)(t.Context(), v); user != nil || err != nil {
		t.Errorf("user %v, %v", user, err)
	}
}
