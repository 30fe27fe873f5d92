// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// cgroupPrefix begins the name of every cluster's cgroup, which is at the root
// of each hierarchy.
const cgroupPrefix = "signet-"

func clusterCgroup(name string) string { return cgroupPrefix + name }

// nodeCgroup is what the kubelet of node i (from 1) makes its pods' cgroups in.
func nodeCgroup(name string, i int) string { return clusterCgroup(name) + "/" + nodeName(i) }

// controlCgroup holds the supervisor and everything it starts but containers.
func controlCgroup(name string) string { return clusterCgroup(name) + "/control" }

// hierarchy is a mounted cgroup hierarchy.
type hierarchy struct {
	// path is where it is mounted.
	path string
	// unified is whether it is version 2.
	unified bool
	// controllers of a version 1 hierarchy, e.g. "cpu", "name=systemd".
	controllers []string
}

// tracksOnly reports whether membership has no effect on a process but to be
// found by it.
func (h hierarchy) tracksOnly() bool {
	if h.unified {
		return true
	}
	for _, c := range h.controllers {
		if c != "pids" && c != "freezer" && !strings.HasPrefix(c, "name=") {
			return false
		}
	}
	return true
}

// hierarchies lists what is mounted below /sys/fs/cgroup.
func hierarchies() ([]hierarchy, error) {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list cgroup hierarchies: %w", err)
	}
	defer file.Close()
	list, err := parseHierarchies(file)
	if err != nil {
		return nil, fmt.Errorf("list cgroup hierarchies: %w", err)
	}
	if len(list) == 0 {
		return nil, errors.New("no cgroup hierarchy is mounted below /sys/fs/cgroup")
	}
	return list, nil
}

// parseHierarchies reads the format of proc_pid_mountinfo(5). A hierarchy
// that is mounted more than once is listed once.
func parseHierarchies(mountinfo io.Reader) ([]hierarchy, error) {
	var list []hierarchy
	seen := map[string]bool{}
	lines := bufio.NewScanner(mountinfo)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 6 || len(right) < 3 {
			continue
		}
		device, root, path, kind, options := left[2], left[3], left[4], right[0], right[2]
		if root != "/" || seen[device] || !(path == "/sys/fs/cgroup" || strings.HasPrefix(path, "/sys/fs/cgroup/")) {
			continue
		}
		switch kind {
		case "cgroup2":
			list = append(list, hierarchy{path: path, unified: true})
		case "cgroup":
			list = append(list, hierarchy{path: path, controllers: v1Controllers(options)})
		default:
			continue
		}
		seen[device] = true
	}
	return list, lines.Err()
}

// v1Controllers picks the controllers out of a hierarchy's super options.
func v1Controllers(options string) []string {
	var out []string
	for o := range strings.SplitSeq(options, ",") {
		switch {
		case o == "rw", o == "ro", o == "noprefix", o == "xattr", o == "clone_children", strings.HasPrefix(o, "release_agent="):
		default:
			out = append(out, o)
		}
	}
	return out
}

// createCgroups makes a cluster's cgroups in every hierarchy: one for the
// supervisor and one per node, in which the kubelet makes the pods'.
func createCgroups(p plan) error {
	list, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range list {
		top := filepath.Join(h.path, clusterCgroup(p.Name))
		if err := makeCgroup(h, top); err != nil {
			return err
		}
		for i := range p.Nodes {
			if err := makeCgroup(h, filepath.Join(h.path, nodeCgroup(p.Name, i+1))); err != nil {
				return err
			}
		}
		if h.tracksOnly() {
			if err := makeCgroup(h, filepath.Join(h.path, controlCgroup(p.Name))); err != nil {
				return err
			}
		}
	}
	return nil
}

// makeCgroup makes one cgroup, with what its parent has to give handed on.
func makeCgroup(h hierarchy, path string) error {
	if h.unified {
		if err := delegate(filepath.Dir(path)); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return fmt.Errorf("create cgroup: %w", err)
	}
	return nil
}

