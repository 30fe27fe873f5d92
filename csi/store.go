// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/signet-spiffe/signet/internal/failpoint"
)

// DefaultVolumeSize is the size of one volume's tmpfs in bytes. A tmpfs takes memory for what is in it, not
// for its size; a key, a chain and a bundle, twice, are well under 100 KiB.
const DefaultVolumeSize = 2 << 20

const (
	// inodesPerVolume is room for about ten times the files of a volume.
	inodesPerVolume = 256
	volumesDir      = "volumes"
	junkPrefix      = ".junk-"
	// mountSource is what mountinfo and df show as the device of our tmpfs, followed by the driver name.
	mountSource = "signet:"
	mountFlags  = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
)

// StoreOptions say where volumes live.
type StoreOptions struct {
	// DataRoot is kubelet's plugin directory, e.g. /var/lib/kubelet/plugins.
	DataRoot string
	// DriverName is this CSI driver's name. Volumes live under <DataRoot>/<DriverName>/volumes, so
	// drivers of different names never see each other's.
	DriverName string
	// SizeBytes limits one volume; 0 means DefaultVolumeSize.
	SizeBytes int64
	// RequireShared makes it an error when a mount that we make would not be seen by kubelet: when
	// DataRoot or a target is not on a mount with shared propagation. Set it wherever the agent runs in a
	// mount namespace of its own, that is, in every container. Without shared propagation pods would get
	// empty volumes, and volumes would end with the agent.
	RequireShared bool
	// Log is for what needs no answer; nil discards.
	Log *slog.Logger
	// Mounter is for tests; nil means the kernel.
	Mounter Mounter
}

// Store keeps one tmpfs per volume. Its methods are safe for concurrent use; work on one volume waits for
// no other volume.
type Store struct {
	root          string // resolved; directories named by volume ID
	driver        string
	size          int64
	requireShared bool
	log           *slog.Logger
	mounter       Mounter
	ids           keyedMutex // serialises Create and Remove of one volume
	shared        sync.Map   // IDs of mounts known to be shared

	mu     sync.Mutex // guards what follows; never held during I/O
	dirs   map[string]*Dir
	asides []error // what OpenStore could not adopt
	swaps  bool    // the kernel has no noswap
}

// owner is the file that says whose volume a tmpfs is. It is written last when a volume is made.
type owner struct {
	Driver string `json:"driver"`
	Volume string `json:"volume"`
}

