// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/signet-spiffe/signet/integration/cluster"
)

// grace is what a measurement that was told to stop has to end its processes.
const grace = 20 * time.Second

// Enter runs argv, a program of the host, on a node without kubelet: in the network
// namespace of the given node and in a mount namespace of its own. It returns when
// the program has ended. When ctx ends the program is asked to stop.
func Enter(ctx context.Context, node cluster.Node, argv ...string) error {
	pid, err := node.PID(ctx)
	if err != nil {
		return err
	}
	args := append([]string{"--target", strconv.Itoa(pid), "--net", "--"}, argv...)
	cmd := exec.CommandContext(ctx, "nsenter", args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Unshareflags: syscall.CLONE_NEWNS,
		// Ctrl-C is ours to pass on: the program then has one reason to stop, once.
		Setpgid:   true,
		Pdeathsig: syscall.SIGKILL,
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = grace
	// The signal at the parent's death is tied to the thread that forked.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return cmd.Run()
}

// layout is what a node without kubelet has in place of kubelet's directories.
type layout struct{ root string }

// layOut mounts a tmpfs on dir that shares its mounts, as kubelet's directories are
// on a real node, and makes the directories. The mount namespace is to be one's own.
func layOut(dir string) (layout, error) {
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755"); err != nil {
		return layout{}, fmt.Errorf("mount tmpfs at %s: %w", dir, err)
	}
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		return layout{}, fmt.Errorf("share the mounts below %s: %w", dir, err)
	}
	l := layout{dir}
	for _, sub := range []string{l.plugins(), l.registration(), l.pods()} {
		if err := os.MkdirAll(sub, 0o750); err != nil {
			return layout{}, fmt.Errorf("lay out the node: %w", err)
		}
	}
	return l, nil
}

func (l layout) kubelet() string      { return filepath.Join(l.root, "kubelet") }
func (l layout) plugins() string      { return filepath.Join(l.kubelet(), "plugins") }
func (l layout) registration() string { return filepath.Join(l.kubelet(), "plugins_registry") }
func (l layout) pods() string         { return filepath.Join(l.kubelet(), "pods") }
func (l layout) csi() string          { return filepath.Join(l.root, "csi.sock") }
func (l layout) kubeconfig() string   { return filepath.Join(l.root, "kubeconfig") }
func (l layout) log() string          { return filepath.Join(l.root, "agent.log") }

// store is where the agent keeps its volumes, one tmpfs each.
func (l layout) store(driver string) string { return filepath.Join(l.plugins(), driver, "volumes") }

// target is kubelet's path of a pod's volume.
func (l layout) target(uid, name string) string {
	return filepath.Join(l.pods(), uid, "volumes", "kubernetes.io~csi", name, "mount")
}

// volumeBytes is what the volumes' file systems hold.
func (l layout) volumeBytes(driver string) (int64, error) {
	entries, err := os.ReadDir(l.store(driver))
	if err != nil {
		return 0, err
	}
	var total int64
	for _, e := range entries {
		var at unix.Statfs_t
		if err := unix.Statfs(filepath.Join(l.store(driver), e.Name()), &at); err != nil {
			return 0, err
		}
		total += int64(at.Blocks-at.Bfree) * at.Bsize
	}
	return total, nil
}
