// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"

	"github.com/spf13/pflag"

	"github.com/signet-spiffe/signet/agent/admin"
	"github.com/signet-spiffe/signet/internal/observe"
)

// driverPlaceholder stands for --csi-driver-name in --admin-socket-path.
const driverPlaceholder = "<csi-driver-name>"

// defaultAdminSocket is outside of everything that kubelet and pods have. In the
// manifests /run/signet is an emptyDir, which the agent's pod alone mounts.
const defaultAdminSocket = "/run/signet/" + driverPlaceholder + "/admin.sock"

func (o *options) addAdminFlags(flags *pflag.FlagSet) {
	flags.StringVar(&o.adminSocket, "admin-socket-path", defaultAdminSocket, "Unix socket for the administrator of the node (docs/admin.md); its directory is made, for the agent alone, and must not be one of kubelet's or the plugins'. Empty: no such socket")
}

func (o *options) checkAdmin() error {
	o.adminSocket = strings.ReplaceAll(o.adminSocket, driverPlaceholder, o.driverName)
	// Pods' volumes and the driver's own are below the first two.
	if err := admin.CheckPath(o.adminSocket, o.kubeletRoot, o.dataRoot, o.registrationDir); err != nil {
		return observe.Usagef("--admin-socket-path %q: %v", o.adminSocket, err)
	}
	return o.delegates.check(o.adminSocket)
}
