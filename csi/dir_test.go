// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// published makes a volume and shows it read-only to a pod, as kubelet does.
func published(t testing.TB) (d *Dir, podView string) {
	t.Helper()
	root := tempDir(t)
	d = create(t, openStore(t, root), "vol-1")
	target := makeTargetParent(t, root, "pod", "spiffe")
	if err := d.BindTo(target); err != nil {
		t.Fatal(err)
	}
	podView = filepath.Join(root, "container")
	mustMount(t, target, podView, "", unix.MS_BIND, "")
	if err := unix.Mount("", podView, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		t.Fatal(err)
	}
	return d, podView
}

func TestFilesAsThePodSeesThem(t *testing.T) {
	needMounts(t)
	for name, c := range map[string]struct {
		uid, gid         *int64
		wantUID, wantGID uint32
	}{
		"no group":       {nil, nil, 0, 0},
		"group":          {nil, gid(1541), 0, 1541},
		"largest":        {nil, gid(maxGID), 0, maxGID},
		"user":           {gid(1321), nil, 1321, 0},
		"user and group": {gid(1321), gid(1541), 1321, 1541},
		"largest user":   {gid(maxUID), nil, maxUID, 0},
	} {
		t.Run(name, func(t *testing.T) {
			d, pod := published(t)
			payload := map[string][]byte{"tls.crt": []byte("chain"), "tls.key": []byte("key"), "ca.crt": []byte("roots")}
			for range 2 { // The second replaces files that belong to somebody else.
				if err := d.Write(Files{Payload: payload, UID: c.uid, GID: c.gid}); err != nil {
					t.Fatal(err)
				}
			}
			for path, want := range map[string]fs.FileMode{
				".":        fs.ModeDir | 0o555,
				"..data/.": fs.ModeDir | 0o550,
				"tls.crt":  0o440,
				"tls.key":  0o440,
				"ca.crt":   0o440,
			} {
				at, err := os.Stat(filepath.Join(pod, path))
				if err != nil {
					t.Fatal(err)
				}
				st := at.Sys().(*syscall.Stat_t)
				wantUID := c.wantUID
				if path == "." {
					wantUID = 0 // The user must not own the way to the socket.
				}
				if at.Mode() != want || st.Uid != wantUID || st.Gid != c.wantGID {
					t.Errorf("%s: mode %v owner %d:%d, want %v %d:%d", path, at.Mode(), st.Uid, st.Gid, want, wantUID, c.wantGID)
				}
			}
			if err := os.WriteFile(filepath.Join(pod, "x"), nil, 0o600); !errors.Is(err, unix.EROFS) {
				t.Errorf("the pod writes: %v", err)
			}
		})
	}
}

func TestOnlyTheGroupReadsAndEverybodyConnects(t *testing.T) {
	needMounts(t)
	d, pod := published(t)
	write(t, d, map[string]string{"tls.key": "key"}, gid(1541))
	l, err := d.Listen("spiffe.sock")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	read := func(uid, group int) (content []byte, err error) {
		asUser(t, uid, group, func() { content, err = os.ReadFile(filepath.Join(pod, "tls.key")) })
		return content, err
	}
	if b, err := read(1321, 1541); err != nil || string(b) != "key" {
		t.Errorf("a user of the group reads %q, %v", b, err)
	}
	if _, err := read(1321, 123); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("a user of another group reads: %v", err)
	}
	var names []string
	var private error
	asUser(t, 1321, 123, func() {
		echoOnce(t, l)
		if got := ask(t, filepath.Join(pod, "spiffe.sock")); got != "hello" {
			t.Errorf("a user of another group hears %q", got)
		}
		entries, err := os.ReadDir(pod)
		if err != nil {
			t.Error(err)
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
		_, private = os.ReadDir(d.path)
	})
	if !slices.Contains(names, "tls.key") || slices.Contains(names, privateDir) {
		t.Errorf("the pod lists %v", names)
	}
	if !errors.Is(private, fs.ErrPermission) {
		t.Errorf("another user gets at the volume past its target: %v", private)
	}
}

