// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Package cli is the command line beside the agent itself: the subcommands of
// signet-agent that somebody types, and the frame that they share.
//
// The agent is the command without a name: "signet-agent --node-id=…" parses its
// flags as it always has and knows nothing of this package. Only a first argument
// that is a word (IsCommand) leads here.
//
// The frame (Execute, Group, Normalize, Output, Timeout, ParseSocket, Dial,
// Explain) gives every subcommand the habits of SPIRE's command line, which is the
// one that people know: flags with one dash or two, -output pretty|json, -timeout,
// -socketPath. Exit codes: 0; 1, something failed; 2, the command line is wrong.
//
// Commands are what is here for workloads: api and healthcheck, clients of the
// SPIFFE Workload API. They work on any server's socket. For the administrator there
// is workloads, a client of the agent's admin socket (agent/admin).
//
// What this package never does: run the agent, or know Kubernetes.
//
// Threats answered here. A private key reaches a terminal, a log or a world-readable
// file: keys are written by "api fetch x509 -write" alone, with mode 0600 from the
// first byte, into files that are made anew and renamed, never through a symbolic
// link that somebody has put there; JSON output holds none. Words of the server
// reach the terminal: control characters are taken out first.
package cli
