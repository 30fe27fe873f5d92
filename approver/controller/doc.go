// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Package controller brings package evaluate to a cluster: it watches
// CertificateRequests, reads the one pod that a verdict depends on, and writes
// the Approved or Denied condition.
//
// What it costs: one watch, at most one pod read and one status patch for each
// request. There is no client-side rate limit (the API server has its own, API
// Priority and Fairness) and requests are decided concurrently, so that a node
// that comes back with a hundred pods is served in the time of a few.
//
// What it never does:
//   - Decide on missing knowledge. When the pod cannot be read, the request stays
//     undecided and is tried again.
//   - Decide on an old copy. The patch carries the resource version that was
//     judged; if the request has changed since, the API server refuses it, and
//     the change brings the request back here. So nothing is decided twice, by
//     this replica or by another.
//   - Read pods in bulk. It reads single pods by name, uncached, because a cached
//     pod could be the predecessor of one with the same name.
//   - Keep what it does not need. Requests are trimmed before they enter the
//     cache, and decided ones to almost nothing.
//
// Nothing secret passes through here: a CSR holds a public key only.
package controller