// The user that owns the files reads them, whatever its group, and can do no more.
func TestOwnerReadsAndNobodyElse(t *testing.T) {
	needMounts(t)
	d, pod := published(t)
	if err := d.Write(Files{Payload: map[string][]byte{"tls.key": []byte("key")}, UID: gid(1321), GID: gid(1541)}); err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(pod, "tls.key")
	for _, c := range []struct {
		uid, group int
		reads      bool
	}{{1321, 123, true}, {1400, 1541, true}, {1400, 123, false}} {
		asUser(t, c.uid, c.group, func() {
			if _, err := os.ReadFile(key); (err == nil) != c.reads {
				t.Errorf("user %d of group %d: %v, reads should be %t", c.uid, c.group, err, c.reads)
			}
		})
	}
	asUser(t, 1321, 123, func() {
		for what, err := range map[string]error{
			"changes the mode": os.Chmod(key, 0o666), "writes": os.WriteFile(key, nil, 0o600), "removes": os.Remove(key),
			"adds a file": os.WriteFile(filepath.Join(pod, "..data", "x"), nil, 0o600),
		} {
			if !errors.Is(err, unix.EROFS) && !errors.Is(err, fs.ErrPermission) {
				t.Errorf("the owner %s: %v", what, err)
			}
		}
	})
	// The next set takes the place of one that belongs to somebody else.
	write(t, d, map[string]string{"tls.key": "next"}, nil)
	if b, err := os.ReadFile(key); err != nil || string(b) != "next" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestOwnersOutOfRange(t *testing.T) {
	for _, f := range []Files{{UID: gid(-1)}, {UID: gid(maxUID + 1)}, {GID: gid(-1)}, {GID: gid(maxGID + 1)}} {
		if err := f.check(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%v, want it invalid", err)
		}
	}
}

func TestWriteReplacesEverything(t *testing.T) {
	needMounts(t)
	d, pod := published(t)
	write(t, d, map[string]string{"a": "1", "b": "1"}, nil)
	write(t, d, map[string]string{"b": "2", "c": "2"}, nil)
	got := map[string]string{}
	entries, err := os.ReadDir(pod)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "..") {
			b, err := os.ReadFile(filepath.Join(pod, e.Name()))
			if err != nil {
				t.Error(err)
			}
			got[e.Name()] = string(b)
		}
	}
	if fmt.Sprint(got) != "map[b:2 c:2]" {
		t.Errorf("the pod sees %v", got)
	}
	for _, name := range []string{"", ".", "..", "..data", "..x", "a/b", "../x", "a\x00", strings.Repeat("n", 129)} {
		if err := d.Write(Files{Payload: map[string][]byte{name: nil}}); !errors.Is(err, ErrInvalid) {
			t.Errorf("file name %q: %v", name, err)
		}
	}
	for _, g := range []int64{-1, maxGID + 1} {
		if err := d.Write(Files{GID: gid(g)}); !errors.Is(err, ErrInvalid) {
			t.Errorf("group %d: %v", g, err)
		}
	}
}

// A reader that opens ..data once reads files of one generation, and one that opens a file by name always
// finds it. Every round of a reader meets one write; that the set before stays until the next is what the
// rounds rely on.
func TestReadersNeverSeeAMixture(t *testing.T) {
	needMounts(t)
	d, pod := published(t)
	const writes, readers, readsPerRound = 300, 3, 5
	payload := func(i int) map[string]string {
		s := fmt.Sprintf("%06d", i)
		return map[string]string{"tls.crt": s, "tls.key": s}
	}
	write(t, d, payload(0), nil)
	rounds := make([]chan struct{}, readers)
	done := make(chan struct{})
	var wg sync.WaitGroup
	for i := range rounds {
		rounds[i] = make(chan struct{})
		wg.Go(func() {
			last := ""
			for {
				for range readsPerRound {
					if _, err := os.ReadFile(filepath.Join(pod, "tls.key")); err != nil {
						t.Errorf("by name: %v", err)
					}
					crt, key, err := readPair(pod)
					if err != nil || crt != key || crt < last {
						t.Errorf("read %q and %q after %q, %v", crt, key, last, err)
					}
					last = crt
				}
				select {
				case rounds[i] <- struct{}{}:
				case <-done:
					return
				}
			}
		})
	}
	for i := 1; i <= writes; i++ {
		write(t, d, payload(i), nil)
		for _, round := range rounds {
			<-round
		}
	}
	close(done)
	wg.Wait()
}

func readPair(pod string) (crt, key string, err error) {
	generation, err := os.OpenRoot(filepath.Join(pod, currentLink))
	if err != nil {
		return "", "", err
	}
	defer generation.Close()
	a, err := generation.ReadFile("tls.crt")
	if err != nil {
		return "", "", err
	}
	b, err := generation.ReadFile("tls.key")
	return string(a), string(b), err
}

