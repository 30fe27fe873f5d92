// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Package selfca is an issuer for laptops and tests: a certificate authority
// whose key lives in the memory of this process and dies with it.
//
// It signs as a real issuer of X.509-SVIDs does (X509-SVID sections 2 to 4):
// the CSR's signature is checked, it must ask for exactly the SPIFFE ID of the
// request, and only the public key is taken from it. Nothing else that a CSR may
// ask for reaches a certificate. Rotate makes a new root, as an operator would.
//
// What this package never does: approve. Whoever can call Issue gets an SVID of
// the trust domain. Nor does it store anything, so a restart is a new trust
// domain in all but name. It is not for production.
package selfca
