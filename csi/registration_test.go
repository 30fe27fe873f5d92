// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/testing/protocmp"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// watchUntil waits for changes in dir until ok holds. The test's own timeout is the limit.
func watchUntil(t testing.TB, dir string, ok func() bool) {
	t.Helper()
	w, err := fsnotify.NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := w.Add(dir); err != nil {
		t.Fatal(err)
	}
	for !ok() {
		select {
		case <-w.Events:
		case err := <-w.Errors:
			t.Fatal(err)
		case <-contextOf(t).Done():
			t.Fatal("the test ended first")
		}
	}
}

// sameSocket knows that an inode may be used again.
func sameSocket(a, b os.FileInfo) bool { return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) }

type testRegistration struct {
	*Registration
	dir, socket string
	stop        func()
}

func startRegistration(t *testing.T, dir string, change ...func(*Registration)) testRegistration {
	t.Helper()
	r, err := NewRegistration(RegistrationOptions{
		Dir: dir, DriverName: testDriver, Endpoint: "/var/lib/kubelet/plugins/x/csi.sock", Log: testLog(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range change {
		c(r)
	}
	return testRegistration{r, dir, filepath.Join(dir, testDriver+"-reg.sock"), runUntilCleanup(t, r.Run)}
}

// waitSocket waits for a socket that is not the one before.
func (r testRegistration) waitSocket(t *testing.T, before os.FileInfo) os.FileInfo {
	t.Helper()
	var now os.FileInfo
	watchUntil(t, r.dir, func() bool {
		var err error
		now, err = os.Stat(r.socket)
		return err == nil && now.Mode().Type() == fs.ModeSocket && (before == nil || !sameSocket(before, now))
	})
	return now
}

// register does what kubelet does when it finds a socket.
func (r testRegistration) register(t *testing.T, status *registerapi.RegistrationStatus) {
	t.Helper()
	client := registerapi.NewRegistrationClient(dial(t, r.socket))
	info, err := client.GetInfo(contextOf(t), &registerapi.InfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	want := &registerapi.PluginInfo{
		Type: "CSIPlugin", Name: testDriver, Endpoint: "/var/lib/kubelet/plugins/x/csi.sock", SupportedVersions: []string{"1.0.0"},
	}
	if diff := cmp.Diff(want, info, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if _, err := client.NotifyRegistrationStatus(contextOf(t), status); err != nil {
		t.Fatal(err)
	}
}

func TestRegistration(t *testing.T) {
	r := startRegistration(t, t.TempDir())
	first := r.waitSocket(t, nil)
	if first.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("mode %v", first.Mode())
	}
	if r.Registered() {
		t.Error("registered before kubelet came")
	}
	r.register(t, &registerapi.RegistrationStatus{PluginRegistered: true})
	if !r.Registered() {
		t.Error("not registered after kubelet said so")
	}
	// Kubelet restarts, finds the socket and registers once more.
	r.register(t, &registerapi.RegistrationStatus{PluginRegistered: true})

	// Somebody empties the directory.
	if err := os.Remove(r.socket); err != nil {
		t.Fatal(err)
	}
	r.waitSocket(t, nil)
	if r.Registered() {
		t.Error("still registered although kubelet saw the socket go")
	}
	r.register(t, &registerapi.RegistrationStatus{PluginRegistered: true})
	if !r.Registered() {
		t.Error("not registered again")
	}
	r.stop()
	if left, err := os.ReadDir(r.dir); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// A node without an inotify instance left: kubelet registers the driver all the same, and a socket that
// vanishes is made anew.
func TestRegistrationWithoutAWatch(t *testing.T) {
	r := startRegistration(t, t.TempDir(), func(r *Registration) {
		r.watcher = func(string) (*fsnotify.Watcher, error) { return nil, unix.EMFILE }
		r.lookEvery = 5 * time.Millisecond
	})
	first := r.waitSocket(t, nil)
	r.register(t, &registerapi.RegistrationStatus{PluginRegistered: true})
	if !r.Registered() {
		t.Error("not registered after kubelet said so")
	}
	if err := os.Remove(r.socket); err != nil {
		t.Fatal(err)
	}
	again := r.waitSocket(t, first)
	r.register(t, &registerapi.RegistrationStatus{Error: "no such version"})
	r.waitSocket(t, again)
	r.register(t, &registerapi.RegistrationStatus{PluginRegistered: true})
	if !r.Registered() {
		t.Error("not registered again")
	}
}

func TestRefusedRegistrationIsTriedAgain(t *testing.T) {
	r := startRegistration(t, t.TempDir())
	first := r.waitSocket(t, nil)
	r.register(t, &registerapi.RegistrationStatus{Error: "no such version"})
	if r.Registered() {
		t.Error("registered although kubelet refused")
	}
	r.waitSocket(t, first)
	r.register(t, &registerapi.RegistrationStatus{PluginRegistered: true})
	if !r.Registered() {
		t.Error("not registered the second time")
	}
}

// In a rolling update the new agent's socket takes the place of the old one's, which neither fights for it
// nor removes it when it ends.
func TestRegistrationOfTheNextAgent(t *testing.T) {
	dir := t.TempDir()
	old := startRegistration(t, dir)
	first := old.waitSocket(t, nil)
	next := startRegistration(t, dir)
	second := next.waitSocket(t, first)
	old.stop()
	now, err := os.Stat(next.socket)
	if err != nil || !os.SameFile(second, now) {
		t.Fatalf("the next agent's socket was touched: %v", err)
	}
	next.register(t, &registerapi.RegistrationStatus{PluginRegistered: true})
	if !next.Registered() {
		t.Error("not registered")
	}
}

func TestRegistrationWithAFileInTheWay(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, testDriver+"-reg.sock")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r := startRegistration(t, dir)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	r.waitSocket(t, nil)
	r.register(t, &registerapi.RegistrationStatus{PluginRegistered: true})
}

func TestNewRegistrationRefusesBadOptions(t *testing.T) {
	for _, o := range []RegistrationOptions{
		{Dir: "relative", DriverName: testDriver, Endpoint: "/x"},
		{Dir: "/r", DriverName: "a/b", Endpoint: "/x"},
		{Dir: "/r", DriverName: testDriver, Endpoint: "unix:///x"},
		{Dir: "/" + strings.Repeat("r", 100), DriverName: testDriver, Endpoint: "/x"},
	} {
		if _, err := NewRegistration(o); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}
