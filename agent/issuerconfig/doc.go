// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Package issuerconfig knows which cert-manager issuer the agent asks: the one of
// the flags, or the one that a ConfigMap names while the agent runs (keys
// issuer-name, issuer-kind and issuer-group, as csi-driver-spiffe has them).
//
// The ConfigMap is listed and watched as a single object. A list shows that it is
// not there, so one that was deleted while the watch was down is noticed; a plain
// watch, as csi-driver-spiffe has it, never would.
//
// What holds:
//   - no ConfigMap: the issuer of the flags;
//   - a valid one: the issuer that it names, in place of that of the flags;
//   - one that is not valid: refused as a whole. The issuer stays the one that it
//     was, an Event on the ConfigMap, the log and a metric say why. The approver
//     reads it by the same rules (request.ParseRuntimeIssuer).
//
// Before the first list nobody knows which of these is the case, so nothing is
// issued until then: IssuerRef waits, for a bounded time, and says what for. An
// agent that asked the issuer of the flags meanwhile would have SVIDs signed by
// one that is perhaps no longer meant.
//
// What it never does: ask whether the issuer exists or works (cert-manager does),
// or issue anything again (agent/workload does, told by the channel of Issuer).
//
// Threats it answers. Whoever may write the ConfigMap chooses the issuer, and by
// that the trust domain's authority; the approver must be configured to read it
// too, or requests for that issuer are denied. RBAC names the one ConfigMap.
package issuerconfig
