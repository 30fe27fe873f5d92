// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/signet-spiffe/signet/internal/failpoint"
)

// socketLeftover begins the names of sockets that are not in place yet. Kubelet's plugin watcher and
// readers of a volume ignore names that begin with a dot.
const socketLeftover = "..sock-"

// listenAt makes a Unix socket called name in the directory dir, replacing a socket of that name in one
// step, so that the name never vanishes and never refuses a client in between.
//
// Addresses go through /proc/self/fd because sun_path holds 108 bytes (unix(7)) and kubelet's paths are
// longer. The returned place identifies the socket file.
func listenAt(dir *os.File, name string, mode uint32) (*net.UnixListener, place, error) {
	if err := checkSocketName(dir, name); err != nil {
		return nil, place{}, err
	}
	fd := int(dir.Fd())
	temporary := socketLeftover + rand.Text()[:12]
	address := net.UnixAddr{Net: "unix", Name: fmt.Sprintf("/proc/self/fd/%d/%s", fd, temporary)}
	l, err := net.ListenUnix("unix", &address)
	if err != nil {
		return nil, place{}, fmt.Errorf("listen on socket %s: %w", name, err)
	}
	failpoint.Here("socket/bound")
	l.SetUnlinkOnClose(false) // the name it was bound to is not the name it has in the end
	at, err := putSocket(fd, temporary, name, mode)
	if err != nil {
		return nil, place{}, errors.Join(err, l.Close(), ignoreNotExist(unix.Unlinkat(fd, temporary, 0)))
	}
	failpoint.Here("socket/in-place")
	return l, at, nil
}

// checkSocketName refuses to replace anything but a socket.
func checkSocketName(dir *os.File, name string) error {
	if name == "" || name == "." || strings.HasPrefix(name, "..") || filepath.Base(name) != name {
		return fmt.Errorf("%w: socket name %q is not a plain file name", ErrInvalid, name)
	}
	at, _, err := lookAtFD(int(dir.Fd()), name)
	if isNotExist(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("statx %s: %w", name, err)
	}
	if !at.isSocket() {
		return fmt.Errorf("%w: %s/%s exists and is not a socket", errForeign, dir.Name(), name)
	}
	return nil
}

func putSocket(fd int, temporary, name string, mode uint32) (place, error) {
	if err := unix.Fchmodat(fd, temporary, mode, 0); err != nil {
		return place{}, fmt.Errorf("set mode of socket %s: %w", name, err)
	}
	at, _, err := lookAtFD(fd, temporary)
	if err != nil {
		return place{}, fmt.Errorf("statx socket %s: %w", name, err)
	}
	if err := unix.Renameat(fd, temporary, fd, name); err != nil {
		return place{}, fmt.Errorf("put socket %s in place: %w", name, err)
	}
	return at, nil
}

// removeSocket removes name from dir if it still is the socket that own was taken of.
func removeSocket(dir *os.File, name string, own place) error {
	fd := int(dir.Fd())
	at, _, err := lookAtFD(fd, name)
	if err != nil || !at.sameSocket(own) {
		return ignoreNotExist(err)
	}
	return ignoreNotExist(unix.Unlinkat(fd, name, 0))
}

func ignoreNotExist(err error) error {
	if isNotExist(err) {
		return nil
	}
	return err
}

// listenPath is listenAt for a path; a missing directory is made. Whoever closes the listener calls the
// returned function too, which removes the socket if it still is this one.
func listenPath(path string, mode uint32) (*net.UnixListener, place, func() error, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, place{}, nil, fmt.Errorf("make directory of socket %s: %w", path, err)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, place{}, nil, fmt.Errorf("open directory of socket %s: %w", path, err)
	}
	defer dir.Close()
	l, at, err := listenAt(dir, filepath.Base(path), mode)
	if err != nil {
		return nil, place{}, nil, err
	}
	remove := func() error {
		dir, err := os.Open(filepath.Dir(path))
		if err != nil {
			return ignoreNotExist(err)
		}
		defer dir.Close()
		return removeSocket(dir, filepath.Base(path), at)
	}
	return l, at, remove, nil
}
