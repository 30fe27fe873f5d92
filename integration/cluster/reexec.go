// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"syscall"
)

// roleVariable tells a re-executed copy of this binary what it is. It is set
// for the janitor, the supervisor, the nodes and the preflight trials only,
// and never passed on to what they start.
const roleVariable = "SIGNET_CLUSTER_ROLE"

const (
	roleJanitor    = "janitor"
	roleSupervisor = "supervisor"
	roleNode       = "node"
	roleTrial      = "trial"
)

// Files that a re-executed copy inherits, by descriptor. The first line of
// the lifeline is its configuration as JSON; after it, the lifeline carries
// nothing but its end.
const (
	fdLifeline = 3
	fdProgress = 4
	fdListener = 5
)

// init turns a re-executed copy of the importing binary (a test binary, or
// the cluster command) into the process it was started as. It is an init so
// that a caller cannot forget it: a test binary that did would run its tests
// again instead, and start clusters without end.
func init() {
	role := os.Getenv(roleVariable)
	if role == "" {
		return
	}
	if err := os.Unsetenv(roleVariable); err != nil {
		os.Exit(70)
	}
	var err error
	switch role {
	case roleJanitor:
		err = janitorMain()
	case roleSupervisor:
		err = supervisorMain()
	case roleNode:
		err = nodeMain()
	case roleTrial:
		err = trialMain()
	default:
		err = fmt.Errorf("%s=%q is not a role", roleVariable, role)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "signet cluster %s: %v\n", role, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// reexec prepares a copy of this binary in the given role. The cluster's name
// is in its command line, so that a process listing says whose it is.
func reexec(role, name string, files ...*os.File) *exec.Cmd {
	return &exec.Cmd{
		Path:       "/proc/self/exe",
		Args:       []string{"signet-cluster-" + role, name},
		Env:        append(cleanEnviron(), roleVariable+"="+role),
		Dir:        "/",
		ExtraFiles: files,
	}
}

const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// cleanEnviron is the environment of everything in a cluster: what a user's
// shell exports (tokens, proxies, KUBECONFIG) must not change how it behaves.
func cleanEnviron() []string {
	return []string{
		"PATH=" + searchPath,
		"HOME=/root",
		"LANG=C.UTF-8",
	}
}

// inherited returns a descriptor given to a re-executed copy. It is marked
// close-on-exec, so that it ends here: a lifeline held by a grandchild would
// never end.
func inherited(fd uintptr, name string) *os.File {
	syscall.CloseOnExec(int(fd))
	return os.NewFile(fd, name)
}

// receive reads a configuration off a lifeline and leaves the reader at what
// follows it.
func receive(lifeline *bufio.Reader, into any) error {
	line, err := lifeline.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	if err := json.Unmarshal(line, into); err != nil {
		return fmt.Errorf("decode configuration: %w", err)
	}
	return nil
}

// send writes a configuration as the first line of a lifeline.
func send(lifeline *os.File, config any) error {
	line, err := json.Marshal(config)
	if err != nil {
		return fmt.Errorf("encode configuration: %w", err)
	}
	if _, err := lifeline.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("send configuration: %w", err)
	}
	return nil
}
