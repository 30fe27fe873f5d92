// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !failpoint

package failpoint

// Here does nothing in this build.
func Here(string) {}
