// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Package admin answers the administrator of the node, on a Unix socket of the agent
// that no pod has: which workloads there are and how they stand, renew this one now,
// which agent is this, log more.
//
// It speaks signet.agent.v1 (proto/), and the Debug and Logger services of SPIRE's
// agent, so that "spire-agent debug getinfo" and "spire-agent logger" work; besides
// them gRPC health and reflection. Whoever starts the Server may add further services
// (Service), each with its own rule of who may call it.
//
// What it owns: the socket, who may call what, and the translation of the lifecycle's
// words into messages.
//
// What it never does: see a key or a token. What it is given (workload.Standing) has
// none. It starts renewals and changes the log level; it can change no identity.
//
// Threats it answers:
//   - A pod, or another user of the node, that reaches for the socket: its directory
//     is 0700 and the socket 0600 (unless Options.EveryUser), neither may lie where pods' volumes or kubelet's
//     plugins do, and every call is refused unless the kernel says that the peer is
//     root or the agent's own user (SO_PEERCRED). A user namespace's root is not root
//     here: the kernel tells its user outside.
//   - Somebody who plants something at the socket's path: the directory has to be the
//     agent's own, links are not followed, and only a socket that nobody serves is
//     replaced. Two agents with the same path do not take it from each other.
//   - A call that is meant to harm the agent: requests are small, a call that panics
//     fails alone, slow readers hold nobody up. Whoever may call it is root, though,
//     and could do worse.
//   - An administrator who denies it: every call is logged with the peer's process and
//     user.
//
// An agent that cannot open the socket says so and works without it: pods' identities
// do not depend on it.
package admin
