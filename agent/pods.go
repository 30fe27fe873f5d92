// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	coreclient "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/signet-spiffe/signet/agent/boundpods"
	"github.com/signet-spiffe/signet/agent/workload"
)

// openPods makes what watches this node's pods; nil without --watch-pods. It
// reaches for no server yet.
func openPods(o *options, metrics prometheus.Registerer, log *slog.Logger) (*boundpods.Pods, error) {
	if !o.watchPods {
		return nil, nil
	}
	client, err := coreclient.NewForConfig(o.restConfig)
	if err != nil {
		return nil, fmt.Errorf("make client for pods: %w", err)
	}
	return boundpods.New(boundpods.Options{Client: client, Node: o.nodeID, Log: log, Registerer: metrics})
}

// ownerOf finds the users who own files; nil where all files are root's. A volume
// without files needs to know none.
func ownerOf(pods *boundpods.Pods) func(context.Context, workload.Volume) (*int64, error) {
	if pods == nil {
		return nil
	}
	return func(ctx context.Context, v workload.Volume) (*int64, error) {
		if v.Attributes.Delivery.NoFiles {
			return nil, nil
		}
		return pods.SharedUser(ctx, v.Pod)
	}
}
