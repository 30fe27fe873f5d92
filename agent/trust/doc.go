// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Package trust knows which certificate authorities each trust domain has at
// this moment, and says so when that changes.
//
// A Source gives the bundle of one trust domain. Two are here: File follows a
// PEM file (a ConfigMap, a trust-manager target, a file of the host), Observed
// gathers what issuers report as their CA, for clusters where nobody configured
// anything. Bundles joins sources into one set keyed by trust domain; bundles of
// different trust domains are never merged (SPIFFE Trust Domain and Bundle
// section 4).
//
// What this package never does: verify an SVID (internal/pki does), talk to an
// API server, or trust a certificate that is not a CA. What it returns are
// copies: no caller can change what another one sees.
//
// Threats answered here:
//   - A half-written, empty or wrong file takes the trust away from every pod of
//     the node. Bad content never replaces good; it is logged and counted.
//   - A swap of symbolic links goes unnoticed and pods keep a retired root.
//     Every directory on the way to the file is watched, and each change
//     re-reads after new watches are in place.
//   - A rotated root disappears while SVIDs signed by it are alive. Observed
//     keeps it until the last of them has expired.
//   - An issuer that reports a new root each time fills the memory. There is a
//     limit to their number, and to the size of what is read.
package trust
