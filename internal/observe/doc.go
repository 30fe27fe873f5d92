// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Package observe is how an operator sees into a Signet process: one logger, one
// HTTP port with /healthz, /readyz and /metrics, and one way to fail at start.
//
// Logs are slog, text or JSON, on standard error. Levels are csi-driver-spiffe's
// numbers (1 to 5) or slog's words. Kubernetes' client library logs through klog;
// it is routed here too, so that a process has one log.
//
// What it never does: decide health. The process hands in the checks; the
// handlers call them and print what they say. /healthz must not depend on an
// issuer or the API server, or an outage elsewhere would restart every agent.
//
// Secrets: the package formats what it is given. Types that hold keys and tokens
// redact themselves (internal/pki.PrivateKey).
package observe
