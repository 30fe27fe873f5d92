// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
	mountutils "k8s.io/mount-utils"

	"github.com/signet-spiffe/signet/internal/failpoint"
)

// A volume's tmpfs:
//
//	/            0700 root           nobody but root gets here; pods see pod/ only
//	  pod/       0555 root:<gid>     what is mounted into the pod
//	    ..gen-X/ 0550 <uid>:<gid>    one complete set of files, 0440 <uid>:<gid>
//	    ..data   → ..gen-X           swapped in one rename
//	    tls.crt  → ..data/tls.crt
//	    spiffe.sock 0777
//	  private/   0700 root
//	    owner    whose volume this is; written last when the volume is made
//	    state    the agent's own, opaque here
//	    attempt  the agent's own, opaque here: what it has begun and not ended
//
// Everybody inside the pod may list pod/ and connect to the socket: the socket is the way in for every
// user, and who can reach it is the pod. The files are for their owner, root or one user, and for the group.
// What the owner may do besides reading, the read-only mount in the container takes away again.
const (
	podDir     = "pod"
	privateDir = "private"
	ownerFile  = "owner"

	stateFile   = "state"
	attemptFile = "attempt"

	currentLink      = "..data" // the name that Kubernetes' own volumes use
	nextLink         = "..data_tmp"
	generationPrefix = "..gen-"
	nextFilePrefix   = "..name-"
	temporarySuffix  = ".tmp"

	podDirMode     = 0o555
	generationMode = 0o550
	fileMode       = 0o440
	socketMode     = 0o777
)