// OpenStore makes the store's directory and takes up every volume that is still mounted there. What it does
// not know it leaves alone or moves aside (renamed to .junk-…) and reports in Volumes; only an unusable
// directory is an error.
func OpenStore(o StoreOptions) (*Store, error) {
	if !driverNamePattern.MatchString(o.DriverName) {
		return nil, fmt.Errorf("%w: CSI driver name %q must be at most 63 letters, digits, '-' and '.'", ErrInvalid, o.DriverName)
	}
	if !filepath.IsAbs(o.DataRoot) {
		return nil, fmt.Errorf("%w: data root %q must be an absolute path", ErrInvalid, o.DataRoot)
	}
	s := &Store{
		driver:        o.DriverName,
		size:          o.SizeBytes,
		requireShared: o.RequireShared,
		log:           o.Log,
		mounter:       o.Mounter,
		dirs:          map[string]*Dir{},
	}
	if s.size <= 0 {
		s.size = DefaultVolumeSize
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.mounter == nil {
		s.mounter = kernel{}
	}
	if err := s.openRoot(o.DataRoot); err != nil {
		return nil, err
	}
	return s, s.recover()
}

// openRoot makes and resolves the store's directory. It is root's alone: the tmpfs of a volume can be
// reached through its target only.
func (s *Store) openRoot(dataRoot string) error {
	driverDir := filepath.Join(dataRoot, s.driver)
	if err := os.MkdirAll(driverDir, 0o750); err != nil {
		return fmt.Errorf("make plugin directory: %w", err)
	}
	resolved, err := filepath.EvalSymlinks(driverDir)
	if err != nil {
		return fmt.Errorf("resolve plugin directory: %w", err)
	}
	s.root = filepath.Join(resolved, volumesDir)
	if err := os.Mkdir(s.root, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make volume directory: %w", err)
	}
	at, err := lookAt(s.root)
	if err != nil {
		return err
	}
	if !at.isDir() {
		return fmt.Errorf("%w: %s is not a directory; move it away", errForeign, s.root)
	}
	return s.checkShared(s.root, at)
}

// checkShared fails when mounts below path would stay in our mount namespace.
func (s *Store) checkShared(path string, at place) error {
	if !s.requireShared || at.mountID == 0 { // 0: Linux before 5.8 does not say which mount it is
		return nil
	}
	if _, known := s.shared.Load(at.mountID); known {
		return nil
	}
	top, err := topMount(path, at)
	if err != nil {
		return err
	}
	for _, field := range top.OptionalFields {
		if strings.HasPrefix(field, "shared:") {
			s.shared.Store(at.mountID, true)
			return nil
		}
	}
	return fmt.Errorf("mount propagation of %s (mounted at %s) is not shared: kubelet would not see volumes; the agent's hostPath mounts need mountPropagation: Bidirectional", path, top.MountPoint)
}

// recover takes stock of the store's directory.
func (s *Store) recover() error {
	entries, err := os.ReadDir(s.root)
	if err != nil {
		return fmt.Errorf("list volumes: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), junkPrefix) {
			continue
		}
		d, err := s.takeUp(e.Name())
		if err != nil {
			s.log.Warn("entry in the volume directory set aside", "entry", e.Name(), "error", err)
			s.asides = append(s.asides, fmt.Errorf("entry %q: %w", e.Name(), err))
		}
		if d != nil {
			s.dirs[d.id] = d
		}
	}
	return nil
}

// takeUp looks at one entry of the store's directory: (dir, nil) is a volume of ours, (nil, nil) a leftover
// that is gone now, (nil, err) something that is not ours and either moved aside or left as it is.
func (s *Store) takeUp(name string) (*Dir, error) {
	path := filepath.Join(s.root, name)
	at, err := lookAt(path)
	if err != nil {
		return nil, err
	}
	switch {
	case at.mountRoot:
		return s.adopt(name, path, at)
	case at.isDir() && unix.Rmdir(path) == nil:
		return nil, nil // made, but not mounted: a crash in Create, or in Remove, or a reboot
	default:
		return nil, s.setAside(name)
	}
}

// setAside moves an entry that is no volume out of the way and says so.
func (s *Store) setAside(name string) error {
	to := fmt.Sprintf("%s%d-%s", junkPrefix, time.Now().UnixNano(), name[:min(len(name), 200)])
	if err := os.Rename(filepath.Join(s.root, name), filepath.Join(s.root, to)); err != nil {
		return fmt.Errorf("%w: cannot be moved aside: %w", errForeign, err)
	}
	return fmt.Errorf("%w: not a volume of this driver; moved to %s", errForeign, filepath.Join(s.root, to))
}

// adopt takes up a mount found in the store's directory if its owner file says that it is ours.
func (s *Store) adopt(name, path string, at place) (*Dir, error) {
	if tmpfs, err := onTmpfs(path); err != nil || !tmpfs {
		return nil, errors.Join(fmt.Errorf("%w: a mount that is no tmpfs; left as it is", errForeign), err)
	}
	raw, err := os.ReadFile(filepath.Join(path, privateDir, ownerFile))
	if errors.Is(err, fs.ErrNotExist) && isHalfMade(path) {
		s.log.Info("half-made volume removed", "volume", name)
		return nil, s.unmountAndRemove(path)
	}
	var o owner
	if err == nil {
		err = json.Unmarshal(raw, &o)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: a tmpfs without a readable owner file; left as it is: %w", errForeign, err)
	}
	if o.Driver != s.driver || o.Volume != name || !volumeIDPattern.MatchString(name) {
		return nil, fmt.Errorf("%w: belongs to driver %q, volume %q; left as it is", errForeign, o.Driver, o.Volume)
	}
	return &Dir{store: s, id: name, path: path, at: at, listeners: map[*listener]struct{}{}}, nil
}

// isHalfMade reports whether a tmpfs holds nothing but what Create makes before the owner file.
func isHalfMade(path string) bool {
	for _, sub := range []string{podDir, privateDir} {
		if left, err := os.ReadDir(filepath.Join(path, sub)); err == nil {
			for _, e := range left {
				if e.Name() != ownerFile+temporarySuffix {
					return false
				}
			}
		}
	}
	top, err := os.ReadDir(path)
	if err != nil {
		return false
	}
	return !slices.ContainsFunc(top, func(e os.DirEntry) bool { return e.Name() != podDir && e.Name() != privateDir })
}

// Volumes lists the volumes in use, by ID, and what OpenStore found and could not take up.
func (s *Store) Volumes() ([]*Dir, []error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	dirs := slices.SortedFunc(maps.Values(s.dirs), func(a, b *Dir) int { return strings.Compare(a.id, b.id) })
	return dirs, slices.Clone(s.asides)
}

// Get returns the volume if it exists.
func (s *Store) Get(id string) (*Dir, bool) {
	s.mu.Lock()
	d, ok := s.dirs[id]
	s.mu.Unlock()
	if !ok || d.gone.Load() {
		return nil, false
	}
	return d, true
}

// Create returns the volume's directory, mounting it if need be.
func (s *Store) Create(id string) (*Dir, error) {
	if err := checkVolumeID(id); err != nil {
		return nil, err
	}
	defer s.ids.lock(id)()
	if d, ok := s.Get(id); ok && d.check() == nil {
		return d, nil
	}
	// What is known by now was half removed, or unmounted by somebody else.
	if err := s.remove(id); err != nil {
		return nil, err
	}
	d, err := s.mount(id)
	if err != nil {
		return nil, fmt.Errorf("make volume %s: %w", id, err)
	}
	s.mu.Lock()
	s.dirs[id] = d
	s.mu.Unlock()
	return d, nil
}

// mount makes the tmpfs of a volume and what belongs into it.
func (s *Store) mount(id string) (*Dir, error) {
	path := filepath.Join(s.root, id)
	if err := os.Mkdir(path, 0o700); err != nil {
		return nil, err
	}
	failpoint.Here("volume/directory-made")
	d, err := s.mountAt(id, path)
	if err != nil {
		return nil, errors.Join(err, s.unmountAndRemove(path))
	}
	return d, nil
}

func (s *Store) mountAt(id, path string) (*Dir, error) {
	if err := s.mountTmpfs(path); err != nil {
		return nil, err
	}
	failpoint.Here("volume/mounted")
	at, err := lookAt(path)
	if err != nil {
		return nil, err
	}
	d := &Dir{store: s, id: id, path: path, at: at, listeners: map[*listener]struct{}{}}
	if err := d.lay(); err != nil {
		return nil, err
	}
	return d, nil
}

// mountTmpfs mounts with noswap where the kernel has it (Linux 6.4), so that no key reaches a swap device.
// Mode 0700: whoever is not root has no way in but the target.
func (s *Store) mountTmpfs(path string) error {
	source, options := mountSource+s.driver, fmt.Sprintf("mode=0700,size=%d,nr_inodes=%d", s.size, inodesPerVolume)
	err := s.mounter.Mount(source, path, "tmpfs", mountFlags, options+",noswap")
	if errors.Is(err, unix.EINVAL) {
		s.warnSwap()
		err = s.mounter.Mount(source, path, "tmpfs", mountFlags, options)
	}
	if err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", path, err)
	}
	return nil
}

