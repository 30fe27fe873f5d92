// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	mountutils "k8s.io/mount-utils"
)

// Mounter is the two system calls that change the mount table. They are called directly: mount(8) need not
// be in the agent's image, and a fork per mount would cost more than the mount.
type Mounter interface {
	// Mount is mount(2).
	Mount(source, target, fstype string, flags uintptr, data string) error
	// Unmount is umount2(2).
	Unmount(target string, flags int) error
}

type kernel struct{}

func (kernel) Mount(source, target, fstype string, flags uintptr, data string) error {
	return unix.Mount(source, target, fstype, flags, data)
}

func (kernel) Unmount(target string, flags int) error { return unix.Unmount(target, flags) }

const mountInfoPath = "/proc/self/mountinfo"

// place says what a path is. Two paths show the same directory of the same file system when device and
// inode are equal.
type place struct {
	major, minor uint32
	inode        uint64
	mode         uint16
	mountRoot    bool                // the path is where something is mounted
	mountID      int                 // as in mountinfo; 0 when the kernel does not tell
	born         unix.StatxTimestamp // zero when the kernel does not tell
}

func (p place) isDir() bool    { return p.mode&unix.S_IFMT == unix.S_IFDIR }
func (p place) isSocket() bool { return p.mode&unix.S_IFMT == unix.S_IFSOCK }

func (p place) sameFile(q place) bool {
	return p.sameDevice(q) && p.inode == q.inode
}

// sameMount holds for the root of one and the same mounted file system. Device numbers are not enough: the
// kernel gives that of an unmounted tmpfs to the next one, and every tmpfs has the same root inode.
func (p place) sameMount(q place) bool {
	return p.sameFile(q) && p.mountID == q.mountID && p.born == q.born
}

// sameSocket goes further than sameFile: a file system may give the inode of a deleted socket to the next.
func (p place) sameSocket(q place) bool { return p.sameFile(q) && p.born == q.born }

func (p place) sameDevice(q place) bool { return p.major == q.major && p.minor == q.minor }

// lookAt examines path itself; a symbolic link is not followed.
func lookAt(path string) (place, error) {
	p, knowsMounts, err := lookAtFD(unix.AT_FDCWD, path)
	if err != nil {
		return place{}, fmt.Errorf("statx %s: %w", path, err)
	}
	if !knowsMounts { // before Linux 5.8
		p.mountRoot, err = listedInMountInfo(path)
	}
	return p, err
}

// lookAtFD examines name in the directory fd, or fd itself when name is empty. The bool says whether the
// kernel told about mount roots (STATX_ATTR_MOUNT_ROOT, Linux 5.8).
func lookAtFD(fd int, name string) (place, bool, error) {
	var st unix.Statx_t
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT | unix.AT_EMPTY_PATH
	if err := unix.Statx(fd, name, flags, unix.STATX_TYPE|unix.STATX_INO|unix.STATX_BTIME|unix.STATX_MNT_ID, &st); err != nil {
		return place{}, false, err
	}
	return place{
		major:     st.Dev_major,
		minor:     st.Dev_minor,
		inode:     st.Ino,
		mode:      st.Mode,
		mountRoot: st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0,
		mountID:   int(st.Mnt_id),
		born:      st.Btime,
	}, st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

func listedInMountInfo(path string) (bool, error) {
	mounts, err := readMounts()
	if err != nil {
		return false, err
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return false, err
	}
	resolved := filepath.Join(parent, filepath.Base(path))
	for _, m := range mounts {
		if m.MountPoint == resolved {
			return true, nil
		}
	}
	return false, nil
}

// readMounts is this process's mount table, paths unescaped.
func readMounts() ([]mountutils.MountInfo, error) {
	mounts, err := mountutils.ParseMountInfo(mountInfoPath)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", mountInfoPath, err)
	}
	for i := range mounts {
		mounts[i].MountPoint = unescape(mounts[i].MountPoint)
		mounts[i].Root = unescape(mounts[i].Root)
		mounts[i].Source = unescape(mounts[i].Source)
	}
	return mounts, nil
}

// unescape undoes the kernel's octal escapes in mountinfo (space, tab, newline, backslash, hash); the
// parser of mount-utils leaves them. What is not an escape stays as it is.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && s[i+1] <= '3' && isOctal(s[i+1]) && isOctal(s[i+2]) && isOctal(s[i+3]) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func isOctal(c byte) bool { return c >= '0' && c <= '7' }

// topMount describes what is mounted at the very top of path, which p was taken of.
func topMount(path string, p place) (mountutils.MountInfo, error) {
	mounts, err := readMounts()
	if err != nil {
		return mountutils.MountInfo{}, err
	}
	for i := len(mounts) - 1; i >= 0; i-- { // later mounts cover earlier ones
		m := mounts[i]
		if m.ID == p.mountID || p.mountID == 0 && m.MountPoint == path {
			return m, nil
		}
	}
	return mountutils.MountInfo{}, fmt.Errorf("%s is a mount point but %s does not list it", path, mountInfoPath)
}

// onTmpfs reports whether what is visible at path is a tmpfs.
func onTmpfs(path string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return false, fmt.Errorf("statfs %s: %w", path, err)
	}
	return st.Type == unix.TMPFS_MAGIC, nil
}

func isNotExist(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR)
}
