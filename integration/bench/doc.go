// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Package bench measures Signet on a real Kubernetes on this machine (package
// cluster), beside the least that any client of cert-manager has to do, in one
// run.
//
// # What is measured
//
// The unmodified signet-agent binary, as a process, and the approver as
// deploy/manifests install it. A small CSI client plays kubelet: real kubelets
// take most of a second to start a pod, which would hide what is looked for.
//
// The floor is a bare event-driven client: the same key, CSR and
// CertificateRequest, one labelled watch, a delete; and an approver in the same
// process that approves whatever it sees. It checks nothing, stores nothing, and
// has no Events. Its requests do not carry Signet's identity annotation, so
// Signet's approver leaves them alone. Issuer, cert-manager, webhook, API server
// and namespaces are the same. Signet and floor take turns within each phase, so
// that what else the machine does meets both.
//
// # Where it runs
//
// Enter re-executes the caller in the network namespace of the cluster's node and
// in a mount namespace of its own, with a tmpfs whose mounts are shared: a node
// without kubelet. The API server is reached as pods reach it, without the
// cluster's port forwarder, by floor and agent alike. Mounts, sockets and the agent
// end with the process, whatever happens to it.
//
// In the API it is a Node object of its own, without the label that the DaemonSet
// of the agents selects; the pods are objects bound to it, which nothing runs. The
// agent's token is bound to a pod of that node, as the approver demands.
//
// # What it never does
//
// It changes nothing of what it measures: no flag of the agent but paths, names
// and, for the renewal of all volumes, the key type. It never looks inside a
// process; what it reports comes from calls that it timed, from /proc and from the
// metrics that users have.
package bench
