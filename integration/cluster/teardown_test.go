// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// parentVariable makes the test binary a parent of the cluster that it names:
// it brings it up, says so, and waits to be ended.
const parentVariable = "SIGNET_TEST_PARENT"

func TestMain(m *testing.M) {
	if name := os.Getenv(parentVariable); name != "" {
		if err := parentMain(name); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func parentMain(name string) error {
	c, err := Up(context.Background(), Options{Name: name, Nodes: 2, Progress: os.Stderr})
	if err != nil {
		return err
	}
	fmt.Printf("up %s\n", c.Name())
	select {}
}

// process is one that must be gone in the end. Its start time tells it from a
// later one with the same number.
type process struct {
	pid     int
	started string
	command string
}

// parent is a process that holds a cluster.
type parent struct {
	cmd        *exec.Cmd
	name       string
	janitor    int
	supervisor int
	all        []process
	interfaces []string
	port       int
}

// startParent starts a process that brings a two-node cluster up.
func startParent(t *testing.T, name string) *parent {
	t.Helper()
	needCluster(t)
	p := &parent{name: name, interfaces: interfaces(t)}
	p.cmd = exec.Command("/proc/self/exe")
	p.cmd.Env = append(os.Environ(), parentVariable+"="+name)
	p.cmd.Stderr = t.Output()
	// Ctrl-C on a terminal goes to a process group.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
		if err := Down(context.Background(), name); err != nil {
			t.Error(err)
		}
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || line != "up "+name+"\n" {
		t.Fatalf("the parent said %q, %v", line, err)
	}
	r, err := readRecord(stateDir(name))
	if err != nil {
		t.Fatal(err)
	}
	p.supervisor, p.port = r.Supervisor, r.Port
	children := processTree(t)
	for pid, proc := range children.processes {
		if strings.HasPrefix(proc.command, "signet-cluster-janitor "+name) {
			p.janitor = pid
		}
	}
	if p.janitor == 0 {
		t.Fatal("no janitor")
	}
	p.all = children.below(p.janitor)
	if len(p.all) < 1+1+6+2*4 {
		t.Fatalf("a cluster of two nodes has only %d processes: %v", len(p.all), p.all)
	}
	return p
}

// tree is a snapshot of all processes.
type tree struct {
	processes map[int]process
	children  map[int][]int
}

func processTree(t *testing.T) tree {
	t.Helper()
	out := tree{map[int]process{}, map[int][]int{}}
	found, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range found {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			t.Fatal(err)
		}
		status, err := os.ReadFile(dir + "/status")
		if err != nil {
			continue
		}
		ppid, _ := parseProcStatus(status)
		command, err := os.ReadFile(dir + "/cmdline")
		if err != nil {
			continue
		}
		started := startTime(pid)
		if started == "" {
			continue // it has just ended, and has no children
		}
		out.processes[pid] = process{pid, started, string(bytes.ReplaceAll(command, []byte{0}, []byte{' '}))}
		out.children[ppid] = append(out.children[ppid], pid)
	}
	return out
}

func (t tree) below(pid int) []process {
	var out []process
	if proc, ok := t.processes[pid]; ok {
		out = append(out, proc)
	}
	for _, child := range t.children[pid] {
		out = append(out, t.below(child)...)
	}
	return out
}

// startTime is field 22 of /proc/PID/stat, or empty if there is no process.
func startTime(pid int) string {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	fields := strings.Fields(string(content[bytes.LastIndexByte(content, ')')+1:]))
	if fields[0] == "Z" {
		return "" // ended; its parent has not noticed
	}
	return fields[19]
}

// TestProcessTreeOmitsEnded: a process that has ended but was not waited for is
// none that a cluster could leave.
func TestProcessTreeOmitsEnded(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }()
	pid := cmd.Process.Pid
	if err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	snapshot := processTree(t)
	if _, found := snapshot.processes[pid]; found {
		t.Errorf("process %d has ended and is in the tree", pid)
	}
	if below := snapshot.below(os.Getpid()); slices.ContainsFunc(below, func(p process) bool { return p.pid == pid }) || len(below) == 0 {
		t.Errorf("below the test are %v", below)
	}
}

func interfaces(t *testing.T) []string {
	t.Helper()
	list, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, i := range list {
		names = append(names, i.Name)
	}
	return names
}

// waitEnded waits for a process that is not a child.
func waitEnded(t *testing.T, pid int, timeout time.Duration) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(timeout.Milliseconds()))
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(timeout.Milliseconds()))
	}
	if err != nil || n == 0 {
		t.Fatalf("process %d has not ended after %s (%v)", pid, timeout, err)
	}
}

