// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package dev

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/signet-spiffe/signet/agent/cli"
)

// Exit codes for a program that cannot be run, and base of those for one that a
// signal ended, as shells have them.
const (
	exitNotRunnable = 126
	exitNotFound    = 127
	exitSignalled   = 128
)

// runProgram runs the program with the first identity's socket in its environment
// and returns its exit code as a *cli.ExitError; nil for 0. Signals go to the program:
// it decides what they mean. It is not run if ctx has ended by one before.
func (s *session) runProgram(ctx context.Context) error {
	name, args := s.options.program[0], s.options.program[1:]
	program := exec.Command(name, args...)
	program.Stdin, program.Stdout, program.Stderr = os.Stdin, os.Stdout, os.Stderr
	program.Env = append(os.Environ(), "SPIFFE_ENDPOINT_SOCKET="+s.address(s.options.identities[0]), "SIGNET_DEV_DIR="+s.place.path)

	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	if ctx.Err() != nil {
		return s.options.interrupted()
	}
	if err := program.Start(); err != nil {
		return notStarted(name, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- program.Wait() }()
	for {
		select {
		case sig := <-signals:
			if sig != os.Interrupt || !fromTerminal() {
				_ = program.Process.Signal(sig) // It fails when the program has ended.
			}
		case err := <-ended:
			return exitOf(name, err)
		}
	}
}

// fromTerminal reports whether an interrupt is likely to be the terminal's, which
// has sent it to the program as well.
func fromTerminal() bool {
	foreground, err := unix.IoctlGetInt(int(os.Stdin.Fd()), unix.TIOCGPGRP)
	return err == nil && foreground == unix.Getpgrp()
}

func notStarted(name string, err error) error {
	fmt.Fprintf(os.Stderr, "signet-agent: cannot run %s: %v\n", name, err)
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		return &cli.ExitError{Code: exitNotFound}
	}
	return &cli.ExitError{Code: exitNotRunnable}
}

func exitOf(name string, err error) error {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &exit):
		return fmt.Errorf("wait for %s: %w", name, err)
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return &cli.ExitError{Code: exitSignalled + int(status.Signal())}
	}
	return &cli.ExitError{Code: exit.ExitCode()}
}
