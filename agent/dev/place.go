// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package dev

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/signet-spiffe/signet/internal/observe"
)

// What a workload's directory holds.
const (
	socketName      = "spiffe.sock"
	certificateName = "tls.crt"
	keyName         = "tls.key"
	caName          = "ca.crt"
	currentLink     = "..data" // As in a pod's volume.
	nextLink        = "..data_tmp"
	generation      = "..gen-"
)

// maxSocketPath is what fits into a socket's address on every system (sun_path has
// 108 bytes on Linux and 104 on others, with a final zero).
const maxSocketPath = 103

// place is the directory in which everything is. It is ours alone while it is open.
type place struct {
	path string
	root *os.Root
	// lock is the directory itself, held by flock(2).
	lock *os.File
	// made: it was not there before.
	made bool
}

// openPlace makes or checks the directory at path, and locks it. Errors that the
// user can mend by another --dir are *observe.UsageError.
func openPlace(path string) (*place, error) {
	absolute, err := checkPath(path)
	if err != nil {
		return nil, err
	}
	for {
		p, err := tryPlace(absolute)
		if !errors.Is(err, errReplaced) {
			return p, err
		}
	}
}

// errReplaced says that the directory went away between looking and locking, with
// the process that had it before.
var errReplaced = errors.New("the directory was replaced")

func tryPlace(path string) (*place, error) {
	made := false
	switch err := os.Mkdir(path, 0o700); {
	case err == nil:
		made = true
	case errors.Is(err, fs.ErrNotExist):
		return nil, observe.Usagef("--dir %s: there is no directory %s", path, filepath.Dir(path))
	case !errors.Is(err, fs.ErrExist):
		return nil, fmt.Errorf("make directory %s: %w", path, err)
	}
	p, err := lockPlace(path, made)
	var refused *observe.UsageError
	if made && errors.As(err, &refused) { // Else it may be another's by now.
		_ = os.Remove(path)
	}
	return p, err
}

func lockPlace(path string, made bool) (*place, error) {
	if err := checkWay(path); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errReplaced
	}
	if err != nil {
		return nil, fmt.Errorf("open directory %s: %w", path, err)
	}
	lock, err := root.Open(".")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open directory %s: %w", path, err), root.Close())
	}
	p := &place{path: path, root: root, lock: lock, made: made}
	if err := p.take(); err != nil {
		return nil, errors.Join(err, lock.Close(), root.Close())
	}
	return p, nil
}

