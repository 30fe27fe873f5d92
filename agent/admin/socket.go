// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxPath is what sun_path holds (unix(7)), less its terminating zero.
const maxPath = 107

// CheckPath says why an admin socket may not be at path: it must be absolute, fit
// into a socket's address, and lie in none of the given directories, which pods or
// other plugins can reach. Links are followed as far as the path exists. An empty
// path, for no admin socket, is fine.
func CheckPath(path string, forbidden ...string) error {
	switch {
	case path == "":
		return nil
	case !filepath.IsAbs(path) || filepath.Clean(path) != path:
		return errors.New("must be an absolute path without dots, empty for no admin socket")
	case len(path) > maxPath:
		return fmt.Errorf("has %d bytes; a socket's path has at most %d", len(path), maxPath)
	}
	real := follow(path)
	for _, dir := range forbidden {
		for _, p := range []string{path, real} {
			if within(p, dir) || within(p, follow(dir)) {
				return fmt.Errorf("must not be in %s, where pods or other plugins could reach it", dir)
			}
		}
	}
	return nil
}

func within(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

// follow resolves the links in path, as far as it exists.
func follow(path string) string {
	rest := ""
	for p := path; ; p = filepath.Dir(p) {
		if real, err := filepath.EvalSymlinks(p); err == nil {
			return filepath.Join(real, rest)
		}
		if p == filepath.Dir(p) {
			return path
		}
		rest = filepath.Join(filepath.Base(p), rest)
	}
}

// listener is the admin socket. Closing it removes the socket and lets another agent
// have the path.
type listener struct {
	*net.UnixListener
	lock *os.File
}

// access is who can connect, by the modes of directory and socket.
type access struct{ dir, socket fs.FileMode }

var (
	// ownerOnly: the agent's user, and root.
	ownerOnly = access{dir: 0o700, socket: 0o600}
	// everyUser can connect and is told, call by call, what he may do. Nobody can see
	// what else is in the directory, or put anything there.
	everyUser = access{dir: 0o711, socket: 0o666}
)

// listen makes the socket at path, with a directory of its own around it. A socket
// that nobody serves is replaced.
func listen(path string, a access) (*listener, error) {
	if err := makeDirectory(filepath.Dir(path), a.dir); err != nil {
		return nil, err
	}
	lock, err := lockFile(path + ".lock")
	if err != nil {
		return nil, err
	}
	l, err := bind(path, a.socket)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return &listener{UnixListener: l, lock: lock}, nil
}

// Close implements net.Listener.
func (l *listener) Close() error { return errors.Join(l.UnixListener.Close(), l.lock.Close()) }

// makeDirectory makes dir, of the owner of this process and with the given mode. One
// that is there must be like that: to narrow a directory that others use would break
// them. One that has been for the owner alone is widened.
func makeDirectory(dir string, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("make the admin socket's directory: %w", err)
	}
	if err := os.Mkdir(dir, ownerOnly.dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make the admin socket's directory: %w", err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("look at the admin socket's directory: %w", err)
	}
	owner := info.Sys().(*syscall.Stat_t).Uid
	switch {
	case !info.IsDir():
		return fmt.Errorf("the admin socket's directory %s is no directory (%s)", dir, info.Mode().Type())
	case info.Mode().Perm()&^mode != 0 || int(owner) != os.Geteuid():
		return fmt.Errorf("the admin socket's directory %s has mode %#o and belongs to user %d; give the socket a directory of its own, which the agent makes, or one with mode %#o of user %d",
			dir, info.Mode().Perm(), owner, mode, os.Geteuid())
	case info.Mode().Perm() == mode:
		return nil
	}
	if err := os.Chmod(dir, mode); err != nil {
		return fmt.Errorf("open the admin socket's directory to delegates: %w", err)
	}
	return nil
}

// lockFile keeps two agents with the same path apart. The kernel unlocks it at the
// end of the process, however that ends.
func lockFile(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the admin socket: %w", err)
	}
	err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = errors.New("another agent has it; give each its own --admin-socket-path")
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock the admin socket %s: %w", path, err), file.Close())
	}
	return file, nil
}

func bind(path string, mode fs.FileMode) (*net.UnixListener, error) {
	if err := removeStale(path); err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on the admin socket: %w", err)
	}
	// Until here the directory alone keeps others away.
	if err := os.Chmod(path, mode); err != nil {
		return nil, errors.Join(fmt.Errorf("set the mode of the admin socket: %w", err), l.Close())
	}
	return l, nil
}

// removeStale removes a socket that nobody serves any more, and nothing else.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("look at the admin socket: %w", err)
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("there is something at the admin socket's path %s that is no socket (%s); it is left alone", path, info.Mode().Type())
	}
	conn, err := net.Dial("unix", path)
	if err == nil {
		_ = conn.Close()
		return fmt.Errorf("another process serves the admin socket %s; give each its own --admin-socket-path", path)
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("find out whether the admin socket is served: %w", err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove the admin socket of an agent before: %w", err)
	}
	return nil
}
