// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Package proto holds Signet's own gRPC API, and nothing else: .proto files, one
// folder for each package and version, with the Go code that is generated from
// them (make generate).
//
// baseline.txtpb is what was promised: the API as it was generated last. make lint
// refuses a change of the .proto files that would break those who were built
// against it (buf, category FILE), generated code that is not what the .proto files
// say, and a baseline that is not. make generate writes both anew, and refuses to
// where that would break somebody. A clone needs no history for it.
//
// What it never does: carry a key or a token.
package proto
