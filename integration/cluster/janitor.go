// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// detach is what a parent writes to the lifeline before it closes it, to leave
// the cluster running.
const detach = 'd'

// janitor outlives the parent by as long as it takes to leave the machine as
// it was found. It runs in the host's namespaces and in a session of its own,
// so that Ctrl-C in a terminal reaches the parent only.
type janitor struct {
	plan
	*reporter
	lock *os.File

	// mu guards the connections of those who asked for the end.
	mu      sync.Mutex
	waiting []net.Conn
}

func janitorMain() error {
	lifeline := bufio.NewReader(inherited(fdLifeline, "lifeline"))
	progress := inherited(fdProgress, "progress")
	j := &janitor{reporter: &reporter{w: progress}}
	if err := receive(lifeline, &j.plan); err != nil {
		return err
	}
	err := j.run(lifeline, progress)
	if err != nil {
		j.report(report{Error: err.Error()})
	}
	return err
}

func (j *janitor) run(lifeline *bufio.Reader, progress *os.File) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer stop()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		// Without the word, the end of the lifeline is the end of the parent.
		if word, err := lifeline.ReadByte(); err == nil && word == detach {
			return
		}
		cancel()
	}()

	lock, err := createStateDir(j.Name)
	if err != nil {
		return err
	}
	j.lock = lock
	supervisor, err := j.start(cancel, progress)
	if err == nil {
		ended := make(chan error, 1)
		go func() { ended <- supervisor.Wait() }()
		select {
		case <-ctx.Done():
			// Waiting for PID 1 of a PID namespace is waiting for all in it.
			_ = supervisor.Process.Kill()
			<-ended
		case err = <-ended:
			err = fmt.Errorf("the supervisor of cluster %s ended: %w", j.Name, err)
		}
	}
	err = errors.Join(err, j.cleanUp())
	j.answer(err)
	return err
}

// start makes what the supervisor needs from the host, and the supervisor.
func (j *janitor) start(end func(), progress *os.File) (*exec.Cmd, error) {
	if err := j.serve(end); err != nil {
		return nil, err
	}
	if err := createCgroups(j.plan); err != nil {
		return nil, err
	}
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, fmt.Errorf("listen for API clients: %w", err)
	}
	defer listener.Close()
	j.Port = listener.Addr().(*net.TCPAddr).Port
	listenerFile, err := listener.File()
	if err != nil {
		return nil, fmt.Errorf("listen for API clients: %w", err)
	}
	defer listenerFile.Close()

	log, err := openLog(filepath.Join(j.LogDir, "supervisor.log"))
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	defer log.Close()
	read, write, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start supervisor: %w", err)
	}
	defer read.Close()
	cmd := reexec(roleSupervisor, j.Name, read, progress, listenerFile)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start supervisor: %w", errors.Join(err, write.Close()))
	}
	// From here on the supervisor ends with this process: write is never
	// closed, and nobody else has it.
	lifelines.Store(write, true)
	if err := j.introduce(cmd.Process.Pid, write); err != nil {
		_ = cmd.Process.Kill()
		return nil, errors.Join(err, cmd.Wait())
	}
	return cmd, nil
}

// introduce puts a new supervisor into its cgroup, records it, and only then
// tells it what to do.
func (j *janitor) introduce(pid int, lifeline *os.File) error {
	if err := enterControlCgroup(j.Name, pid); err != nil {
		return err
	}
	err := writeRecord(j.StateDir, record{
		Name: j.Name, KubernetesVersion: j.KubernetesVersion, Nodes: j.Nodes, Port: j.Port,
		LogDir: j.LogDir, Binaries: j.Binaries, Supervisor: pid, Started: time.Now(),
	})
	if err != nil {
		return err
	}
	return send(lifeline, j.plan)
}

// lifelines keeps descriptors open whose closing would mean the end of
// somebody: an os.File that nobody refers to is closed by its finalizer.
var lifelines sync.Map

// serve accepts connections; each is a wish for the end of the cluster.
func (j *janitor) serve(end func()) error {
	listener, err := net.Listen("unix", janitorSocket(j.StateDir))
	if err != nil {
		return fmt.Errorf("serve wishes for the end: %w", err)
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			j.mu.Lock()
			j.waiting = append(j.waiting, conn)
			j.mu.Unlock()
			end()
		}
	}()
	return nil
}

// answer tells those who asked for the end what was not cleaned up, if
// anything. That it was is told by the end of the connection, with this
// process.
func (j *janitor) answer(err error) {
	if err == nil {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, conn := range j.waiting {
		_, _ = io.WriteString(conn, err.Error())
	}
}

// cleanUp removes what the end of the namespaces does not. The lock ends with
// this process.
func (j *janitor) cleanUp() error {
	ctx, cancel := context.WithTimeout(context.Background(), cleanUpTimeout)
	defer cancel()
	return errors.Join(removeCgroups(ctx, clusterCgroup(j.Name)), removeStateDir(j.StateDir))
}
