// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func volumeRoot(root string) string { return filepath.Join(root, testDriver, volumesDir) }

func TestCreateMountsOneTmpfs(t *testing.T) {
	needMounts(t)
	root := tempDir(t)
	s := openStore(t, root)
	d := create(t, s, "vol-1")
	if again := create(t, s, "vol-1"); again != d {
		t.Error("the second Create made another volume")
	}
	path := filepath.Join(volumeRoot(root), "vol-1")
	if n := mountsAt(t, path); n != 1 {
		t.Fatalf("%d mounts at %s", n, path)
	}
	at, err := lookAt(path)
	if err != nil {
		t.Fatal(err)
	}
	m, err := topMount(path, at)
	if err != nil {
		t.Fatal(err)
	}
	for _, option := range []string{"rw", "nosuid", "nodev", "noexec"} {
		if !slices.Contains(m.MountOptions, option) {
			t.Errorf("mount option %s is missing in %v", option, m.MountOptions)
		}
	}
	for _, option := range []string{"size=2048k", fmt.Sprintf("nr_inodes=%d", inodesPerVolume), "mode=700"} {
		if !slices.Contains(m.SuperOptions, option) {
			t.Errorf("option %s is missing in %v", option, m.SuperOptions)
		}
	}
	if kernelHasNoswap(t) && !slices.Contains(m.SuperOptions, "noswap") {
		t.Errorf("noswap is missing in %v", m.SuperOptions)
	}
	if got, ok := s.Get("vol-1"); !ok || got != d || d.ID() != "vol-1" {
		t.Error("Get does not know the volume")
	}
	dirs, asides := s.Volumes()
	if len(dirs) != 1 || dirs[0] != d || len(asides) != 0 {
		t.Errorf("Volumes: %v, %v", dirs, asides)
	}
}

func kernelHasNoswap(t *testing.T) bool {
	path := filepath.Join(tempDir(t), "probe")
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return unix.Mount("probe", path, "tmpfs", 0, "noswap") == nil
}

// oldKernel has no noswap.
type oldKernel struct{ kernel }

func (k oldKernel) Mount(source, target, fstype string, flags uintptr, data string) error {
	if strings.Contains(data, "noswap") {
		return unix.EINVAL
	}
	return k.kernel.Mount(source, target, fstype, flags, data)
}

func TestCreateWithoutNoswap(t *testing.T) {
	needMounts(t)
	var log logBuffer
	s, err := OpenStore(StoreOptions{DataRoot: tempDir(t), DriverName: testDriver, Mounter: oldKernel{}, Log: log.logger()})
	if err != nil {
		t.Fatal(err)
	}
	write(t, create(t, s, "vol-1"), map[string]string{"f": "x"}, nil)
	write(t, create(t, s, "vol-2"), map[string]string{"f": "x"}, nil)
	if n := strings.Count(log.String(), "no noswap"); n != 1 {
		t.Errorf("warned %d times:\n%s", n, log.String())
	}
}

// brokenMounter fails after so many mounts.
type brokenMounter struct {
	kernel
	mu   sync.Mutex
	left int
}

func (b *brokenMounter) Mount(source, target, fstype string, flags uintptr, data string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.left--; b.left < 0 {
		return unix.EPERM
	}
	return b.kernel.Mount(source, target, fstype, flags, data)
}