// A reader in the generation before is not disturbed until the next write.
func TestFormerGenerationStaysForItsReaders(t *testing.T) {
	needMounts(t)
	d, pod := published(t)
	write(t, d, map[string]string{"tls.key": "one"}, nil)
	held, err := os.OpenRoot(filepath.Join(pod, currentLink))
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	open, err := held.Open("tls.key")
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	write(t, d, map[string]string{"tls.key": "two"}, nil)
	if b, err := held.ReadFile("tls.key"); err != nil || string(b) != "one" {
		t.Errorf("after one write: %q, %v", b, err)
	}
	write(t, d, map[string]string{"tls.key": "three"}, nil)
	if _, err := held.ReadFile("tls.key"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after two writes the old key is still there: %v", err)
	}
	if b, err := io.ReadAll(open); err != nil || string(b) != "one" {
		t.Errorf("a reader in the middle of a file reads %q, %v", b, err)
	}
}

func TestWriteAfterACrash(t *testing.T) {
	needMounts(t)
	d, pod := published(t)
	write(t, d, map[string]string{"f": "1"}, nil)
	inside := filepath.Join(d.path, podDir)
	for _, err := range []error{
		os.Symlink("..gen-nowhere", filepath.Join(inside, nextLink)),
		os.Symlink("..data/f", filepath.Join(inside, nextFilePrefix+"left")),
		os.Mkdir(filepath.Join(inside, generationPrefix+"left"), 0o700),
		os.WriteFile(filepath.Join(inside, generationPrefix+"left", "f"), []byte("half"), 0o600),
		os.WriteFile(filepath.Join(d.path, privateDir, stateFile+temporarySuffix), []byte("half"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	write(t, d, map[string]string{"f": "2"}, nil)
	if b, err := os.ReadFile(filepath.Join(pod, "f")); err != nil || string(b) != "2" {
		t.Errorf("the pod reads %q, %v", b, err)
	}
	entries, err := os.ReadDir(pod)
	if err != nil || len(entries) != 4 { // f, ..data, two generations
		t.Errorf("in the volume: %v, %v", entries, err)
	}
	if err := d.WriteState([]byte("s")); err != nil {
		t.Error(err)
	}
}

func TestFullVolumeKeepsItsFiles(t *testing.T) {
	needMounts(t)
	d, pod := published(t)
	write(t, d, map[string]string{"f": "1"}, nil)
	if err := d.WriteState([]byte("state")); err != nil {
		t.Fatal(err)
	}
	big := make([]byte, DefaultVolumeSize)
	for range 3 {
		if err := d.Write(Files{Payload: map[string][]byte{"f": big, "g": nil}}); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("Write: %v", err)
		}
		if err := d.WriteState(big); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("WriteState: %v", err)
		}
	}
	if b, err := os.ReadFile(filepath.Join(pod, "f")); err != nil || string(b) != "1" {
		t.Errorf("the pod reads %q, %v", b, err)
	}
	if b, err := d.ReadState(); err != nil || string(b) != "state" {
		t.Errorf("state %q, %v", b, err)
	}
	write(t, d, map[string]string{"f": "2"}, nil)
	if got := code(fmt.Errorf("x: %w", unix.ENOSPC)).String(); got != "ResourceExhausted" {
		t.Errorf("code %s", got)
	}
}

func TestPrivateFilesAreWiped(t *testing.T) {
	needMounts(t)
	d, _ := published(t)
	for name, f := range map[string]struct {
		write func([]byte) error
		read  func() ([]byte, error)
	}{
		stateFile:   {d.WriteState, d.ReadState},
		attemptFile: {d.WriteAttempt, d.ReadAttempt},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := f.read(); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("in a new volume: %v", err)
			}
			if err := f.write([]byte("SECRET ONE")); err != nil {
				t.Fatal(err)
			}
			old := openPrivate(t, d, name)
			if err := f.write([]byte("two")); err != nil {
				t.Fatal(err)
			}
			if b, err := f.read(); err != nil || string(b) != "two" {
				t.Errorf("%q, %v", b, err)
			}
			wantWiped(t, old)
		})
	}
}

// An attempt that has ended is overwritten, and the state stays.
func TestRemoveAttempt(t *testing.T) {
	needMounts(t)
	d, _ := published(t)
	if err := d.RemoveAttempt(); err != nil {
		t.Errorf("where there is none: %v", err)
	}
	if err := errors.Join(d.WriteState([]byte("state")), d.WriteAttempt([]byte("SECRET"))); err != nil {
		t.Fatal(err)
	}
	old := openPrivate(t, d, attemptFile)
	for range 2 {
		if err := d.RemoveAttempt(); err != nil {
			t.Fatal(err)
		}
	}
	wantWiped(t, old)
	if _, err := d.ReadAttempt(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after its end: %v", err)
	}
	if b, err := d.ReadState(); err != nil || string(b) != "state" {
		t.Errorf("state %q, %v", b, err)
	}
}

