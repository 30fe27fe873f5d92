// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build failpoint

package failpoint

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Marker is in the log of a process that ended at a point, and in the binary of
// this build alone.
const Marker = "failpoint reached, this process ends now:"

// exitCode is what a shell shows of a process that SIGKILL ended.
const exitCode = 128 + int(unix.SIGKILL)

// Here ends the process if the point is armed. Nothing happens between the removal
// of the file, which whoever armed the point may see, and the end.
func Here(name string) {
	dir := os.Getenv(Folder)
	if dir == "" {
		return
	}
	armed := filepath.Join(dir, FileName(name))
	if _, err := os.Lstat(armed); err != nil {
		return
	}
	fmt.Fprintln(os.Stderr, Marker, name)
	if os.Remove(armed) != nil {
		return // Another goroutine is here, too.
	}
	// A container's first process is deaf to its own SIGKILL. exit_group(2) ends
	// every thread as abruptly: nothing deferred runs, nothing is flushed.
	_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, uintptr(exitCode), 0, 0)
	select {}
}
