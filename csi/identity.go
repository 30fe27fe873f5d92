// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"
	"log/slog"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// identity is the CSI identity service.
type identity struct {
	csipb.UnimplementedIdentityServer
	driverName string
	version    string
	ready      func() error
	log        *slog.Logger
}

// GetPluginInfo names the driver and its version.
func (i *identity) GetPluginInfo(context.Context, *csipb.GetPluginInfoRequest) (*csipb.GetPluginInfoResponse, error) {
	return &csipb.GetPluginInfoResponse{Name: i.driverName, VendorVersion: i.version}, nil
}

// GetPluginCapabilities is empty: there is no controller and no topology.
func (i *identity) GetPluginCapabilities(context.Context, *csipb.GetPluginCapabilitiesRequest) (*csipb.GetPluginCapabilitiesResponse, error) {
	return &csipb.GetPluginCapabilitiesResponse{}, nil
}

// Probe passes on whether the agent is ready.
func (i *identity) Probe(context.Context, *csipb.ProbeRequest) (*csipb.ProbeResponse, error) {
	err := i.ready()
	if err != nil {
		i.log.Debug("probed while not ready", "error", err)
	}
	return &csipb.ProbeResponse{Ready: wrapperspb.Bool(err == nil)}, nil
}
