// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Signet-approver decides, for the whole cluster, which CertificateRequests for
// SPIFFE identities cert-manager may sign. It is the only part of Signet that
// grants anything: an agent, or a pod, can ask for whatever it likes.
//
// The parts: package evaluate is the verdict, a pure function; package controller
// brings it requests and pods and writes the conditions; this package reads the
// flags, refuses wrong ones with one clear line and exit code 2, and runs the two.
//
// It never signs, holds no key and sees no token. It reads pods one by one and
// may approve for the signers that its role names.
//
// Threats it answers: a stolen node that asks for other nodes' identities, a
// workload that asks for a neighbour's, a request that smuggles more than an
// identity past the issuer. A stolen approver can approve anything for those
// signers: it runs unprivileged, with a role of its own, apart from the agents.
package main