// delegated are the version 2 controllers that children get: what limits a
// pod. The kubelet refuses to start without those that are required.
var delegated = []struct {
	controller string
	required   bool
}{
	{"cpu", true}, {"cpuset", true}, {"memory", true}, {"pids", true}, {"io", false}, {"hugetlb", false},
}

// delegate turns controllers on for the children of a version 2 cgroup.
func delegate(path string) error {
	control := filepath.Join(path, "cgroup.subtree_control")
	enabled, err := os.ReadFile(control)
	if err != nil {
		return fmt.Errorf("delegate cgroup controllers: %w", err)
	}
	available, err := os.ReadFile(filepath.Join(path, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("delegate cgroup controllers: %w", err)
	}
	for _, d := range delegated {
		// What is not available here is bound to version 1, and was looked for
		// before anything was started.
		if !slices.Contains(strings.Fields(string(available)), d.controller) || slices.Contains(strings.Fields(string(enabled)), d.controller) {
			continue
		}
		if err := os.WriteFile(control, []byte("+"+d.controller), 0); err != nil && d.required {
			return fmt.Errorf("delegate the cgroup controller %s below %s (inside a container, its processes must first be moved out of its root cgroup): %w", d.controller, path, err)
		}
	}
	return nil
}

// enterControlCgroup moves a process into its cluster's control cgroup, so
// that it is found and ended even when everything else is gone.
func enterControlCgroup(name string, pid int) error {
	return moveProcess(pid, controlCgroup(name))
}

func moveProcess(pid int, cgroup string) error {
	list, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range list {
		if !h.tracksOnly() {
			continue
		}
		procs := filepath.Join(h.path, cgroup, "cgroup.procs")
		if err := os.WriteFile(procs, []byte(strconv.Itoa(pid)), 0); err != nil {
			return fmt.Errorf("enter cgroup: %w", err)
		}
	}
	return nil
}

// removeCgroups kills what is left in a cgroup, given relative to the root of
// each hierarchy, and removes it with everything below it.
func removeCgroups(ctx context.Context, cgroup string) error {
	list, err := hierarchies()
	if err != nil {
		return err
	}
	var errs []error
	for _, h := range list {
		if err := removeTree(ctx, filepath.Join(h.path, cgroup)); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// removeTree removes one cgroup tree. Version 1 does not announce when a
// killed process has left its cgroup, so this tries again, ever less often,
// until the context ends.
func removeTree(ctx context.Context, root string) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		err := tryRemoveTree(root)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove cgroup %s: %w", root, err)
		case <-time.After(wait):
		}
	}
}

func tryRemoveTree(root string) error {
	var dirs []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range slices.Backward(dirs) {
		killMembers(dir)
		if err := syscall.Rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, &fs.PathError{Op: "rmdir", Path: dir, Err: err})
		}
	}
	return errors.Join(errs...)
}

// killMembers kills the processes of one cgroup, thawed if they were frozen.
// What cannot be read or killed shows when the cgroup cannot be removed.
func killMembers(dir string) {
	for _, pid := range members(dir) {
		if pid == os.Getpid() {
			continue
		}
		// A failure means it is gone already, or shows in rmdir.
		_ = syscall.Kill(pid, syscall.SIGKILL)
		_ = os.WriteFile(filepath.Join(dir, "freezer.state"), []byte("THAWED"), 0)
	}
}

// members lists the processes of a cgroup by their number in this process's
// PID namespace. Those outside it read as 0 and are left out.
func members(dir string) []int {
	content, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return nil
	}
	var pids []int
	for field := range strings.FieldsSeq(string(content)) {
		if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids
}

// clusterCgroups lists the names of the clusters that have a cgroup.
func clusterCgroups() ([]string, error) {
	list, err := hierarchies()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, h := range list {
		found, err := filepath.Glob(filepath.Join(h.path, cgroupPrefix+"*"))
		if err != nil {
			return nil, err
		}
		for _, path := range found {
			names = append(names, strings.TrimPrefix(filepath.Base(path), cgroupPrefix))
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}
