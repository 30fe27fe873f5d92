// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Package hostile attacks a Workload API socket as a process in a pod could. Tests and benchmarks use it to show that the
// agent and its other pods do not suffer; no program of Signet contains it.
package hostile