// checkNothingLeft checks everything that a cluster puts on a machine.
func (p *parent) checkNothingLeft(t *testing.T) {
	t.Helper()
	for _, proc := range p.all {
		if startTime(proc.pid) == proc.started {
			t.Errorf("process %d is left: %s", proc.pid, proc.command)
		}
	}
	for _, proc := range processTree(t).processes {
		if strings.Contains(proc.command, p.name) && proc.pid != os.Getpid() {
			t.Errorf("process %d is left: %s", proc.pid, proc.command)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(mounts, []byte(p.name)) {
		t.Errorf("a mount is left:\n%s", mounts)
	}
	if now := interfaces(t); !slices.Equal(now, p.interfaces) {
		t.Errorf("interfaces are %q, were %q", now, p.interfaces)
	}
	list, err := hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range list {
		if path := filepath.Join(h.path, clusterCgroup(p.name)); exists(path) {
			t.Errorf("cgroup %s is left", path)
		}
	}
	if exists(stateDir(p.name)) {
		t.Errorf("state directory %s is left", stateDir(p.name))
	}
	if conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", p.port)); err == nil {
		conn.Close()
		t.Errorf("somebody still listens on port %d", p.port)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// TestKilledParentLeavesNothing ends the owner of a cluster in every way that
// gives it no chance to clean up.
func TestKilledParentLeavesNothing(t *testing.T) {
	for _, test := range []struct {
		name string
		kill func(t *testing.T, p *parent)
		// wait is for the last process that cleans up.
		wait func(p *parent) int
	}{
		{
			"parent killed",
			func(t *testing.T, p *parent) { kill(t, p.cmd.Process.Pid, syscall.SIGKILL) },
			func(p *parent) int { return p.janitor },
		},
		{
			"Ctrl-C in the parent's terminal",
			func(t *testing.T, p *parent) { kill(t, -p.cmd.Process.Pid, syscall.SIGINT) },
			func(p *parent) int { return p.janitor },
		},
		{
			"janitor killed",
			func(t *testing.T, p *parent) { kill(t, p.janitor, syscall.SIGKILL) },
			func(p *parent) int { return p.supervisor },
		},
		{
			"janitor terminated",
			func(t *testing.T, p *parent) { kill(t, p.janitor, syscall.SIGTERM) },
			func(p *parent) int { return p.janitor },
		},
		{
			"supervisor killed",
			func(t *testing.T, p *parent) { kill(t, p.supervisor, syscall.SIGKILL) },
			func(p *parent) int { return p.janitor },
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := startParent(t, fmt.Sprintf("t%d", time.Now().UnixNano()%1e9))
			test.kill(t, p)
			began := time.Now()
			waitEnded(t, test.wait(p), 20*time.Second)
			t.Logf("gone after %s", time.Since(began).Round(time.Millisecond))
			// A parent that lives is not the cluster's.
			kill(t, p.cmd.Process.Pid, syscall.SIGKILL)
			_ = p.cmd.Wait()
			p.checkNothingLeft(t)
		})
	}
}

// TestParentKilledDuringBringUp kills the parent when the API server has just
// become ready and the nodes are starting.
func TestParentKilledDuringBringUp(t *testing.T) {
	needCluster(t)
	const name = "halfway-test"
	p := &parent{name: name, interfaces: interfaces(t)}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), parentVariable+"="+name)
	progress, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(progress).ReadString('\n')
	if err != nil {
		t.Fatalf("the parent said %q, %v", line, err)
	}
	r, err := readRecord(stateDir(name))
	if err != nil {
		t.Fatal(err)
	}
	p.port = r.Port
	tree := processTree(t)
	p.all = tree.below(cmd.Process.Pid)
	kill(t, cmd.Process.Pid, syscall.SIGKILL)
	_ = cmd.Wait()
	janitors := 0
	for _, proc := range p.all {
		if strings.HasPrefix(proc.command, "signet-cluster-janitor") {
			waitEnded(t, proc.pid, 20*time.Second)
			janitors++
		}
	}
	if janitors != 1 {
		t.Errorf("there were %d janitors among %v", janitors, p.all)
	}
	p.checkNothingLeft(t)
}

func kill(t *testing.T, pid int, signal syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
		t.Fatal(err)
	}
}

