// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Package csi is Signet's side of kubelet: the CSI identity and node services, the volumes themselves, and
// the registration of the driver.
//
// A volume is a tmpfs of its own, mounted under the driver's plugin directory (Store, Dir) and bind-mounted
// to where kubelet wants it. One part of it is what the pod sees: files that are swapped all at once, and a
// socket. The other part is private: the agent's state, which is how a restarted agent takes up the
// identities of running pods without asking anybody, and what it has begun and not ended.
//
// The package knows nothing of certificates, of cert-manager and of the Workload API, and it has no
// Kubernetes client. It asks one thing of the agent (Workloads): give this volume its identity, take it
// away. The agent stores and serves through the Dir it gets.
//
// It holds these promises:
//   - A publish that succeeds has files and socket in place, and one mount, however often it is repeated. A
//     publish of a published volume never unmounts and never fails.
//   - An unpublish that succeeds leaves nothing, also when it overtakes a publish. It succeeds when there is
//     nothing to do.
//   - A publish that kubelet takes for failed leaves nothing, since kubelet will not unpublish it.
//   - Nothing that is not ours is unmounted, replaced or deleted: other mounts, other drivers' volumes, junk
//     in our directory.
//
// And it answers these threats:
//   - Keys on a disk or in swap: contents live on tmpfs with noswap, are written only while that very tmpfs
//     is mounted, and are overwritten at the end. Mounts are nosuid, nodev, noexec.
//   - Tokens in logs: the Token type does not print, errors never quote it, requests are never logged.
//   - A pod that writes another pod's name into its volume attributes, on a CSIDriver without
//     podInfoOnMount: the pod's UID must be the one in kubelet's target path.
//   - Other users of the node: the plugin directory and the CSI socket are root's alone.
package csi
