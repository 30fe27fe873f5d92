// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// programs are files of the host that a cluster runs.
type programs struct {
	Runc   string
	CNIDir string
}

// requirement is a program that comes from a distribution's package.
type requirement struct {
	// file is a name to look for on the path, or an absolute path.
	file string
	// pkg is Debian's package.
	pkg string
}

var requirements = []requirement{
	{"runc", "runc"},
	{"iptables", "iptables"},
	{"nsenter", "util-linux"},
}

var cniPlugins = []string{"loopback", "ptp", "host-local", "portmap"}

// cniDirs are where distributions and upstream put network plugins.
var cniDirs = []string{"/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"}

// Missing lists the Debian packages that a cluster needs and this machine
// does not have.
func Missing() []string {
	var pkgs []string
	for _, r := range requirements {
		if lookUp(r.file) == "" {
			pkgs = append(pkgs, r.pkg)
		}
	}
	if findCNI() == "" {
		pkgs = append(pkgs, "containernetworking-plugins")
	}
	slices.Sort(pkgs)
	return slices.Compact(pkgs)
}

// InstallCommand is what installs Debian packages.
func InstallCommand(pkgs []string) string {
	return "apt-get update && apt-get install -y --no-install-recommends " + strings.Join(pkgs, " ")
}

// lookUp finds a program where root's path would, whatever the caller's is.
func lookUp(name string) string {
	for _, dir := range []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"} {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path
		}
	}
	return ""
}

func findCNI() string {
	for _, dir := range cniDirs {
		complete := true
		for _, plugin := range cniPlugins {
			if _, err := os.Stat(filepath.Join(dir, plugin)); err != nil {
				complete = false
			}
		}
		if complete {
			return dir
		}
	}
	return ""
}

// Preflight finds out whether this process can bring a cluster up, by trying:
// every kind of namespace, mounts, cgroups, interfaces and packet filter
// rules, each of which leaves no trace. The error names what is missing.
func Preflight(ctx context.Context) error {
	_, err := preflight(ctx)
	return err
}

func preflight(ctx context.Context) (programs, error) {
	var p programs
	if runtime.GOOS != "linux" {
		return p, fmt.Errorf("a cluster needs Linux, this is %s", runtime.GOOS)
	}
	if uid := os.Geteuid(); uid != 0 {
		return p, fmt.Errorf("a cluster needs root (namespaces, mounts, cgroups), this is user %d", uid)
	}
	if pkgs := Missing(); len(pkgs) > 0 {
		return p, fmt.Errorf("missing packages: %s; install them with: %s", strings.Join(pkgs, ", "), InstallCommand(pkgs))
	}
	p.Runc, p.CNIDir = lookUp("runc"), findCNI()
	if err := tryCgroups(); err != nil {
		return p, err
	}
	return p, tryNamespaces(ctx)
}

// requiredControllers are those without which the kubelet does not start.
var requiredControllers = []string{"cpu", "cpuacct", "cpuset", "memory"}

// tryCgroups makes and removes a cgroup in every hierarchy.
func tryCgroups() error {
	list, err := hierarchies()
	if err != nil {
		return err
	}
	var have []string
	for _, h := range list {
		trial, err := os.MkdirTemp(h.path, cgroupPrefix+"trial.")
		if err != nil {
			return fmt.Errorf("missing right: create a cgroup: %w", err)
		}
		if err := os.Remove(trial); err != nil {
			return fmt.Errorf("missing right: remove a cgroup: %w", err)
		}
		have = append(have, h.controllers...)
		if h.unified {
			content, err := os.ReadFile(filepath.Join(h.path, "cgroup.controllers"))
			if err != nil {
				return fmt.Errorf("list cgroup controllers: %w", err)
			}
			have = append(have, strings.Fields(string(content))...)
			if slices.Contains(have, "cpu") {
				have = append(have, "cpuacct") // part of cpu in version 2
			}
		}
	}
	for _, c := range requiredControllers {
		if !slices.Contains(have, c) {
			return fmt.Errorf("the kernel offers no cgroup controller %q", c)
		}
	}
	return nil
}

var namespaceKinds = []struct {
	name string
	flag uintptr
}{
	{"PID", syscall.CLONE_NEWPID},
	{"mount", syscall.CLONE_NEWNS},
	{"network", syscall.CLONE_NEWNET},
	{"IPC", syscall.CLONE_NEWIPC},
	{"UTS", syscall.CLONE_NEWUTS},
}

// tryNamespaces makes each kind of namespace, and does in all of them together
// what a cluster does.
func tryNamespaces(ctx context.Context) error {
	var all uintptr
	for _, kind := range namespaceKinds {
		all |= kind.flag
		cmd := exec.CommandContext(ctx, "/bin/true")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: kind.flag}
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("missing right: create a %s namespace: %w", kind.name, err)
		}
	}
	dir, err := os.MkdirTemp("", "signet-trial-")
	if err != nil {
		return fmt.Errorf("try mounts: %w", err)
	}
	defer os.Remove(dir)
	cmd := reexec(roleTrial, dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: all}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("missing right: %s", bytes.TrimPrefix(bytes.TrimSpace(stderr.Bytes()), []byte("signet cluster trial: ")))
	}
	return nil
}

// trialMain runs in namespaces of its own, where whatever it does is gone when
// it ends. Its argument is an empty directory.
func trialMain() error {
	dir := os.Args[1]
	if err := setUpSupervisorMounts(dir); err != nil {
		return err
	}
	if err := tryOverlay(dir); err != nil {
		return err
	}
	if err := setUpControlPlaneNetwork(); err != nil {
		return err
	}
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "trial0"}, PeerName: "trial1"}
	if err := netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("add veth pair: %w", err)
	}
	rule := []string{"-t", "nat", "-A", "POSTROUTING", "-m", "comment", "--comment", "trial", "-j", "MASQUERADE"}
	if out, err := exec.Command(lookUp("iptables"), rule...).CombinedOutput(); err != nil {
		return fmt.Errorf("add a NAT rule with iptables: %w: %s", err, bytes.TrimSpace(out))
	}
	root := filepath.Join(dir, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	return enterNodeRoot(root)
}

// tryOverlay mounts what containerd mounts for each container, on a tmpfs as
// a node has it.
func tryOverlay(dir string) error {
	var errs []error
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		errs = append(errs, os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	options := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", dir)
	if err := unix.Mount("overlay", filepath.Join(dir, "merged"), "overlay", 0, options); err != nil {
		return fmt.Errorf("mount an overlay on a tmpfs: %w", err)
	}
	return nil
}
