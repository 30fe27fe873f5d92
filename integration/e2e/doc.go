// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Package e2e tests Signet as a user has it: installed by its manifests on a
// real Kubernetes with real kubelets, containerd and cert-manager (package
// cluster), two nodes, short-lived SVIDs.
//
// One cluster serves the whole run. Top-level tests run one after the other,
// for some of them restart or re-install Signet; what they consist of runs in
// parallel, each part in a namespace of its own. Observations are made where
// users make them: inside containers (the sample's `ls`, `cat`, `fetch`,
// `dial-raw`), in conditions and Events, in a node's mount table. The driver's
// CSI socket and a pod's Workload API socket are dialled from the node too,
// for what no pod can be made to do.
//
// A run begins with the soak: two pods whose readers never stop, whatever the tests
// do, until TestSoak looks at what they saw. Two more drivers live beside the
// standard one: "second", whose agents die at failpoints (failpoints_test.go), and
// "lab", whose issuer is the test itself (lab_test.go). A keeper (keeper_test.go)
// reads a volume's files at every swap and holds a stream, from the node.
//
// Nothing sleeps: tests wait on watches, on log streams and on the kernel's
// notice of changed mounts. A test that fails prints the pod it waited for, its
// Events and the ends of the logs; when the run has failed, everything else is
// in the folder that the run names at its end.
//
// These tests never look inside a process, and they never reach around the API
// server to make something come true that a user could not.
package e2e