// TestStaleIsRemoved kills janitor and supervisor at once, so that nobody is
// left to clean up, and expects the next command to do it.
func TestStaleIsRemoved(t *testing.T) {
	p := startParent(t, "stale-test")
	for _, pid := range []int{p.janitor, p.supervisor} {
		kill(t, pid, syscall.SIGSTOP)
	}
	for _, pid := range []int{p.supervisor, p.janitor} {
		kill(t, pid, syscall.SIGKILL)
	}
	waitEnded(t, p.janitor, 20*time.Second)
	waitEnded(t, p.supervisor, 20*time.Second)
	kill(t, p.cmd.Process.Pid, syscall.SIGKILL)
	_ = p.cmd.Wait()

	list, err := List()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(list, func(info Info) bool { return info.Name == p.name })
	if i < 0 || list[i].Running {
		t.Fatalf("the rest is not listed as such: %+v", list)
	}
	if _, err := Attach(p.name); err == nil || !strings.Contains(err.Error(), "not running any more") {
		t.Errorf("attach to the rest: %v", err)
	}
	if err := Down(t.Context(), p.name); err != nil {
		t.Fatal(err)
	}
	p.checkNothingLeft(t)
}

// TestDetach: a detached cluster lives on, is found by name, refuses a
// namesake, and ends by name.
func TestDetach(t *testing.T) {
	const name = "detach-test"
	c := testCluster(t, Options{Name: name})
	if err := c.Detach(); err != nil {
		t.Fatal(err)
	}
	attached, err := Attach(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Up(t.Context(), Options{Name: name}); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("a second cluster of the name: %v", err)
	}
	status, err := attached.Status(t.Context())
	if err != nil || len(status) != 9 {
		t.Errorf("status has %d components: %v", len(status), err)
	}
	p := &parent{name: name, interfaces: interfaces(t), port: attached.record.Port}
	p.all = processTree(t).below(attached.record.Supervisor)
	if err := attached.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.checkNothingLeft(t)
	if _, err := Attach(name); err == nil {
		t.Error("attached to a cluster that is gone")
	}
	if err := Down(t.Context(), name); err != nil {
		t.Errorf("down, once more: %v", err)
	}
}

// TestInterruptedBringUp: a context that ends in the middle leaves nothing.
func TestInterruptedBringUp(t *testing.T) {
	needCluster(t)
	const name = "interrupted-test"
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("stopped by the test")
	p := &parent{name: name, interfaces: interfaces(t)}
	// The first line comes when the API server is ready, with nodes starting.
	progress := writerFunc(func([]byte) { cancel(stop) })
	_, err := Up(ctx, Options{Name: name, Nodes: 2, Progress: progress})
	if !errors.Is(err, stop) {
		t.Fatalf("got %v, want %v", err, stop)
	}
	p.checkNothingLeft(t)
}

type writerFunc func([]byte)

func (f writerFunc) Write(b []byte) (int, error) { f(b); return len(b), nil }

// TestFailedComponent: what breaks during bringing up is named, with its log.
func TestFailedComponent(t *testing.T) {
	needCluster(t)
	const name = "failing-test"
	p := &parent{name: name, interfaces: interfaces(t)}
	_, err := Up(t.Context(), Options{Name: name, APIServerArgs: []string{"--no-such-flag"}})
	if err == nil {
		t.Fatal("came up")
	}
	for _, want := range []string{componentAPIServer, "exit status 1", "unknown flag: --no-such-flag", "kube-apiserver.log"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error lacks %q: %v", want, err)
		}
	}
	p.checkNothingLeft(t)
}

// TestMissingRight takes rights away and expects to be told which, before
// anything is started.
func TestMissingRight(t *testing.T) {
	needCluster(t)
	if lookUp("setpriv") == "" {
		t.Skip("needs setpriv from util-linux to take capabilities away")
	}
	for _, test := range []struct{ name, drop, want string }{
		{"no CAP_SYS_ADMIN", "--bounding-set=-sys_admin", "missing right: create a PID namespace"},
		{"not root", "--reuid=65534", "needs root"},
	} {
		t.Run(test.name, func(t *testing.T) {
			self, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			args := []string{test.drop, "--clear-groups", "--inh-caps=-all", self}
			cmd := exec.CommandContext(t.Context(), "setpriv", args...)
			cmd.Env = append(os.Environ(), parentVariable+"=rights-test")
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Fatalf("came up: %s", out)
			}
			if !strings.Contains(string(out), test.want) {
				t.Errorf("said %q, want %q in it", out, test.want)
			}
			if exists(stateDir("rights-test")) {
				t.Error("something was started")
			}
		})
	}
}
