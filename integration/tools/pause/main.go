// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Command pause is the sandbox container of every pod: it holds the pod's
// namespaces open, reaps what is reparented to it (it is PID 1 of pods that
// share their process namespace), and leaves at SIGTERM or SIGINT.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGCHLD)
	for s := range signals {
		if s != syscall.SIGCHLD {
			return
		}
		for {
			pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			if pid <= 0 || err != nil {
				break
			}
		}
	}
}