// take locks the directory and looks again whether what was opened is what is at
// its path, and ours alone.
func (p *place) take() error {
	err := unix.Flock(int(p.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("another signet-agent dev runs in %s: use its sockets, stop it, or choose another directory with --dir", p.path)
	}
	if err != nil {
		return fmt.Errorf("lock directory %s: %w", p.path, err)
	}
	opened, err := p.lock.Stat()
	if err != nil {
		return err
	}
	present, err := os.Lstat(p.path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && present.IsDir() && !os.SameFile(opened, present) {
		return errReplaced
	}
	if err != nil {
		return err
	}
	return checkOwn(p.path, present)
}

// checkPath refuses what is no path of a directory.
func checkPath(path string) (string, error) {
	switch {
	case path == "":
		return "", observe.Usagef("--dir: must not be empty")
	case strings.HasPrefix(path, "@"), strings.Contains(path, "://"), strings.HasPrefix(path, "unix:"):
		return "", observe.Usagef("--dir %q: must be a directory; signet-agent dev listens on sockets in one that is yours alone, "+
			"never on TCP or abstract sockets, to which others could connect", path)
	}
	absolute, err := filepath.Abs(path)
	if err != nil {
		return "", observe.Usagef("--dir %q: %v", path, err)
	}
	if !pathPattern.MatchString(absolute) {
		return "", observe.Usagef("--dir %q: holds characters that libraries read differently in a socket's URI; letters, digits and /._,+@~:- are fine", absolute)
	}
	return absolute, nil
}

// pathPattern are paths that need no escaping, neither in a URI nor in a shell.
var pathPattern = regexp.MustCompile(`^[A-Za-z0-9/._,+@~:-]+$`)

// checkOwn says why others could get into a directory.
func checkOwn(path string, info fs.FileInfo) error {
	switch uid, mode := ownerOf(info), info.Mode(); {
	case mode.Type() == fs.ModeSymlink:
		return observe.Usagef("--dir %s: is a symbolic link; whoever may change it could lead your programs elsewhere. Name the directory itself", path)
	case !mode.IsDir():
		return observe.Usagef("--dir %s: is not a directory", path)
	case uid != os.Geteuid():
		return observe.Usagef("--dir %s: belongs to user %d and you are user %d; whoever owns it could connect as your workloads", path, uid, os.Geteuid())
	case mode.Perm() != 0o700:
		return observe.Usagef("--dir %s: has mode %04o; it must be 0700 (chmod 700 %[1]s), so that nobody else can connect as your workloads", path, mode.Perm())
	}
	return nil
}

// checkWay checks the directory and all above it, by the path as given and by the
// one that it leads to: who may rename one of them could put another in its place.
func checkWay(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return errReplaced
	}
	if err != nil {
		return err
	}
	if err := checkOwn(path, info); err != nil {
		return err
	}
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	for _, way := range []string{path, resolved} {
		for dir := filepath.Dir(way); ; dir = filepath.Dir(dir) {
			if err := checkAbove(path, dir); err != nil {
				return err
			}
			if dir == filepath.Dir(dir) {
				break
			}
		}
	}
	return nil
}

func checkAbove(path, dir string) error {
	link, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	for _, i := range []fs.FileInfo{link, info} {
		if uid := ownerOf(i); uid != 0 && uid != os.Geteuid() {
			return observe.Usagef("--dir %s: %s above it belongs to user %d, who could put another directory in its place", path, dir, uid)
		}
	}
	group := groupOf(info)
	others := info.Mode().Perm()&0o002 != 0 || info.Mode().Perm()&0o020 != 0 && group != 0 && group != os.Getegid()
	if others && info.Mode()&fs.ModeSticky == 0 {
		return observe.Usagef("--dir %s: %s above it has mode %04o, so that others could put another directory in its place", path, dir, info.Mode().Perm())
	}
	return nil
}

func ownerOf(info fs.FileInfo) int { return int(info.Sys().(*syscall.Stat_t).Uid) }

func groupOf(info fs.FileInfo) int { return int(info.Sys().(*syscall.Stat_t).Gid) }

// close removes the directory if we made it and nothing is left in it, and lets go.
func (p *place) close() error {
	var err error
	if p.made {
		if err = os.Remove(p.path); errors.Is(err, syscall.ENOTEMPTY) || errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	return errors.Join(err, p.lock.Close(), p.root.Close())
}

// defaultPlace is where sockets are without --dir: the same at every start, so that
// what was exported once stays right; a new one with fresh, for a program that runs
// and ends. It lies where no other user can go before us, or is refused later.
func defaultPlace(fresh bool) string {
	base, prefix := runtimeDir()
	if !fresh {
		return filepath.Join(base, strings.TrimSuffix(prefix, "-"))
	}
	return filepath.Join(base, prefix+rand.Text()[:10])
}

// runtimeDir is the user's runtime directory (XDG Base Directory Specification), or
// the one for everybody's temporary files.
func runtimeDir() (base, prefix string) {
	dir := os.Getenv("XDG_RUNTIME_DIR")
	if info, err := os.Lstat(dir); err == nil && filepath.IsAbs(dir) && checkOwn(dir, info) == nil {
		return dir, "signet-"
	}
	return os.TempDir(), fmt.Sprintf("signet-dev-%d-", os.Geteuid())
}

// room is one workload's directory.
type room struct {
	path string
	root *os.Root
}

// openRoom makes the workload's directory anew. What an earlier run left there is
// removed; anything else in it is an error.
func (p *place) openRoom(name string) (*room, error) {
	r := &room{path: filepath.Join(p.path, name)}
	if n := len(filepath.Join(r.path, socketName)); n > maxSocketPath {
		return nil, observe.Usagef("--dir %s: the path of the socket, %s, has %d bytes and a socket's address holds %d; choose a shorter directory or name", p.path, filepath.Join(r.path, socketName), n, maxSocketPath)
	}
	if err := p.removeRoom(name); err != nil {
		return nil, err
	}
	if err := p.root.Mkdir(name, 0o700); err != nil {
		return nil, fmt.Errorf("make directory %s: %w", r.path, err)
	}
	var err error
	if r.root, err = p.root.OpenRoot(name); err != nil {
		return nil, fmt.Errorf("open directory %s: %w", r.path, err)
	}
	return r, nil
}

// removeRoom removes a workload's directory if all in it is ours.
func (p *place) removeRoom(name string) error {
	path := filepath.Join(p.path, name)
	info, err := p.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is not a directory of signet-agent dev: remove it, or choose another --dir", path)
	}
	entries, err := fs.ReadDir(p.root.FS(), name)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !isOurs(e) {
			return fmt.Errorf("%s is not of signet-agent dev, which would have to remove it: do that yourself, or choose another --dir", filepath.Join(path, e.Name()))
		}
	}
	return p.root.RemoveAll(name)
}

func isOurs(e fs.DirEntry) bool {
	switch e.Type() {
	case fs.ModeSocket:
		return e.Name() == socketName
	case fs.ModeSymlink:
		return slices.Contains([]string{certificateName, keyName, caName, currentLink, nextLink}, e.Name())
	case fs.ModeDir:
		return strings.HasPrefix(e.Name(), generation)
	}
	return false
}

// listen makes the workload's socket. Nobody but us can get to it (the directory),
// whatever the mode of the socket is for a moment.
func (r *room) listen() (net.Listener, error) {
	path := filepath.Join(r.path, socketName)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("set mode of %s: %w", path, err), l.Close())
	}
	return l, nil
}

// write replaces the files by others, all in one step for who opens the directory
// ..data once, as in a pod's volume. The set before goes with the next.
func (r *room) write(files map[string][]byte) error {
	previous, err := r.root.Readlink(currentLink)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	next := generation + rand.Text()[:12]
	if err := r.root.Mkdir(next, 0o700); err != nil {
		return err
	}
	for name, content := range files {
		if err := r.root.WriteFile(filepath.Join(next, name), content, 0o600); err != nil {
			return err
		}
		if err := r.root.Symlink(filepath.Join(currentLink, name), name); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	if err := r.root.Symlink(next, nextLink); err != nil {
		return err
	}
	if err := r.root.Rename(nextLink, currentLink); err != nil {
		return err
	}
	return r.removeOld(next, previous)
}

// removeOld removes all sets of files but the present and the one before it, which a
// reader may hold.
func (r *room) removeOld(present, previous string) error {
	entries, err := fs.ReadDir(r.root.FS(), ".")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if name := e.Name(); strings.HasPrefix(name, generation) && name != present && name != previous {
			if err := r.root.RemoveAll(name); err != nil {
				return err
			}
		}
	}
	return nil
}
