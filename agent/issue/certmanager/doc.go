// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Package certmanager obtains SVIDs from cert-manager: one CertificateRequest
// per issuance, created, watched and deleted.
//
// It owns everything that the agent says to the Kubernetes API about
// certificates: one POST and one DELETE per issuance, and one watch per agent,
// narrowed to its own requests by a label. The watch feeds waiting attempts
// directly and keeps no cache: an idle agent holds no request in memory.
// Nothing here polls, and there is no client-side rate limit.
//
// A request's name is chosen before it is sent, so an attempt waits under that
// name before the API server has heard of it and no event can come too early.
// Events that can be lost (a watch that was down for too long) are made good by
// the list that follows: a request that should be in it and is not was deleted,
// and one in it that nobody waits for is a leftover and is deleted.
//
// A request may outlive the agent. One whose name the caller has kept is left when
// the agent stops, and expected by the next one before its first list (resume.go).
//
// What this package never does: see a private key, verify a certificate (the
// caller does), decide anything about an identity, read a pod.
//
// Threats answered here:
//   - A workload's token used for anything but its own request: in requester
//     mode "pod" each create has a client of its own, built from a
//     configuration stripped of the agent's credentials, client certificate
//     included, and without a token it does not ask at all. Only creates use
//     it; watching and deleting are the agent's.
//   - Requests that pile up: the last refused one per volume is kept for the
//     operator, everything else goes at once. With a retention the newest few of
//     each volume stay for audit, across restarts of the agent, until their pod
//     goes, which owns them.
//   - Deleting another's request: every delete of a seen object carries its UID, and
//     what an agent before has kept is not deleted before it was seen.
package certmanager
