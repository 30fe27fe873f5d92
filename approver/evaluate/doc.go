// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Package evaluate decides whether a CertificateRequest may be signed.
//
// It is one pure function, Evaluate: a request, the facts known about its pod
// and the policy go in, a Verdict comes out. It reads no API, no clock and no
// random source, so that every rule can be tested with the smallest deviation
// from a valid request, and the whole can be fuzzed.
//
// A verdict is final once it is written, and what is approved here is signed:
// issuers copy the subject, the SAN extension and the public key out of the CSR.
// The rules therefore list what is allowed and refuse the rest, on the bytes of
// the CSR and not only on what a lenient parser makes of them. Each rule has a
// name; a denial carries that name, what was asked and what is allowed.
//
// Threats it answers:
//   - A stolen node asks for the identity of a pod elsewhere: the node in the
//     requester's token, which the API server vouches for, must be the pod's.
//   - A workload asks for a neighbour's identity: the SPIFFE ID is computed from
//     the pod (or from the requesting service account), never taken from the CSR.
//   - Anybody smuggles a subject, a CA bit, another name or another issuer past
//     an approver that looks only at the URI.
//   - A workload asks for a neighbour's DNS name: which ones it may have is computed
//     from the same proven facts, and no name is ever given to two owners.
//   - Two parsers read one CSR differently: exactly one encoding is accepted.
//
// It never decides on missing facts: when the pod has to be read first, the
// verdict says so.
package evaluate
