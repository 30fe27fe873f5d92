// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Command demo shows Signet at work on this machine: it brings up a real
// Kubernetes with two nodes, installs cert-manager's issuer and Signet by the
// manifests that users have, and lets the services of deploy/examples/mtls.yaml
// speak to each other, one taking its identity from the Workload API, the other
// from files, while both of their short-lived SVIDs are renewed under them.
//
// What is printed is what was measured. Nothing is staged: the refused stranger
// has a valid identity of the same trust domain, and is refused because it is
// not the one that the server expects.
//
// It leaves nothing behind, however it ends, and can be run again at once.
package main