// openPrivate opens a private file, which must be root's alone.
func openPrivate(t *testing.T, d *Dir, name string) *os.File {
	t.Helper()
	file, err := os.Open(filepath.Join(d.path, privateDir, name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	at, err := file.Stat()
	if err != nil || at.Mode() != 0o600 {
		t.Errorf("mode %v, %v", at.Mode(), err)
	}
	return file
}

func wantWiped(t *testing.T, file *os.File) {
	t.Helper()
	if b, err := io.ReadAll(file); err != nil || len(b) == 0 || strings.Trim(string(b), "\x00") != "" {
		t.Errorf("the former content still reads %q, %v", b, err)
	}
}

// echoOnce says hello to the next client.
func echoOnce(t testing.TB, l net.Listener) {
	t.Helper()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return // the client's side reports
		}
		_, _ = c.Write([]byte("hello"))
		_ = c.Close()
	}()
}

// ask connects to a socket whose path may be longer than sun_path, as a container with short paths would.
func ask(t testing.TB, path string) string {
	t.Helper()
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		t.Error(err)
		return ""
	}
	defer dir.Close()
	c, err := net.Dial("unix", fmt.Sprintf("/proc/thread-self/fd/%d/%s", dir.Fd(), filepath.Base(path)))
	if err != nil {
		t.Error(err)
		return ""
	}
	defer c.Close()
	b, err := io.ReadAll(c)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

func TestSocketBelowALongPath(t *testing.T) {
	needMounts(t)
	root := filepath.Join(tempDir(t), strings.Repeat("long", 30))
	d := create(t, openStore(t, root), strings.Repeat("v", 128))
	l, err := d.Listen("spiffe.sock")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(d.path, podDir, "spiffe.sock")
	if l.Addr().String() != path {
		t.Errorf("address %s", l.Addr())
	}
	at, err := os.Stat(path)
	if err != nil || at.Mode() != fs.ModeSocket|0o777 {
		t.Errorf("mode %v, %v", at.Mode(), err)
	}
	echoOnce(t, l)
	if got := ask(t, path); got != "hello" {
		t.Errorf("heard %q", got)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestSocketNameNeverVanishes(t *testing.T) {
	needMounts(t)
	d, pod := published(t)
	serve := func(l net.Listener) {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("hello"))
			_ = c.Close()
		}
	}
	var wg sync.WaitGroup
	listen := func() net.Listener {
		l, err := d.Listen("spiffe.sock")
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() { serve(l) })
		return l
	}
	current := listen()
	stop := make(chan struct{})
	var clients sync.WaitGroup
	clients.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := os.Lstat(filepath.Join(pod, "spiffe.sock")); err != nil {
				t.Errorf("the name is missing: %v", err)
				return
			}
		}
	})
	for range 200 {
		next := listen()
		if got := ask(t, filepath.Join(pod, "spiffe.sock")); got != "hello" {
			t.Fatalf("heard %q", got)
		}
		if err := current.Close(); err != nil { // must not take the new socket away
			t.Fatal(err)
		}
		current = next
	}
	close(stop)
	clients.Wait()
	if err := current.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
}

func TestSocketReplacesOnlySockets(t *testing.T) {
	needMounts(t)
	d, _ := published(t)
	write(t, d, map[string]string{"tls.crt": "chain"}, nil)
	if _, err := d.Listen("tls.crt"); !errors.Is(err, errForeign) {
		t.Errorf("listen in place of a file: %v", err)
	}
	for _, name := range []string{"", ".", "..", "..data", "a/b", "../x"} {
		if _, err := d.Listen(name); !errors.Is(err, ErrInvalid) {
			t.Errorf("socket name %q: %v", name, err)
		}
	}
	l, err := d.Listen("spiffe.sock")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := d.Write(Files{Payload: map[string][]byte{"spiffe.sock": nil}}); !errors.Is(err, ErrInvalid) {
		t.Errorf("write in place of the socket: %v", err)
	}
	// What a crash between bind and rename leaves goes with the next Listen.
	left := filepath.Join(d.path, podDir, socketLeftover+"x")
	if err := os.WriteFile(left, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err = d.Listen("spiffe.sock"); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := os.Lstat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("leftover: %v", err)
	}
}
