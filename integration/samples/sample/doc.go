// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Sample is a workload: what runs in a pod that mounts a Signet volume.
//
// Two of its commands, serve and call, are a pair of services that speak mTLS
// and show on every line who they speak to and with which certificates, so that
// rotation can be watched. They take their identity either from the Workload
// API (--source=socket) or from the files of the volume (--source=files), and
// so are examples of both for one's own service.
//
// The other commands look at a volume from inside a container that holds
// nothing but this binary: there is no shell and no coreutils in a "FROM
// scratch" image. They print JSON, one object per line, and say by their exit
// code whether what was asked for was there, so that they also serve as init
// containers and postStart hooks.
//
// Nothing here knows Signet: go-spiffe, the SPIFFE Workload API and three files
// are all it uses. No command prints a private key unless told to (cat).
package main
