// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Package boundpods knows the pods that are bound to this node, where the operator
// gave the agent the right to read pods (--watch-pods, off by default).
//
// It owns one watch, narrowed to the node by spec.nodeName, and a cache that holds
// of each pod no more than its UID and the user that its containers share. A pod
// that kubelet asks for before the watch has shown it is read once.
//
// The user is what kubelet itself takes for the files of projected service account
// tokens (FsUserFrom in k8s.io/kubernetes/pkg/volume/util): the runAsUser of every
// container and init container, a container's own before the pod's; if one has
// none, or two differ, there is no such user. Ephemeral containers do not count:
// they come when the pod runs and its files have long been there.
//
// What it never does: decide an identity. Who a pod is comes from kubelet; what is
// read here is used only for a pod of that very UID, and only to own files.
//
// Threats it answers. The right to read pods cannot be narrowed to a node by RBAC:
// a stolen agent that has it can read every pod's spec of the cluster. So nothing
// is listed, watched or read unless the operator asked for it, and nothing of a
// spec beside the user is kept, logged or shown.
package boundpods
