// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// setUpSupervisorMounts makes a mount namespace that shares nothing with the
// host's: a new /proc for the PID namespace, and a tmpfs at private for all
// that the cluster keeps.
func setUpSupervisorMounts(private string) error {
	if err := unshareMounts(); err != nil {
		return err
	}
	if err := mountProc("/proc"); err != nil {
		return err
	}
	return mountTmpfs(private, "mode=700")
}

// unshareMounts stops mounts from propagating out of (and into) a new mount
// namespace.
func unshareMounts() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	return nil
}

func mountProc(path string) error {
	if err := unix.Mount("proc", path, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount proc at %s: %w", path, err)
	}
	return nil
}

func mountTmpfs(path, options string) error {
	if err := unix.Mount("tmpfs", path, "tmpfs", 0, options); err != nil {
		return fmt.Errorf("mount tmpfs at %s: %w", path, err)
	}
	return nil
}

// ownDirectories of a node are new, empty and on its own tmpfs: everything
// that a kubelet, a container runtime or a pod's hostPath volume writes to.
// Their standard paths work unchanged, on each node, without meeting the
// host's or another node's.
var ownDirectories = []string{
	"/run/lock", "/run/tmp", nodeConfigDir, nodeCNIConfigDir, "/run/containerd",
	"/var/cache", "/var/lib/cni", containerdRoot, kubeletRoot,
	"/var/log/pods", "/var/log/containers", "/var/tmp",
}

// notFromHost are the top-level directories that a node does not get from the
// host: its own (run, var, proc), and those where users mount other disks.
var notFromHost = map[string]bool{
	"proc": true, "run": true, "var": true,
	"mnt": true, "media": true, "boot": true, "lost+found": true, "cdrom": true,
}

// writableFromHost are the kernel's, not the host's files.
var writableFromHost = map[string]bool{"dev": true, "sys": true}

// sysctls are what the kubelet insists on. They belong to the machine, not to
// a namespace, so the node is shown files that have these values already
// instead of letting it change them.
var sysctls = map[string]string{
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
}

// enterNodeRoot replaces the root of this mount namespace by a node's: a tmpfs
// with the host's directories bound into it, read-only, and its own where a
// node writes. newRoot is an existing directory to build it on. The exposed
// host directories are bound writable at the same path.
//
// In the end every mount is shared, as on a machine that runs systemd, so that
// volumes with mountPropagation Bidirectional work.
func enterNodeRoot(newRoot string, exposed ...string) error {
	if err := unshareMounts(); err != nil {
		return err
	}
	if err := mountTmpfs(newRoot, "mode=755"); err != nil {
		return err
	}
	if err := bindHost(newRoot); err != nil {
		return err
	}
	for _, dir := range ownDirectories {
		if err := os.MkdirAll(filepath.Join(newRoot, dir), 0o755); err != nil {
			return fmt.Errorf("lay out the node: %w", err)
		}
	}
	for _, dir := range []string{"/run/tmp", "/run/lock", "/var/tmp"} {
		if err := os.Chmod(filepath.Join(newRoot, dir), 0o777|fs.ModeSticky); err != nil {
			return fmt.Errorf("lay out the node: %w", err)
		}
	}
	if err := os.Symlink("/run", filepath.Join(newRoot, "var/run")); err != nil {
		return fmt.Errorf("lay out the node: %w", err)
	}
	for _, dir := range exposed {
		if err := bind(dir, filepath.Join(newRoot, dir)); err != nil {
			return err
		}
	}
	if err := pinFiles(newRoot); err != nil {
		return err
	}
	return changeRoot(newRoot)
}

// bindHost gives the new root the host's top-level directories.
func bindHost(newRoot string) error {
	entries, err := os.ReadDir("/")
	if err != nil {
		return fmt.Errorf("list the host's directories: %w", err)
	}
	for _, e := range entries {
		from, to := filepath.Join("/", e.Name()), filepath.Join(newRoot, e.Name())
		switch {
		case notFromHost[e.Name()]:
		case e.Type()&fs.ModeSymlink != 0:
			if err := copyLink(from, to); err != nil {
				return err
			}
		case e.IsDir():
			if err := bindTree(from, to, !writableFromHost[e.Name()]); err != nil {
				return err
			}
		}
	}
	proc := filepath.Join(newRoot, "proc")
	if err := os.Mkdir(proc, 0o555); err != nil {
		return fmt.Errorf("lay out the node: %w", err)
	}
	return mountProc(proc)
}

// copyLink repeats /bin → usr/bin and the like.
func copyLink(from, to string) error {
	target, err := os.Readlink(from)
	if err != nil {
		return fmt.Errorf("lay out the node: %w", err)
	}
	if err := os.Symlink(target, to); err != nil {
		return fmt.Errorf("lay out the node: %w", err)
	}
	return nil
}

// bindTree binds a directory with everything mounted below it.
func bindTree(from, to string, readOnly bool) error {
	if err := os.Mkdir(to, 0o755); err != nil {
		return fmt.Errorf("bind %s: %w", from, err)
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s: %w", from, err)
	}
	if !readOnly {
		return nil
	}
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(unix.AT_FDCWD, to, unix.AT_RECURSIVE, attr); err != nil {
		return fmt.Errorf("bind %s read-only (needs Linux 5.12): %w", from, err)
	}
	return nil
}

// bind binds one directory, without what is mounted below it.
func bind(from, to string) error {
	if err := os.MkdirAll(to, 0o755); err != nil && !errors.Is(err, unix.EROFS) {
		return fmt.Errorf("bind %s: %w", from, err)
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", from, err)
	}
	return nil
}

// pinFiles lays files over some of the host's and of the kernel's. They are on
// a tmpfs of their own: the kubelet identifies a file system by any one of its
// mounts, and must not find the node's root at one of these.
func pinFiles(newRoot string) error {
	dir := filepath.Join(newRoot, "run/pinned")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("pin files: %w", err)
	}
	if err := mountTmpfs(dir, "mode=755,size=64k"); err != nil {
		return err
	}
	for name, value := range sysctls {
		if err := pin(dir, filepath.Join(newRoot, "proc/sys", name), value+"\n"); err != nil {
			return err
		}
	}
	// The host's name servers cannot be reached from a node, and whoever pulls
	// an image that was not loaded should hear so at once, not after a
	// time-out.
	return pin(dir, filepath.Join(newRoot, "etc/resolv.conf"), "")
}

// pin lays a file over another. What does not exist is left alone (a kernel
// without keyrings), and so are symbolic links: /etc/resolv.conf, where it is
// one, points into /run and at nothing in a node.
func pin(dir, at, content string) error {
	info, err := os.Lstat(at)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.Mode().IsRegular() {
		return nil
	}
	if err != nil {
		return fmt.Errorf("pin file: %w", err)
	}
	file := filepath.Join(dir, filepath.Base(at))
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		return fmt.Errorf("pin file: %w", err)
	}
	if err := unix.Mount(file, at, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("pin file %s: %w", at, err)
	}
	return nil
}

// changeRoot makes newRoot the root, lets the old one go, and shares every
// mount with the mount namespaces of the containers to come.
func changeRoot(newRoot string) error {
	old := filepath.Join(newRoot, "run/old-root")
	if err := os.Mkdir(old, 0o700); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	if err := unix.PivotRoot(newRoot, old); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	if err := unix.Unmount("/run/old-root", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let the old root go: %w", err)
	}
	if err := os.Remove("/run/old-root"); err != nil {
		return fmt.Errorf("let the old root go: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make mounts shared: %w", err)
	}
	return nil
}
