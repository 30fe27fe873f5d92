// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Package pki makes keys and certificate signing requests, and decides whether
// what an issuer returned is an X509-SVID that may be used.
//
// It is pure: no files, no network, no clock of its own. Time is an argument.
//
// What it owns: the private key type, the set of key types, which DNS names an
// SVID may have beside its SPIFFE ID, the shape of the CSR (empty subject, one URI
// SAN and those DNS names, critical as RFC 5280 4.1.2.6 demands of a certificate
// without subject), the PEM forms of keys and chains, and the
// verification of an issued chain against the X509-SVID standard, rule by rule.
//
// What it never does: trust an issuer. A chain is used only after VerifySVID
// found the right key, the right identity, every rule of X509-SVID §2–§5, and a
// path to the trust bundle. Each refusal names its rule.
//
// Threats it answers. An issuer, or somebody who can write a
// CertificateRequest's status, returns garbage, another workload's certificate,
// a CA certificate, or a chain of another authority: refused. A key reaches a
// log, an error or a JSON document by accident: PrivateKey does not print and
// does not marshal; the one way out is MarshalPEM.
package pki
