// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Package page makes docs/conformance.md of the table of rules, of the tests that
// name them, and of what those tests said when they ran.
//
// The first two are read from the source, so that `go test ./docs` can tell a
// stale page without running anything. The third, a verdict per rule, comes from
// a run alone; the page keeps the last one.
package page