func TestCreateThatFailsLeavesNothing(t *testing.T) {
	root := t.TempDir()
	s, err := OpenStore(StoreOptions{DataRoot: root, DriverName: testDriver, Mounter: &brokenMounter{}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Create("vol-1")
	contains(t, err, "vol-1", "tmpfs")
	if left, err := os.ReadDir(volumeRoot(root)); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	for _, id := range []string{"", "..", ".", "a/b", ".hidden", "a\x00"} {
		if _, err := s.Create(id); !errors.Is(err, ErrInvalid) {
			t.Errorf("Create(%q): %v", id, err)
		}
		if err := s.Remove(id); !errors.Is(err, ErrInvalid) {
			t.Errorf("Remove(%q): %v", id, err)
		}
	}
}

func TestOpenStoreRefusesBadOptions(t *testing.T) {
	for _, o := range []StoreOptions{
		{DataRoot: "relative", DriverName: testDriver},
		{DataRoot: t.TempDir(), DriverName: ""},
		{DataRoot: t.TempDir(), DriverName: "../x"},
		{DataRoot: t.TempDir(), DriverName: ".."},
	} {
		if _, err := OpenStore(o); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

func TestRemoveLeavesNothing(t *testing.T) {
	needMounts(t)
	root := tempDir(t)
	s := openStore(t, root)
	d := create(t, s, "vol-1")
	write(t, d, map[string]string{"tls.key": "SECRET KEY"}, nil)
	if err := errors.Join(d.WriteState([]byte("SECRET STATE")), d.WriteAttempt([]byte("SECRET ATTEMPT"))); err != nil {
		t.Fatal(err)
	}
	l, err := d.Listen("spiffe.sock")
	if err != nil {
		t.Fatal(err)
	}
	target := makeTargetParent(t, root, "pod", "spiffe")
	elsewhere := filepath.Join(root, "elsewhere")
	mustMount(t, filepath.Join(d.path, podDir), elsewhere, "", unix.MS_BIND, "")
	if err := d.BindTo(target); err != nil {
		t.Fatal(err)
	}
	// A container that still runs holds the files open.
	key, err := os.Open(filepath.Join(target, "tls.key"))
	if err != nil {
		t.Fatal(err)
	}
	defer key.Close()
	state, err := os.Open(filepath.Join(d.path, privateDir, stateFile))
	if err != nil {
		t.Fatal(err)
	}
	defer state.Close()
	attempt := openPrivate(t, d, attemptFile)

	if err := s.Remove("vol-1"); err != nil {
		t.Fatal(err)
	}
	if left := mountsUnder(t, root); len(left) != 0 {
		t.Errorf("mounts left: %v", left)
	}
	if left, err := os.ReadDir(volumeRoot(root)); err != nil || len(left) != 0 {
		t.Errorf("entries left: %v, %v", left, err)
	}
	for _, f := range []*os.File{key, state, attempt} {
		got, err := io.ReadAll(f)
		if err != nil || len(bytes.Trim(got, "\x00")) != 0 {
			t.Errorf("%s still reads %q, %v", f.Name(), got, err)
		}
	}
	if _, err := l.Accept(); err == nil {
		t.Error("the socket still listens")
	}
	if _, ok := s.Get("vol-1"); ok {
		t.Error("Get still knows the volume")
	}
	for name, f := range map[string]func() error{
		"Write":         func() error { return d.Write(Files{Payload: map[string][]byte{"f": nil}}) },
		"WriteState":    func() error { return d.WriteState(nil) },
		"ReadState":     func() error { _, err := d.ReadState(); return err },
		"WriteAttempt":  func() error { return d.WriteAttempt(nil) },
		"ReadAttempt":   func() error { _, err := d.ReadAttempt(); return err },
		"RemoveAttempt": func() error { return d.RemoveAttempt() },
		"Listen":        func() error { _, err := d.Listen("s"); return err },
		"BindTo":        func() error { return d.BindTo(target) },
	} {
		if err := f(); !errors.Is(err, ErrAborted) {
			t.Errorf("%s after Remove: %v", name, err)
		}
	}
	if err := s.Remove("vol-1"); err != nil {
		t.Errorf("second Remove: %v", err)
	}
	if err := s.Remove("never-seen"); err != nil {
		t.Errorf("Remove of an unknown volume: %v", err)
	}
	if again := create(t, s, "vol-1"); again == d {
		t.Error("Create returned the removed volume")
	}
}

// stubbornMounter refuses to unmount until told otherwise.
type stubbornMounter struct {
	kernel
	mu   sync.Mutex
	mild bool
}

func (m *stubbornMounter) Unmount(target string, flags int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.mild {
		return unix.EPERM
	}
	return m.kernel.Unmount(target, flags)
}

func TestRemoveCanBeRepeatedAfterAnError(t *testing.T) {
	needMounts(t)
	root := tempDir(t)
	mounter := &stubbornMounter{}
	s, err := OpenStore(StoreOptions{DataRoot: root, DriverName: testDriver, Mounter: mounter})
	if err != nil {
		t.Fatal(err)
	}
	d := create(t, s, "vol-1")
	write(t, d, map[string]string{"tls.key": "SECRET"}, nil)
	if err := s.Remove("vol-1"); !errors.Is(err, unix.EPERM) {
		t.Fatalf("Remove: %v", err)
	}
	if _, ok := s.Get("vol-1"); ok {
		t.Error("a half-removed volume is offered")
	}
	if err := d.Write(Files{}); !errors.Is(err, ErrAborted) {
		t.Errorf("Write to a half-removed volume: %v", err)
	}
	// An agent that starts now finds the wiped volume and can finish.
	after := openStore(t, root)
	found, ok := after.Get("vol-1")
	if !ok {
		t.Fatal("the wiped volume was not found")
	}
	if _, err := found.ReadState(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("state of a wiped volume: %v", err)
	}
	mounter.mu.Lock()
	mounter.mild = true
	mounter.mu.Unlock()
	if err := s.Remove("vol-1"); err != nil {
		t.Fatal(err)
	}
	if left := mountsUnder(t, root); len(left) != 0 {
		t.Errorf("mounts left: %v", left)
	}
	if err := after.Remove("vol-1"); err != nil {
		t.Errorf("Remove of what is gone: %v", err)
	}
}

func TestRemoveOfABusyVolume(t *testing.T) {
	needMounts(t)
	root := tempDir(t)
	s := openStore(t, root)
	d := create(t, s, "vol-1")
	write(t, d, map[string]string{"tls.key": "SECRET"}, nil)
	busy, err := os.Open(d.path)
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	if err := s.Remove("vol-1"); err != nil {
		t.Fatal(err)
	}
	if left := mountsUnder(t, root); len(left) != 0 {
		t.Errorf("mounts left: %v", left)
	}
	entries, err := fs.ReadDir(os.DirFS(fmt.Sprintf("/proc/self/fd/%d", busy.Fd())), podDir)
	if err != nil || len(entries) != 0 {
		t.Errorf("left for the one who kept it busy: %v, %v", entries, err)
	}
}

func TestStoreRecoversItsVolumes(t *testing.T) {
	needMounts(t)
	root := tempDir(t)
	before := openStore(t, root)
	d := create(t, before, "vol-1")
	write(t, d, map[string]string{"tls.crt": "chain"}, gid(77))
	if err := d.WriteState([]byte("state")); err != nil {
		t.Fatal(err)
	}
	target := makeTargetParent(t, root, "pod", "spiffe")
	if err := d.BindTo(target); err != nil {
		t.Fatal(err)
	}

	after := openStore(t, root)
	dirs, asides := after.Volumes()
	if len(dirs) != 1 || len(asides) != 0 {
		t.Fatalf("Volumes: %v, %v", dirs, asides)
	}
	found := dirs[0]
	if b, err := found.ReadState(); err != nil || string(b) != "state" {
		t.Errorf("state %q, %v", b, err)
	}
	if bound, err := found.IsBoundAt(target); !bound || err != nil {
		t.Errorf("bound: %v, %v", bound, err)
	}
	write(t, found, map[string]string{"tls.crt": "renewed"}, gid(77))
	if b, err := os.ReadFile(filepath.Join(target, "tls.crt")); err != nil || string(b) != "renewed" {
		t.Errorf("the pod reads %q, %v", b, err)
	}
	if n := len(mountsUnder(t, root)); n != 2 {
		t.Errorf("%d mounts", n)
	}
}

func TestStoreSetsJunkAside(t *testing.T) {
	needMounts(t)
	root := tempDir(t)
	good := create(t, openStore(t, root), "good")
	if err := good.WriteState([]byte("state")); err != nil {
		t.Fatal(err)
	}
	in := func(name string) string { return filepath.Join(volumeRoot(root), name) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(in("metadata.json"), []byte("{"), 0o600))
	must(os.MkdirAll(in("full/data"), 0o755))
	must(os.Mkdir(in("empty"), 0o755))
	must(os.Symlink("/etc", in("link")))
	must(os.WriteFile(in("nam e"), nil, 0o600))
	must(os.WriteFile(in(strings.Repeat("n", 255)), nil, 0o600))
	must(os.Mkdir(in(junkPrefix+"1-old"), 0o755))
	mustMount(t, "foreign", in("foreign"), "tmpfs", 0, "")
	must(os.WriteFile(in("foreign/precious"), []byte("x"), 0o600))
	mustMount(t, "half", in("half"), "tmpfs", 0, "")
	must(os.MkdirAll(in("half/"+podDir), 0o755))
	must(os.MkdirAll(in("half/"+privateDir), 0o700))
	must(os.WriteFile(in("half/"+privateDir+"/"+ownerFile+temporarySuffix), []byte(`{"dri`), 0o600))
	mustMount(t, "theirs", in("theirs"), "tmpfs", 0, "")
	must(os.MkdirAll(in("theirs/"+privateDir), 0o700))
	must(os.WriteFile(in("theirs/"+privateDir+"/"+ownerFile), []byte(`{"driver":"other.example","volume":"theirs"}`), 0o600))
	mustMount(t, "garbled", in("garbled"), "tmpfs", 0, "")
	must(os.MkdirAll(in("garbled/"+privateDir), 0o700))
	must(os.WriteFile(in("garbled/"+privateDir+"/"+ownerFile), []byte(`{{{`), 0o600))
	mustMount(t, "proc", in("proc"), "proc", 0, "")

	s := openStore(t, root)
	dirs, asides := s.Volumes()
	if len(dirs) != 1 || dirs[0].ID() != "good" {
		t.Errorf("volumes: %v", dirs)
	}
	if len(asides) != 9 { // metadata.json, full, link, nam e, nnn, foreign, theirs, garbled, proc
		t.Errorf("%d entries reported:\n%v", len(asides), errors.Join(asides...))
	}
	if b, err := os.ReadFile(in("foreign/precious")); err != nil || string(b) != "x" {
		t.Errorf("the foreign mount was touched: %q, %v", b, err)
	}
	for _, gone := range []string{"metadata.json", "full", "empty", "link", "half"} {
		if _, err := os.Lstat(in(gone)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still in the way: %v", gone, err)
		}
	}
	// The names are free, except where a foreign mount stays.
	for _, id := range []string{"metadata.json", "full", "empty", "link", "half"} {
		create(t, s, id)
	}
	if _, err := s.Create("theirs"); !errors.Is(err, errForeign) {
		t.Errorf("Create over another driver's volume: %v", err)
	}
	junk, err := filepath.Glob(in(junkPrefix + "*"))
	if err != nil || len(junk) != 6 {
		t.Errorf("junk: %v, %v", junk, err)
	}
	// A second start has nothing new to set aside.
	if _, asides = openStore(t, root).Volumes(); len(asides) != 4 {
		t.Errorf("second start reports %v", asides)
	}
}

func TestStoreWhoseDirectoryIsAFile(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, testDriver), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(volumeRoot(root), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := OpenStore(StoreOptions{DataRoot: root, DriverName: testDriver})
	contains(t, err, volumeRoot(root), "not a directory")
}

func TestTwoDriversDoNotMeet(t *testing.T) {
	needMounts(t)
	root := tempDir(t)
	a := openStore(t, root)
	b, err := OpenStore(StoreOptions{DataRoot: root, DriverName: "other.example"})
	if err != nil {
		t.Fatal(err)
	}
	write(t, create(t, a, "vol-1"), map[string]string{"f": "a"}, nil)
	target := makeTargetParent(t, root, "pod", "spiffe")
	da, _ := a.Get("vol-1")
	if err := da.BindTo(target); err != nil {
		t.Fatal(err)
	}
	if _, ok := b.Get("vol-1"); ok {
		t.Error("the other driver sees the volume")
	}
	db := create(t, b, "vol-1")
	write(t, db, map[string]string{"f": "b"}, nil)
	if err := db.BindTo(target); !errors.Is(err, errForeign) {
		t.Errorf("bind over the other driver's volume: %v", err)
	}
	if err := b.Remove("vol-1"); err != nil {
		t.Fatal(err)
	}
	for _, reopened := range []string{testDriver, "other.example"} {
		s, err := OpenStore(StoreOptions{DataRoot: root, DriverName: reopened})
		if err != nil {
			t.Fatal(err)
		}
		if dirs, asides := s.Volumes(); len(asides) != 0 || (len(dirs) == 1) != (reopened == testDriver) {
			t.Errorf("%s finds %v, %v", reopened, dirs, asides)
		}
	}
	if b, err := os.ReadFile(filepath.Join(target, "f")); err != nil || string(b) != "a" {
		t.Errorf("the pod reads %q, %v", b, err)
	}
}

func TestNothingIsWrittenBelowAVanishedTmpfs(t *testing.T) {
	needMounts(t)
	root := tempDir(t)
	s := openStore(t, root)
	d := create(t, s, "vol-1")
	write(t, d, map[string]string{"tls.key": "SECRET"}, nil)
	mustUnmount(t, d.path)
	for name, f := range map[string]func() error{
		"Write":        func() error { return d.Write(Files{Payload: map[string][]byte{"tls.key": []byte("SECRET")}}) },
		"WriteState":   func() error { return d.WriteState([]byte("SECRET")) },
		"WriteAttempt": func() error { return d.WriteAttempt([]byte("SECRET")) },
		"Listen":       func() error { _, err := d.Listen("s"); return err },
	} {
		contains(t, f(), "not mounted any more")
		if left, err := os.ReadDir(d.path); err != nil || len(left) != 0 {
			t.Errorf("%s left on the disk: %v, %v", name, left, err)
		}
	}
	// The next publish starts afresh.
	again := create(t, s, "vol-1")
	write(t, again, map[string]string{"tls.key": "NEW"}, nil)
	if got, _ := s.Get("vol-1"); got != again {
		t.Error("Get returns the old volume")
	}
	// And somebody else's tmpfs at that place is not taken for the volume, whether above it or instead of it.
	// In the second case the kernel gives it the same device number.
	mustMount(t, "foreign", again.path, "tmpfs", 0, "")
	contains(t, again.WriteState([]byte("SECRET")), "not mounted any more")
	mustUnmount(t, again.path)
	mustUnmount(t, again.path)
	mustMount(t, "foreign", again.path, "tmpfs", 0, "")
	if at, err := lookAt(again.path); err != nil || !at.sameFile(again.at) {
		t.Logf("this kernel did not reuse the device number: %+v, %+v, %v", again.at, at, err)
	}
	contains(t, again.WriteState([]byte("SECRET")), "not mounted any more")
	if err := s.Remove("vol-1"); !errors.Is(err, errForeign) {
		t.Errorf("Remove: %v", err)
	}
	mustUnmount(t, again.path)
	if err := s.Remove("vol-1"); err != nil {
		t.Error(err)
	}
	if left := mountsUnder(t, root); len(left) != 0 {
		t.Errorf("mounts left: %v", left)
	}
}

// The kernel gives the device number of an unmounted tmpfs to the next one.
func TestDeviceNumbersComeBack(t *testing.T) {
	needMounts(t)
	root := tempDir(t)
	s := openStore(t, root)
	var lost []*Dir
	for i := range 8 {
		d := create(t, s, fmt.Sprintf("lost-%d", i))
		mustUnmount(t, d.path)
		lost = append(lost, d)
	}
	d := create(t, s, "vol-1")
	reused := 0
	for _, l := range lost {
		if l.at.sameDevice(d.at) {
			reused++
		}
	}
	if reused == 0 {
		t.Skip("this kernel did not reuse a device number")
	}
	target := makeTargetParent(t, root, "pod", "spiffe")
	for range 2 {
		if err := d.BindTo(target); err != nil {
			t.Fatal(err)
		}
	}
	if n := mountsAt(t, target); n != 1 {
		t.Errorf("%d mounts at the target", n)
	}
	if id, live := s.volumeOn(d.at); !live || id != "vol-1" {
		t.Errorf("the target shows %q, %v", id, live)
	}
	for _, l := range lost {
		if err := s.Remove(l.id); err != nil {
			t.Error(err)
		}
	}
	if bound, err := d.IsBoundAt(target); !bound || err != nil {
		t.Errorf("removing lost volumes took another's mount: %v, %v", bound, err)
	}
}

func TestConcurrentCreateAndRemove(t *testing.T) {
	needMounts(t)
	root := tempDir(t)
	s := openStore(t, root)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 10 {
				id := fmt.Sprintf("vol-%d", (i+j)%3)
				d, err := s.Create(id)
				if err != nil {
					t.Errorf("Create: %v", err)
					continue
				}
				if err := d.Write(Files{Payload: map[string][]byte{"f": []byte("x")}}); err != nil && !errors.Is(err, ErrAborted) {
					t.Errorf("Write: %v", err)
				}
				if err := s.Remove(id); err != nil {
					t.Errorf("Remove: %v", err)
				}
			}
		})
	}
	wg.Wait()
	if left := mountsUnder(t, root); len(left) != 0 {
		t.Errorf("mounts left: %v", left)
	}
	if len(s.ids.m) != 0 {
		t.Errorf("locks left: %v", s.ids.m)
	}
}

func TestRequireSharedRefusesPrivateMounts(t *testing.T) {
	needMounts(t)
	root := tempDir(t)
	private, shared := filepath.Join(root, "private"), filepath.Join(root, "shared")
	mustMount(t, "p", private, "tmpfs", 0, "")
	mustMount(t, "s", shared, "tmpfs", 0, "")
	if err := unix.Mount("", shared, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	open := func(dataRoot string) (*Store, error) {
		return OpenStore(StoreOptions{DataRoot: dataRoot, DriverName: testDriver, RequireShared: true})
	}
	_, err := open(private)
	contains(t, err, private, "Bidirectional")
	s, err := open(shared)
	if err != nil {
		t.Fatal(err)
	}
	d := create(t, s, "vol-1")
	contains(t, d.BindTo(makeTargetParent(t, private, "pod", "spiffe")), "Bidirectional")
	if err := d.BindTo(makeTargetParent(t, shared, "pod", "spiffe")); err != nil {
		t.Error(err)
	}
}

// childAgent makes the test binary an agent in a mount namespace of its own: it publishes one volume below
// the directory named, says so, and waits to be killed.
const childAgent = "SIGNET_TEST_CHILD_AGENT"

func runChildAgent(root string) {
	fail := func(err error) {
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	s, err := OpenStore(StoreOptions{DataRoot: root, DriverName: testDriver, RequireShared: true})
	fail(err)
	d, err := s.Create("vol-1")
	fail(err)
	fail(d.Write(Files{Payload: map[string][]byte{"tls.crt": []byte("chain")}}))
	fail(d.WriteState([]byte("state")))
	_, err = d.Listen("spiffe.sock")
	fail(err)
	fail(d.BindTo(filepath.Join(root, "target")))
	fmt.Println("published")
	select {}
}

// An agent in a container is killed; what it published is there for kubelet, for the pod, and for the next
// agent.
func TestVolumesOutliveTheAgent(t *testing.T) {
	needMounts(t)
	root := tempDir(t)
	mustMount(t, "kubelet", root, "tmpfs", 0, "mode=0755")
	if err := unix.Mount("", root, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	agent := exec.Command("/proc/self/exe")
	agent.Env = append(os.Environ(), childAgent+"="+root)
	// Cloneflags, unlike Unshareflags, keeps the propagation: as Bidirectional does.
	agent.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	out, err := agent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if strings.TrimSpace(line) != "published" {
		t.Fatalf("agent says %q, %v", line, err)
	}
	if err := agent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = agent.Wait() // killed

	target := filepath.Join(root, "target")
	if n := mountsAt(t, target); n != 1 {
		t.Fatalf("kubelet sees %d mounts", n)
	}
	s := openStore(t, root)
	d, ok := s.Get("vol-1")
	if !ok {
		t.Fatal("the next agent does not find the volume")
	}
	if b, err := d.ReadState(); err != nil || string(b) != "state" {
		t.Errorf("state %q, %v", b, err)
	}
	l, err := d.Listen("spiffe.sock")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	echoOnce(t, l)
	if got := ask(t, filepath.Join(target, "spiffe.sock")); got != "hello" {
		t.Errorf("the pod hears %q", got)
	}
	write(t, d, map[string]string{"tls.crt": "renewed"}, nil)
	if b, err := os.ReadFile(filepath.Join(target, "tls.crt")); err != nil || string(b) != "renewed" {
		t.Errorf("the pod reads %q, %v", b, err)
	}
	if err := s.Remove("vol-1"); err != nil {
		t.Fatal(err)
	}
	if left := mountsUnder(t, root); len(left) != 1 { // root itself
		t.Errorf("mounts left: %v", left)
	}
}
