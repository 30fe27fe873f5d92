// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Package conformance holds Signet to the SPIFFE standards, rule by rule.
//
// It is the table of the rules that concern Signet, in our own words and
// numbered (E the Workload Endpoint, W the Workload API, X X.509-SVIDs, I SPIFFE
// IDs, B bundles), and the one function with which a test says which of them it
// shows: Proves. The tests stay where the code is that they test.
//
// internal/conformance/page writes docs/conformance.md of both, and
// internal/conformance/generate runs the tests first: what the page says of a
// rule is what its tests said. `go test ./docs` fails when the page is not what
// table and tests make of it, and when a MUST or a SHOULD has neither a test nor
// a reason.
//
// It is used by tests and by the generator, and decides nothing at run time.
package conformance