func (s *Store) warnSwap() {
	s.mu.Lock()
	first := !s.swaps
	s.swaps = true
	s.mu.Unlock()
	if first {
		s.log.Warn("this kernel's tmpfs has no noswap: private keys may reach a swap device if the node has one")
	}
}

// Remove ends a volume: its sockets close, its contents are overwritten and deleted, every mount of it that
// we can see is taken away, and its directory goes. An unknown volume is no error. Remove may be repeated
// after an error.
func (s *Store) Remove(id string) error {
	if err := checkVolumeID(id); err != nil {
		return err
	}
	defer s.ids.lock(id)()
	return s.remove(id)
}

// remove needs the lock of id.
func (s *Store) remove(id string) error {
	s.mu.Lock()
	d := s.dirs[id]
	s.mu.Unlock()
	if d == nil {
		var err error
		if d, err = s.takeUp(id); d == nil {
			return ignoreNotExist(err)
		}
	}
	d.end()
	failpoint.Here("remove/ended")
	if err := s.takeDown(d); err != nil {
		return fmt.Errorf("remove volume %s: %w", id, err)
	}
	s.mu.Lock()
	delete(s.dirs, id)
	s.mu.Unlock()
	return nil
}

// takeDown wipes and unmounts an ended volume.
func (s *Store) takeDown(d *Dir) error {
	at, err := lookAt(d.path)
	switch {
	case isNotExist(err), err == nil && !at.mountRoot:
		// Somebody else unmounted it. Copies cannot be told from other volumes any more (isCopy).
		return ignoreNotExist(unix.Rmdir(d.path))
	case err != nil:
		return err
	case !at.sameMount(d.at):
		return fmt.Errorf("%w: %s is not the volume any more; unmount it", errForeign, d.path)
	}
	// A container that still runs keeps the tmpfs alive in its own mount namespace: unmounting alone would
	// leave the key there.
	wiped := d.wipe()
	failpoint.Here("wipe/emptied")
	copies := s.unmountCopies(d)
	failpoint.Here("remove/copies-unmounted")
	return errors.Join(wiped, copies, s.unmountAndRemove(d.path))
}

