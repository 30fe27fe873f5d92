// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Package delegatedidentity serves SPIRE's Delegated Identity API
// (spire.api.agent.delegatedidentity.v1): a node proxy that speaks TLS for the
// pods of its node subscribes to their SVIDs, keys included.
//
// What it owns: the answers. Which pods a set of selectors means, what a message
// holds, and when there is a new one.
//
// What it never does: it issues nothing. A pod that mounts no volume of this
// driver has no identity here, whoever asks; a delegate cannot have one made.
//
// Rules:
//   - Selectors are those that the API server knows about a pod: k8s:ns, k8s:sa,
//     k8s:pod-name and k8s:pod-uid. A pod is meant if every selector is true of
//     it. Any other selector is refused: it cannot be checked here, and leaving it
//     out would mean more pods than were asked for. So is a subscription by
//     process ID: this agent looks into no processes.
//   - The first message comes at once, be it empty; a new one comes when an SVID
//     was added, replaced or removed. Each holds everything. Its order is fixed: by
//     SPIFFE ID, then pod, then volume.
//   - Bundles are sent in full, so that a trust domain that is gone is gone from
//     the message too.
//   - JWT-SVIDs are disabled, as they are on the pods' own sockets.
//
// Threats answered. Whoever may call this holds the keys of every pod of the node.
// It is registered only if the operator names a delegate, on the administrator's
// socket, which asks the kernel who calls before a request is looked at
// (agent/admin). A selector that cannot be checked never widens an answer. Nothing
// here is logged.
package delegatedidentity
