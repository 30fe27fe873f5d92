// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Package podevents tells the owner of a pod about its identity, by Kubernetes
// Events on the pod: what `kubectl describe pod` shows.
//
// The lifecycle (agent/workload) decides when there is something to tell; this
// package finds the words and brings them to the API server. The reasons are
// SVIDIssued, SVIDDenied, SVIDIssuanceFailed, SVIDRenewalOverdue and SVIDExpired.
// A denial or a failure carries the approver's or the issuer's own words.
//
// Events are of the core API, not of events.k8s.io. There the note of an Event
// may never change, so that each new word of an issuer would be one more object;
// in the core API a repeated Event is one object whose count, time and message
// are patched. Readers see the same objects through both.
//
// What it never does: block or fail its caller, try again, or remember. An Event
// that cannot be brought to the API server is lost and counted; the log and the
// metrics are where nothing is lost.
//
// Threats answered here:
//   - A thousand volumes that fail for hours fill etcd. Each volume has one
//     Event per reason, patched ever more rarely; all volumes of a node share a
//     budget, good news a smaller one; what waits to be sent is bounded.
//   - An API server that hangs holds up renewals. Two goroutines send, one
//     of them what went wrong, and nobody waits for them.
//   - Foreign words smuggle line breaks, terminal codes, a key or a token into
//     what people with few rights may read. Words are cleaned, clipped, and
//     stripped of what looks like either.
package podevents
