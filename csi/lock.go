// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const lockFile = "agent.lock"

// Lock waits until no other process works for this driver on this node, and returns what lets the next one
// in; so does the end of the process, however it ends. Call it before OpenStore.
//
// Two agents should never meet, but a container runtime that was restarted may lose sight of a container:
// kubelet then starts another one beside it. The second must not touch the volumes of the first, which lives
// and serves them.
//
// The error is ctx's cause, or says why the file cannot be locked.
func Lock(ctx context.Context, dataRoot, driver string, log *slog.Logger) (unlock func() error, err error) {
	dir := filepath.Join(dataRoot, driver)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("make plugin directory: %w", err)
	}
	file, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the driver's directory: %w", err)
	}
	fd := int(file.Fd())
	err = flock(fd, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		log.Warn("another agent of this driver runs on this node; waiting for it to end", "lock", file.Name())
		return waitFlock(ctx, file, fd)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", file.Name(), err), file.Close())
	}
	return file.Close, nil
}

// waitFlock waits for the lock or for the end of ctx. Nothing ends the system call but the lock: one that
// comes after all is given back.
func waitFlock(ctx context.Context, file *os.File, fd int) (unlock func() error, err error) {
	locked := make(chan error, 1)
	go func() { locked <- flock(fd, unix.LOCK_EX) }()
	select {
	case err := <-locked:
		if err != nil {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", file.Name(), err), file.Close())
		}
		return file.Close, nil
	case <-ctx.Done():
		go func() { _, _ = <-locked, file.Close() }()
		return nil, fmt.Errorf("lock %s: %w", file.Name(), context.Cause(ctx))
	}
}

func flock(fd, how int) error {
	for {
		err := unix.Flock(fd, how)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
