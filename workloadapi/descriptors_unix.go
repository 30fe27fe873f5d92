// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package workloadapi

import (
	"math"

	"golang.org/x/sys/unix"
)

// descriptors is how many this process may open; 0 if that is not known. Go has raised the soft limit to the hard one.
func descriptors() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0
	}
	return int(min(uint64(limit.Cur), math.MaxInt32))
}
