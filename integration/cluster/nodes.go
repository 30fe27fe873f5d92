// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Node is a node of a cluster.
type Node struct {
	// Name is the Kubernetes node's.
	Name string
	// IP is its address inside the cluster; the host cannot reach it.
	IP string

	cluster *Cluster
}

// Exec prepares a command that runs a program of the host inside the node: in
// its mount, network, PID, IPC and UTS namespaces, as root. There the host's
// directories are read-only and /run and /var are the node's own. A program
// that the node cannot see by its path can be given as an inherited file:
// "/proc/self/fd/3" with ExtraFiles.
//
// When the context ends, the command is killed with everything it started in
// its process group. A node that is not running shows as the error of Start.
func (n Node) Exec(ctx context.Context, argv ...string) *exec.Cmd {
	pid, err := n.PID(ctx)
	args := append([]string{
		"--target", strconv.Itoa(pid), "--mount", "--net", "--pid", "--ipc", "--uts", "--",
	}, argv...)
	cmd := exec.CommandContext(ctx, "nsenter", args...)
	cmd.Env = cleanEnviron()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	if err != nil {
		cmd.Err = err
	}
	return cmd
}

// PID is the number of the node's init process on the host. The node's files
// are below /proc/PID/root.
func (n Node) PID(ctx context.Context) (int, error) {
	status, err := n.cluster.status(ctx)
	if err != nil {
		return 0, err
	}
	inside, ok := status.Nodes[n.Name]
	if !ok {
		return 0, fmt.Errorf("%s of cluster %s is not running", n.Name, n.cluster.Name())
	}
	pid, err := hostPID(n.cluster.record.Supervisor, inside)
	if err != nil {
		return 0, fmt.Errorf("find %s of cluster %s: %w", n.Name, n.cluster.Name(), err)
	}
	return pid, nil
}

func (n Node) loadImage(ctx context.Context, img Image) error {
	// The image is built while it is sent. An error in building it ends the
	// request with that error.
	read, write := io.Pipe()
	go func() { write.CloseWithError(BuildImage(write, img)) }()
	defer read.Close()
	return n.cluster.control(n.Name).post(ctx, imagePath(img.Ref), read)
}

// imagePath is where a node takes an image of that name.
func imagePath(ref string) string { return "/images?ref=" + url.QueryEscape(ref) }

// hostPID finds the child of a process that has the given number in that
// process's PID namespace.
func hostPID(parent, inside int) (int, error) {
	found, err := filepath.Glob("/proc/[0-9]*/status")
	if err != nil {
		return 0, err
	}
	for _, path := range found {
		content, err := os.ReadFile(path)
		if err != nil {
			continue // ended meanwhile
		}
		ppid, numbers := parseProcStatus(content)
		// Numbers are outermost first, and the child is itself PID 1 of one
		// namespace more.
		if ppid == parent && len(numbers) >= 3 && numbers[len(numbers)-2] == inside {
			return strconv.Atoi(filepath.Base(filepath.Dir(path)))
		}
	}
	return 0, errors.New("no such process")
}

// parseProcStatus reads a process's parent and its own number in each PID
// namespace, outermost first, off /proc/PID/status (proc_pid_status(5)).
func parseProcStatus(status []byte) (ppid int, numbers []int) {
	for line := range bytes.Lines(status) {
		name, value, _ := strings.Cut(string(line), ":")
		switch name {
		case "PPid":
			ppid, _ = strconv.Atoi(strings.TrimSpace(value))
		case "NSpid":
			for field := range strings.FieldsSeq(value) {
				number, err := strconv.Atoi(field)
				if err != nil {
					return 0, nil
				}
				numbers = append(numbers, number)
			}
		}
	}
	return ppid, slices.Clip(numbers)
}
