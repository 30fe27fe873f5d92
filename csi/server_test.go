// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
)

func TestParseEndpoint(t *testing.T) {
	for endpoint, want := range map[string]string{
		"unix:///var/lib/kubelet/plugins/x/csi.sock": "/var/lib/kubelet/plugins/x/csi.sock",
		"unix://plugin/csi.sock":                     "/plugin/csi.sock",
		"unix://plugin//./csi.sock":                  "/plugin/csi.sock",
		"tcp://0.0.0.0:10000":                        "",
		"/plugin/csi.sock":                           "",
		"unix://":                                    "",
		"unix:///":                                   "",
		"":                                           "",
		"unix:///" + strings.Repeat("x", 107):        "",
	} {
		got, err := ParseEndpoint(endpoint)
		if got != want || (err == nil) != (want != "") || err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %q, %v; want %q", endpoint, got, err, want)
		}
	}
}

// plainServer is a server without volumes; it needs no root.
func plainServer(t *testing.T, socket string) *Server {
	t.Helper()
	s, err := OpenStore(StoreOptions{DataRoot: t.TempDir(), DriverName: testDriver})
	if err != nil {
		t.Fatal(err)
	}
	server, err := NewServer(ServerOptions{
		Endpoint: "unix://" + socket, DriverName: testDriver, Version: "v1", NodeID: "n", Workloads: &stubAgent{store: s}, Store: s,
	})
	if err != nil {
		t.Fatal(err)
	}
	return server
}

func TestNewServerRefusesBadOptions(t *testing.T) {
	store := &Store{}
	good := ServerOptions{Endpoint: "unix:///x", DriverName: testDriver, Version: "v1", NodeID: "n", Workloads: &stubAgent{}, Store: store}
	if _, err := NewServer(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*ServerOptions){
		"endpoint":  func(o *ServerOptions) { o.Endpoint = "tcp://x" },
		"name":      func(o *ServerOptions) { o.DriverName = "a/b" },
		"version":   func(o *ServerOptions) { o.Version = "" },
		"node":      func(o *ServerOptions) { o.NodeID = "" },
		"long node": func(o *ServerOptions) { o.NodeID = strings.Repeat("n", 257) },
		"workloads": func(o *ServerOptions) { o.Workloads = nil },
		"store":     func(o *ServerOptions) { o.Store = nil },
	} {
		o := good
		change(&o)
		if _, err := NewServer(o); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestServerReplacesAStaleSocket(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "plugin", "csi.sock") // the directory is made
	if err := os.Mkdir(filepath.Dir(socket), 0o750); err != nil {
		t.Fatal(err)
	}
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: socket})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	if err := stale.Close(); err != nil {
		t.Fatal(err)
	}
	stop := runUntilCleanup(t, plainServer(t, socket).Run)
	// The name leads to the dead socket until ours is in place: wait for ours.
	probe := func() error {
		_, err := csipb.NewIdentityClient(dial(t, socket)).Probe(contextOf(t), &csipb.ProbeRequest{})
		return err
	}
	if err := probe(); err != nil {
		t.Fatal(err)
	}
	at, err := os.Stat(socket)
	if err != nil || at.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("mode %v, %v", at.Mode(), err)
	}

	// A second agent takes over; the first, ending, leaves the second's socket alone.
	runUntilCleanup(t, plainServer(t, socket).Run)
	waitReplaced(t, socket, at)
	stop()
	if err := probe(); err != nil {
		t.Error(err)
	}
}

// waitReplaced waits until path is another file than before.
func waitReplaced(t *testing.T, path string, before os.FileInfo) {
	t.Helper()
	watchUntil(t, filepath.Dir(path), func() bool {
		now, err := os.Stat(path)
		return err == nil && !sameSocket(before, now)
	})
}

func TestServerDoesNotReplaceAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "csi.sock")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := plainServer(t, path).Run(contextOf(t))
	contains(t, err, path, "not a socket")
	if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestServerRemovesItsSocket(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "csi.sock")
	stop := runUntilCleanup(t, plainServer(t, socket).Run)
	if _, err := csipb.NewIdentityClient(dial(t, socket)).Probe(contextOf(t), &csipb.ProbeRequest{}); err != nil {
		t.Fatal(err)
	}
	stop()
	if _, err := os.Lstat(socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("socket left: %v", err)
	}
	ended, cancel := context.WithCancel(contextOf(t))
	cancel()
	if err := plainServer(t, socket).Run(ended); err != nil {
		t.Errorf("run with an ended context: %v", err)
	}
}
