// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Package cluster brings up real Kubernetes clusters on one Linux machine, as
// root, without Docker and without a container registry: etcd, the control
// plane, kubelet and containerd and kube-proxy on one or more nodes, and
// cert-manager with its webhook. Tests use it as a library, people by
// `cluster up`.
//
// # What runs
//
// Every binary is built from Go modules that are pinned below
// integration/tools, into a cache that is keyed by what they are built from
// (binaries.go). Only runc, the network plugins and iptables come from the
// distribution. Images are made from static binaries (image.go).
//
// # Who owns what
//
//	parent      the test binary or the command; holds one end of a pipe, the lifeline
//	janitor     in the host's namespaces, in a session of its own; holds the other
//	supervisor  PID 1 of new PID, mount, network, IPC and UTS namespaces: the control plane
//	node-N      PID 1 of namespaces below those: containerd, kubelet, kube-proxy, containers
//
// All four are the same binary (reexec.go). When the lifeline ends, because
// the parent has said so, has ended or was killed, the janitor kills the
// supervisor; with it the kernel kills everything in its PID namespace and
// drops the mounts and interfaces of the others. The janitor then removes the
// cgroups and the state directory. If the janitor is killed, the supervisor
// does all that; if both are, the next up, down or status finds what is left
// by its lock and removes it.
//
// # What it never does
//
// It never changes the host outside two places, both named after the cluster:
// one directory in /run and one cgroup per hierarchy. A node sees the host's
// directories read-only and has /run and /var for itself, so that a kubelet
// lives in /var/lib/kubelet as everywhere, on each node, and the manifests of a
// release work unchanged. No interface appears on the host: the API server is
// reached through a listener on the loopback address. Clusters side by side
// share nothing but the CPU. Private keys live on a tmpfs of the cluster, but
// for the administrator's, which is in the state directory, for root only.
//
// # What it does not have
//
// No DNS server and no way out to any other network: nothing in a test may
// depend on either.
package cluster