// unmountCopies unmounts every bind mount of the volume but the original.
func (s *Store) unmountCopies(d *Dir) error {
	mounts, err := readMounts()
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range mounts {
		if d.isCopy(m) {
			errs = append(errs, s.unmountWhile(m.MountPoint, d.at.sameDevice))
		}
	}
	return errors.Join(errs...)
}

func (s *Store) unmountAndRemove(path string) error {
	if err := s.unmountWhile(path, func(place) bool { return true }); err != nil {
		return err
	}
	failpoint.Here("remove/unmounted")
	if err := unix.Rmdir(path); err != nil {
		return ignoreNotExist(fmt.Errorf("remove directory %s: %w", path, err))
	}
	failpoint.Here("remove/directory-removed")
	return nil
}

// unmountWhile takes mounts off path, one layer after the other, as long as ours holds for the top one.
func (s *Store) unmountWhile(path string, ours func(place) bool) error {
	for {
		at, err := lookAt(path)
		if isNotExist(err) {
			return nil
		}
		if err != nil {
			return err
		}
		if !at.mountRoot || !ours(at) {
			return nil
		}
		if err := s.unmountOne(path); err != nil {
			return err
		}
	}
}

// unmountOne detaches lazily when the mount is busy. That is rare (a connection that has not quite closed
// keeps the mount of its socket) and harmless: the contents are wiped before, and the kernel frees the rest
// when the last user is gone.
func (s *Store) unmountOne(path string) error {
	err := s.mounter.Unmount(path, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) {
		s.log.Info("mount is busy, detached lazily", "path", path)
		err = s.mounter.Unmount(path, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
	}
	if errors.Is(err, unix.EINVAL) || isNotExist(err) {
		return nil // not a mount any more
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	return nil
}

// keyedMutex is one mutex per key, kept only while in use.
type keyedMutex struct {
	mu sync.Mutex
	m  map[string]*keyedLock
}

type keyedLock struct {
	sync.Mutex
	users int
}

// lock locks key and returns what unlocks it.
func (k *keyedMutex) lock(key string) func() {
	k.mu.Lock()
	if k.m == nil {
		k.m = map[string]*keyedLock{}
	}
	l := k.m[key]
	if l == nil {
		l = &keyedLock{}
		k.m[key] = l
	}
	l.users++
	k.mu.Unlock()
	l.Lock()
	return func() {
		l.Unlock()
		k.mu.Lock()
		defer k.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(k.m, key)
		}
	}
}
