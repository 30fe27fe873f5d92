// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Package issue names what the agent needs of somebody who signs: the Issuer
// port and the words spoken across it.
//
// The lifecycle of a workload (agent/workload) makes a key and a certificate
// signing request and hands the request to an Issuer. The key never crosses
// this seam. What comes back is PEM as the issuer returned it, believed by
// nobody: the caller verifies it (internal/pki) before a workload sees it.
//
// Two issuers implement the port. Package certmanager asks cert-manager by
// CertificateRequest and waits on a watch. Package selfca signs with a
// certificate authority in memory, for laptops and tests.
//
// A request may outlive the agent that made it: the caller keeps the key and the
// request's name where the next agent finds them (IssueRequest.Sending), and that
// agent takes the answer (IssueRequest.Resume, Resumer).
//
// What this package never does: no I/O, no Kubernetes client, no cryptography.
// It holds types, so that the lifecycle needs neither of its issuers to compile.
//
// Threats answered here:
//   - A service account token reaches a log. Token does not print, marshal or
//     format, not even as an unexported field of a printed struct.
//   - A refusal is retried as if it were an outage, or the other way round. The
//     five errors keep them apart, and carry the approver's or issuer's own
//     words, cleaned of line breaks and clipped, since those words are foreign.
package issue
