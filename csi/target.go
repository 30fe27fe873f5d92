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

// clearTarget makes target a directory with nothing mounted on it. Only a stale tmpfs of this driver is
// taken away for that.
func (s *Store) clearTarget(target string) error {
	at, err := lookAt(target)
	if isNotExist(err) {
		return s.makeTarget(target)
	}
	if err != nil {
		return err
	}
	if !at.isDir() {
		return fmt.Errorf("%w: target path %s exists and is not a directory", errForeign, target)
	}
	if !at.mountRoot {
		return s.checkShared(target, at)
	}
	if err := s.checkStale(target, at); err != nil {
		return err
	}
	s.log.Warn("stale volume of an earlier agent replaced", "target", target)
	return s.unmountWhile(target, func(at place) bool { return s.checkStale(target, at) == nil })
}

// makeTarget makes the directory but not its parents: kubelet makes those, and when they are missing the
// pod is gone and must not be given a new directory tree.
func (s *Store) makeTarget(target string) error {
	parent, err := lookAt(filepath.Dir(target))
	if err != nil {
		return fmt.Errorf("%w: parent of target path %s: %w", errForeign, target, err)
	}
	if err := s.checkShared(filepath.Dir(target), parent); err != nil {
		return err
	}
	if err := unix.Mkdir(target, 0o750); err != nil {
		return fmt.Errorf("make target directory %s: %w", target, err)
	}
	return nil
}

// checkStale fails unless the mount at target is a tmpfs that this driver made and has lost.
func (s *Store) checkStale(target string, at place) error {
	if id, live := s.volumeOn(at); live {
		return fmt.Errorf("%w: target path %s shows volume %s", errForeign, target, id)
	}
	top, err := topMount(target, at)
	if err != nil {
		return err
	}
	if !s.made(top) {
		return fmt.Errorf("%w: something else is mounted at target path %s (%s from %q); if another driver published it, delete the pod so that it is made anew",
			errForeign, target, top.FsType, top.Source)
	}
	return nil
}

func (s *Store) made(m mountutils.MountInfo) bool {
	return m.FsType == "tmpfs" && m.Source == mountSource+s.driver
}

// volumeOn says which volume in use the file system at a place belongs to. A volume that is unmounted
// already, by Remove or by somebody else, does not count: its device number may be another's by now.
func (s *Store) volumeOn(at place) (string, bool) {
	s.mu.Lock()
	var candidates []*Dir
	for _, d := range s.dirs {
		if d.at.sameDevice(at) {
			candidates = append(candidates, d)
		}
	}
	s.mu.Unlock()
	for _, d := range candidates {
		if now, err := lookAt(d.path); err == nil && now.sameMount(d.at) {
			return d.id, true
		}
	}
	return "", false
}

// unbind takes every layer off target and removes the directory. A target that is missing or not mounted is
// no error.
//
// A tmpfs that is not ours is unmounted too if target has kubelet's layout for CSI volumes: kubelet names
// the driver of every such path, and after a migration a volume of csi-driver-spiffe under the same driver
// name is ours to take down. What another Signet has mounted is not: it has another driver name, and kubelet asks
// that driver.
func (s *Store) unbind(target, id string) error {
	for {
		at, err := lookAt(target)
		if isNotExist(err) {
			return nil
		}
		if err != nil {
			return err
		}
		if !at.mountRoot {
			return s.removeTarget(target)
		}
		if err := s.mayUnmount(target, id, at); err != nil {
			return err
		}
		if err := s.unmountOne(target); err != nil {
			return err
		}
	}
}

func (s *Store) mayUnmount(target, id string, at place) error {
	if other, live := s.volumeOn(at); live {
		if other == id {
			return nil
		}
		return fmt.Errorf("%w: target path %s shows volume %s", errForeign, target, other)
	}
	top, err := topMount(target, at)
	if err != nil {
		return err
	}
	if s.made(top) {
		return nil
	}
	if other, signet := strings.CutPrefix(top.Source, mountSource); signet {
		return fmt.Errorf("%w: target path %s shows a volume of driver %q", errForeign, target, other)
	}
	if top.FsType == "tmpfs" && kubeletTarget.MatchString(target) {
		s.log.Warn("volume of another program unmounted at kubelet's request", "target", target, "source", top.Source)
		return nil
	}
	return fmt.Errorf("%w: something else is mounted at target path %s (%s from %q)", errForeign, target, top.FsType, top.Source)
}

// removeTarget removes the directory if it is empty. Kubelet removes what we leave.
func (s *Store) removeTarget(target string) error {
	err := unix.Rmdir(target)
	switch {
	case err == nil || isNotExist(err):
		return nil
	case errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.EEXIST):
		s.log.Warn("target directory left, it is not empty", "target", target)
		return nil
	default:
		return fmt.Errorf("remove target directory %s: %w", target, err)
	}
}
