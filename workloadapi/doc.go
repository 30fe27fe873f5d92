// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Package workloadapi serves the SPIFFE Workload API to many workloads from one process: one Unix socket per workload, one
// gRPC server and one accepting goroutine behind all of them, so that a socket nobody connects to costs next to nothing.
//
// What it owns: the wire. It turns an Identity (go-spiffe types, handed over by whoever implements Workload) into the
// messages of the Workload API, pushes a new message when and only when what it says has changed, and ends streams with the
// status codes that make clients of every language do the right thing. It also answers Envoy's secret discovery service
// (files sds*.go), grpc.health.v1 and server reflection on the same sockets.
//
// What it never does: it obtains no certificates, verifies none, and knows neither Kubernetes nor the volume a
// socket lives in. It never asks a caller who it is. A workload is told apart by the listener that accepted its connection
// and by nothing else (Workload Endpoint §5: the orchestrator places the socket where only the workload can reach it); the
// identity travels from the listener to the handler in the connection's credentials.AuthInfo, and no request field, header
// or method name can select another one.
//
// Rules that all streams follow:
//   - Initializing: Unavailable. Pending: the stream is held open and silent until the state changes. NotEntitled:
//     PermissionDenied with the words "no identity issued", also in the middle of a stream.
//   - Every message holds the complete state, in one fixed order; a message equal to the last one sent is not sent.
//   - No Workload API stream ends with OK: several client libraries take OK for "finished" and never come back. Detach ends
//     with PermissionDenied, Shutdown with Unavailable. Proxies' streams are the same, but for a client that has closed its
//     own side: it gets what it has asked for, and then OK.
//
// Threats answered: a page that makes a browser or proxy talk to the socket (the security header, Workload Endpoint §3, is
// checked before a request is read, for the Workload API service itself and not for a spelling of its path); a pod that opens
// connections and streams without end, floods, never reads or never speaks (Limits: it slows down its own socket, and takes
// nothing of what others have to themselves; Detach and Shutdown close its connections by force after a short time); keys in logs (no type of this package prints what it holds).
package workloadapi