var fileNamePattern = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,128}$`)

// Files is everything that a volume shows as files, at one moment.
type Files struct {
	// Payload is file name → content. A file that was there before and is not in Payload goes.
	Payload map[string][]byte
	// UID and GID own the files; nil means root and root's group.
	UID, GID *int64
}

// Dir is one volume: a tmpfs of its own. Its methods are safe for concurrent use and fail with ErrAborted
// once the volume has been removed. They touch nothing but the tmpfs that was made for the volume: should
// somebody unmount it, they fail rather than write a key to the disk below.
type Dir struct {
	store *Store
	id    string
	path  string
	at    place // the root of the tmpfs

	gone atomic.Bool // set under mu, before anything is unmounted

	mu        sync.Mutex // one writer per volume; guards what follows
	listeners map[*listener]struct{}
}

// ID is the volume's ID.
func (d *Dir) ID() string { return d.id }

// check reports whether the volume can be used.
func (d *Dir) check() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	root, err := d.open()
	if err != nil {
		return err
	}
	return root.Close()
}

// open opens the tmpfs; it needs mu. The result must be closed soon: it keeps the mount busy.
func (d *Dir) open() (*os.Root, error) {
	if d.gone.Load() {
		return nil, fmt.Errorf("%w: volume %s was removed", ErrAborted, d.id)
	}
	return d.openTmpfs()
}

func (d *Dir) openTmpfs() (*os.Root, error) {
	root, err := os.OpenRoot(d.path)
	if err != nil {
		return nil, fmt.Errorf("open volume %s: %w", d.id, err)
	}
	f, err := root.Open(".")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open volume %s: %w", d.id, err), root.Close())
	}
	defer f.Close()
	at, _, err := lookAtFD(int(f.Fd()), "")
	if err == nil && !at.sameMount(d.at) {
		err = fmt.Errorf("the tmpfs at %s is not mounted any more", d.path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open volume %s: %w", d.id, err), root.Close())
	}
	return root, nil
}

// lay makes the directories of a new volume, the owner file last.
func (d *Dir) lay() error {
	content, err := json.Marshal(owner{Driver: d.store.driver, Volume: d.id})
	if err != nil {
		return err
	}
	root, err := d.openTmpfs()
	if err != nil {
		return err
	}
	defer root.Close()
	if err := root.Mkdir(podDir, 0o700); err != nil {
		return err
	}
	if err := root.Chmod(podDir, podDirMode); err != nil { // Mkdir's mode is subject to the umask
		return err
	}
	failpoint.Here("volume/pod-part-made")
	if err := root.Mkdir(privateDir, 0o700); err != nil {
		return err
	}
	failpoint.Here("volume/private-part-made")
	if err := replaceFile(root, filepath.Join(privateDir, ownerFile), content); err != nil {
		return err
	}
	failpoint.Here("volume/owner-written")
	return nil
}

// replaceFile writes a private file in one step.
func replaceFile(root *os.Root, name string, content []byte) error {
	temporary := name + temporarySuffix
	if err := ignoreNotExist(root.Remove(temporary)); err != nil {
		return err
	}
	if err := root.WriteFile(temporary, content, 0o600); err != nil {
		return errors.Join(err, ignoreNotExist(root.Remove(temporary)))
	}
	failpoint.Here("private/temporary-written")
	return root.Rename(temporary, name)
}

// Write replaces the volume's files with f. For a reader that opens the directory ..data once, all files
// change together; for one that opens them by name, each name goes from the old content to the new without
// ever missing. The set before stays readable for those who hold it, until the next Write.
//
// After an error the files are those before.
func (d *Dir) Write(f Files) error {
	if err := f.check(); err != nil {
		return fmt.Errorf("write files of volume %s: %w", d.id, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	root, err := d.open()
	if err != nil {
		return err
	}
	defer root.Close()
	pod, err := root.OpenRoot(podDir)
	if err != nil {
		return fmt.Errorf("write files of volume %s: %w", d.id, err)
	}
	defer pod.Close()
	if err := swapFiles(pod, f); err != nil {
		return fmt.Errorf("write files of volume %s: %w", d.id, err)
	}
	return nil
}

// check refuses file names that could leave the directory or collide with our own.
func (f Files) check() error {
	for name := range f.Payload {
		if !fileNamePattern.MatchString(name) || name == "." || strings.HasPrefix(name, "..") {
			return fmt.Errorf("%w: file name %q must be letters, digits, '.', '_' and '-', and not begin with '..'", ErrInvalid, name)
		}
	}
	if f.GID != nil && (*f.GID < 0 || *f.GID > maxGID) {
		return fmt.Errorf("%w: group ID %d is out of range", ErrInvalid, *f.GID)
	}
	if f.UID != nil && (*f.UID < 0 || *f.UID > maxUID) {
		return fmt.Errorf("%w: user ID %d is out of range", ErrInvalid, *f.UID)
	}
	return nil
}

func swapFiles(pod *os.Root, f Files) error {
	if err := removeLeftovers(pod); err != nil {
		return err
	}
	failpoint.Here("files/leftovers-removed")
	if err := pod.Chown(".", -1, f.gid()); err != nil {
		return err
	}
	generation := generationPrefix + rand.Text()[:12]
	if err := writeGeneration(pod, generation, f); err != nil {
		return errors.Join(err, pod.RemoveAll(generation))
	}
	failpoint.Here("files/all-written")
	// Names before the swap: a new name leads nowhere for a moment, as it did before; an old name is never
	// without its file.
	for _, name := range slices.Sorted(maps.Keys(f.Payload)) {
		if err := nameFile(pod, name); err != nil {
			return errors.Join(err, pod.RemoveAll(generation))
		}
	}
	failpoint.Here("files/named")
	if err := pod.Symlink(generation, nextLink); err != nil {
		return errors.Join(err, pod.RemoveAll(generation))
	}
	failpoint.Here("files/next-linked")
	if err := pod.Rename(nextLink, currentLink); err != nil {
		return errors.Join(err, pod.Remove(nextLink), pod.RemoveAll(generation))
	}
	failpoint.Here("files/swapped")
	return removeNames(pod, f)
}

func (f Files) uid() int { return idOrRoot(f.UID) }

func (f Files) gid() int { return idOrRoot(f.GID) }

func idOrRoot(id *int64) int {
	if id == nil {
		return 0
	}
	return int(*id)
}

// removeLeftovers deletes what a crash left and the generation before the current one. Deleted, not
// overwritten: a reader may be in the middle of it and must not read zeros.
func removeLeftovers(pod *os.Root) error {
	current, err := pod.Readlink(currentLink)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	entries, err := fs.ReadDir(pod.FS(), ".")
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		leftover := name == nextLink || name != current &&
			(strings.HasPrefix(name, generationPrefix) || strings.HasPrefix(name, nextFilePrefix))
		if !leftover {
			continue
		}
		if err := pod.RemoveAll(name); err != nil {
			return err
		}
	}
	return nil
}

func writeGeneration(pod *os.Root, generation string, f Files) error {
	if err := pod.Mkdir(generation, 0o700); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(f.Payload)) {
		if err := writeFile(pod, filepath.Join(generation, name), f.Payload[name], f.uid(), f.gid()); err != nil {
			return err
		}
		failpoint.Here("files/one-written")
	}
	if err := pod.Chown(generation, -1, f.gid()); err != nil {
		return err
	}
	if err := pod.Chmod(generation, generationMode); err != nil {
		return err
	}
	return pod.Chown(generation, f.uid(), -1)
}

// writeFile gives the file to its group before it can be opened by the group, and to its user last: to
// change the mode of another's file takes one more capability (CAP_FOWNER).
func writeFile(pod *os.Root, name string, content []byte, uid, gid int) error {
	file, err := pod.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	if err == nil {
		err = file.Chown(-1, gid)
	}
	if err == nil {
		err = file.Chmod(fileMode)
	}
	if err == nil {
		err = file.Chown(uid, -1)
	}
	return errors.Join(err, file.Close())
}

// nameFile makes name lead to the file of that name in the current generation.
func nameFile(pod *os.Root, name string) error {
	target := currentLink + "/" + name
	if got, err := pod.Readlink(name); err == nil && got == target {
		return nil
	}
	if at, err := pod.Lstat(name); err == nil && at.Mode().Type() != fs.ModeSymlink {
		return fmt.Errorf("%w: file name %q is taken by something else in the volume (%s)", ErrInvalid, name, at.Mode().Type())
	}
	temporary := nextFilePrefix + rand.Text()[:12]
	if err := pod.Symlink(target, temporary); err != nil {
		return err
	}
	failpoint.Here("files/name-linked")
	return pod.Rename(temporary, name)
}

// removeNames removes names of files that are no more.
func removeNames(pod *os.Root, f Files) error {
	entries, err := fs.ReadDir(pod.FS(), ".")
	if err != nil {
		return err
	}
	for _, e := range entries {
		_, wanted := f.Payload[e.Name()]
		if wanted || e.Type() != fs.ModeSymlink || e.Name() == currentLink {
			continue
		}
		if err := pod.Remove(e.Name()); err != nil {
			return err
		}
	}
	return nil
}

// WriteState replaces the agent's own state of the volume in one step and overwrites the one before. It is
// on the same tmpfs as the files, out of the pod's sight.
func (d *Dir) WriteState(b []byte) error { return d.writePrivate(stateFile, b) }

// ReadState returns what WriteState stored last; the error is fs.ErrNotExist when nothing was stored.
func (d *Dir) ReadState() ([]byte, error) { return d.readPrivate(stateFile) }

// WriteAttempt replaces what the agent notes of an attempt that has begun, as WriteState does with its state.
func (d *Dir) WriteAttempt(b []byte) error { return d.writePrivate(attemptFile, b) }

// ReadAttempt returns what WriteAttempt stored last; the error is fs.ErrNotExist when there is nothing.
func (d *Dir) ReadAttempt() ([]byte, error) { return d.readPrivate(attemptFile) }

// RemoveAttempt overwrites and removes what WriteAttempt stored. Nothing there is no error.
func (d *Dir) RemoveAttempt() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	root, err := d.open()
	if err != nil {
		return err
	}
	defer root.Close()
	name := filepath.Join(privateDir, attemptFile)
	err = wipeFile(root, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := errors.Join(err, root.Remove(name)); err != nil {
		return fmt.Errorf("remove %s of volume %s: %w", attemptFile, d.id, err)
	}
	return nil
}

// writePrivate replaces a private file in one step and overwrites the content before.
func (d *Dir) writePrivate(file string, b []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	root, err := d.open()
	if err != nil {
		return err
	}
	defer root.Close()
	name := filepath.Join(privateDir, file)
	old, err := root.OpenFile(name, os.O_WRONLY, 0)
	if err == nil {
		defer old.Close()
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("write %s of volume %s: %w", file, d.id, err)
	}
	if err := replaceFile(root, name, b); err != nil {
		return fmt.Errorf("write %s of volume %s: %w", file, d.id, err)
	}
	failpoint.Here("state/replaced")
	if old != nil {
		if err := overwrite(old); err != nil {
			return fmt.Errorf("wipe former %s of volume %s: %w", file, d.id, err)
		}
	}
	return nil
}

func (d *Dir) readPrivate(file string) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	root, err := d.open()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	b, err := root.ReadFile(filepath.Join(privateDir, file))
	if err != nil {
		return nil, fmt.Errorf("read %s of volume %s: %w", file, d.id, err)
	}
	return b, nil
}

// listener is a socket in a volume.
type listener struct {
	*net.UnixListener
	dir  *Dir
	name string
	at   place
	once sync.Once
	err  error
}

// Addr is the socket's path as the agent sees it; it may be longer than sun_path.
func (l *listener) Addr() net.Addr {
	return &net.UnixAddr{Net: "unix", Name: filepath.Join(l.dir.path, podDir, l.name)}
}

// Close stops listening and removes the socket, unless another has taken its name.
func (l *listener) Close() error {
	l.once.Do(func() {
		l.err = errors.Join(l.UnixListener.Close(), l.dir.forget(l))
	})
	return l.err
}

// Listen makes the socket name in the volume, open to every user of the pod. A socket of that name, living
// or left by an agent before, is replaced in one step. Remove closes the listener.
func (d *Dir) Listen(name string) (net.Listener, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	root, err := d.open()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	pod, err := root.Open(podDir)
	if err != nil {
		return nil, fmt.Errorf("listen in volume %s: %w", d.id, err)
	}
	defer pod.Close()
	removeSocketLeftovers(pod)
	l, at, err := listenAt(pod, name, socketMode)
	if err != nil {
		return nil, fmt.Errorf("listen in volume %s: %w", d.id, err)
	}
	result := &listener{UnixListener: l, dir: d, name: name, at: at}
	d.listeners[result] = struct{}{}
	return result, nil
}

// removeSocketLeftovers removes sockets that a crash left between bind and rename. What cannot be removed
// does no harm.
func removeSocketLeftovers(pod *os.File) {
	names, err := pod.Readdirnames(-1)
	if err != nil {
		return
	}
	for _, name := range names {
		if strings.HasPrefix(name, socketLeftover) {
			_ = unix.Unlinkat(int(pod.Fd()), name, 0)
		}
	}
}

// forget removes the socket of a closed listener.
func (d *Dir) forget(l *listener) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.listeners, l)
	if d.gone.Load() {
		return nil
	}
	root, err := d.open()
	if err != nil {
		return err
	}
	defer root.Close()
	pod, err := root.Open(podDir)
	if err != nil {
		return err
	}
	defer pod.Close()
	return removeSocket(pod, l.name, l.at)
}

// BindTo makes the volume visible at target, which kubelet hands to the container read-only. It is mounted
// once, however often BindTo is called.
//
// A mount at target that is an earlier tmpfs of this driver (of an agent whose mounts were lost) is
// replaced, because nobody keeps it up to date any more. Any other mount is somebody else's: that is an
// error, and it stays.
func (d *Dir) BindTo(target string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	root, err := d.open() // also keeps the source from being unmounted below us
	if err != nil {
		return err
	}
	defer root.Close()
	bound, err := d.boundAt(target)
	if bound || err != nil {
		return err
	}
	if err := d.store.clearTarget(target); err != nil {
		return err
	}
	failpoint.Here("bind/target-made")
	source := filepath.Join(d.path, podDir)
	if err := d.store.mounter.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind volume %s to %s: %w", d.id, target, err)
	}
	failpoint.Here("bind/mounted")
	if bound, err = d.boundAt(target); err != nil || !bound {
		return fmt.Errorf("bind volume %s to %s: another mount is in its place: %w", d.id, target, errors.Join(errForeign, err))
	}
	return nil
}

// IsBoundAt reports whether target shows this volume.
func (d *Dir) IsBoundAt(target string) (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gone.Load() {
		return false, nil
	}
	return d.boundAt(target)
}

// IsBoundAnywhere reports whether the volume is published at any target.
func (d *Dir) IsBoundAnywhere() (bool, error) {
	if d.check() != nil {
		return false, nil // removed, or unmounted by somebody
	}
	mounts, err := readMounts()
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(mounts, d.isCopy), nil
}

// isCopy reports whether m shows the volume somewhere else than in the store. It means something only while
// the volume is mounted in the store: the kernel gives its device number to the next tmpfs afterwards.
func (d *Dir) isCopy(m mountutils.MountInfo) bool {
	return m.Major == int(d.at.major) && m.Minor == int(d.at.minor) && m.MountPoint != d.path
}

// boundAt compares device and inode of what is mounted at target with the volume's. It needs mu.
func (d *Dir) boundAt(target string) (bool, error) {
	at, err := lookAt(target)
	if isNotExist(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if !at.mountRoot || !at.sameDevice(d.at) {
		return false, nil
	}
	source, err := lookAt(filepath.Join(d.path, podDir))
	if isNotExist(err) {
		return false, nil
	}
	return err == nil && at.sameFile(source), err
}

// end stops everything that uses the volume: from now on every method fails, and its sockets are closed.
func (d *Dir) end() {
	d.mu.Lock()
	d.gone.Store(true)
	listeners := slices.Collect(maps.Keys(d.listeners))
	d.mu.Unlock()
	for _, l := range listeners {
		_ = l.Close() // closing a socket twice is all that can fail
	}
}

// wipe overwrites and deletes everything in the tmpfs but its owner file, so that a Remove that did not
// come to its end is recognised after a restart.
func (d *Dir) wipe() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	root, err := d.openTmpfs()
	if err != nil {
		return err
	}
	defer root.Close()
	keep := filepath.Join(privateDir, ownerFile)
	var errs []error
	err = fs.WalkDir(root.FS(), ".", func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() && path != keep {
			errs = append(errs, wipeFile(root, path))
		}
		return err
	})
	errs = append(errs, err)
	failpoint.Here("wipe/overwritten")
	for _, dir := range []string{podDir, privateDir} {
		errs = append(errs, emptyDir(root, dir, keep))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("wipe volume %s: %w", d.id, err)
	}
	return nil
}

func wipeFile(root *os.Root, path string) error {
	file, err := root.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return errors.Join(overwrite(file), file.Close())
}

// overwrite fills an open file with zeros.
func overwrite(file *os.File) error {
	at, err := file.Stat()
	if err != nil {
		return err
	}
	_, err = io.CopyN(io.NewOffsetWriter(file, 0), zeros{}, at.Size())
	return err
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

func emptyDir(root *os.Root, dir, keep string) error {
	entries, err := fs.ReadDir(root.FS(), dir)
	if err != nil {
		return ignoreNotExist(err)
	}
	var errs []error
	for _, e := range entries {
		if path := filepath.Join(dir, e.Name()); path != keep {
			errs = append(errs, root.RemoveAll(path))
		}
	}
	return errors.Join(errs...)
}
