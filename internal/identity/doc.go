// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Package identity says which SPIFFE ID a pod has.
//
// A pod's identity is computed, never chosen: a template turns the pod's
// namespace and service account into the path of a SPIFFE ID. The agent computes
// the ID to ask for and the approver computes the ID to allow; both call this
// package with the same template, so they agree or the request is denied.
//
// What the package owns: the template language, the legality of its results
// (SPIFFE-ID §2), and the spelling of Kubernetes service account user names.
//
// What it never does: look anything up. Facts about pods are the caller's.
//
// Threats it answers. Two service accounts must never share an ID: a template
// that does not contain both the namespace and the service account, each alone
// in its path segment, is refused when it is parsed. An ID must never be built
// from text that could add a segment, a query or a host: every result passes
// go-spiffe's own parser, and Kubernetes names that are not plain path segments
// are an error.
package identity
