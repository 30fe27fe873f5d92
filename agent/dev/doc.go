// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Package dev is "signet-agent dev": SPIFFE identities on a laptop, without a
// cluster and without root. It is for development and says so.
//
// It joins the parts that the agent is made of to others below and above them: the
// lifecycle (agent/workload) renews, an authority in memory (agent/issue/selfca)
// signs, workloadapi serves. In place of CSI volumes there is one directory for each
// identity, in the user's own runtime directory, which holds what a pod finds in its
// volume: the socket and, if wanted, the files. So a program written against it runs
// unchanged in the cluster. Each trust domain that identities name has an authority
// of its own, and all of them are federated with each other.
//
// What this package never does: know Kubernetes, need a privilege, listen on
// anything but a socket in a directory that is the user's alone, or keep a key after
// it has ended.
//
// Threats answered here (place.go). Whoever can connect to a socket is its workload,
// so it must not be reachable for others: the directory is made by us or proves to be
// ours (owner, mode 0700, no symbolic link), and so does every directory on the way
// to it that could be used to put another one in its place; it is kept open, locked
// and used by its descriptor. What is in it that we did not make is not touched.
package dev
