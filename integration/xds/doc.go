// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Package xds holds tests of Envoy's secret discovery service, as Signet serves it, with what others have made: the client of
// go-control-plane, and the definitions and rules of Envoy's whole API, to which the configurations in docs/sds.md are held.
//
// It is in this module because those definitions are large and nothing that ships needs them.
package xds
