// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Package request is the shape of the CertificateRequest that stands between the
// agent, which makes it, and the approver, which judges it.
//
// Both sides read the annotations, labels, usages and keys from here, so that
// what one writes and what the other demands cannot drift apart.
//
// What it owns: names on the wire. The identity annotation is csi-driver-spiffe's,
// so that an approver and a driver of either project understand each other
// during a migration; the others are Signet's own.
//
// What it never does: judge. What may be approved is approver/evaluate's; the
// labels are for finding one's own requests and prove nothing.
package request
