// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Command signet-agent gives every pod on its node a SPIFFE identity.
//
// It runs as a DaemonSet. Kubelet asks it, over CSI, to publish a volume for a
// pod; the agent makes a key in memory, has cert-manager sign it, verifies what
// came back, and only then lets kubelet start the pod. The pod finds its SVID as
// files and on a Workload API socket in that volume, and the agent renews it for
// as long as the volume is there.
//
// This package joins the parts and does nothing else:
//
//   - csi talks to kubelet and owns the volumes (tmpfs, files, sockets);
//   - agent/workload is the lifecycle of each volume;
//   - agent/issue/certmanager obtains certificates;
//   - agent/trust knows which authorities to trust;
//   - agent/boundpods watches the node's pods, if the operator lets it;
//   - agent/podevents tells pods' owners what becomes of their SVIDs;
//   - agent/admin answers the node's administrator, and agent/delegatedidentity the
//     node proxies that the operator names, on the same socket;
//   - workloadapi serves the SPIFFE Workload API.
//
// None of them knows the others; the adapters here translate (volumes.go, from
// the lifecycle to storage and streams; workloads.go, from kubelet's calls to the
// lifecycle).
//
// Its subcommands (commands.go) are other programs in the same binary: agent/cli asks
// Workload API and admin socket, agent/dev gives identities on a laptop.
//
// Threats answered here. What is read back after a restart is the agent's own
// state, and the attempts that were under way, on tmpfs (state.go, attempt.go), but it
// is parsed as if a stranger wrote it. Flags are validated
// before anything is opened: a bad one is one line and exit code 2.
package main
