// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/signet-spiffe/signet/agent/admin"
	"github.com/signet-spiffe/signet/agent/issue/certmanager"
	"github.com/signet-spiffe/signet/agent/workload"
	"github.com/signet-spiffe/signet/internal/observe"
)

// started is when this process was.
var started = time.Now()

// administration is the admin socket, while there is one.
type administration struct {
	server *admin.Server // nil if there is no socket.
	up     prometheus.Gauge
	log    *slog.Logger
}

// openAdmin opens the admin socket, with further services on it. Without it the agent
// works all the same: pods must not suffer for want of an administrator's door.
func openAdmin(o *options, registry *workload.Registry, issuer *certmanager.Issuer, level *observe.Level, metrics prometheus.Registerer, log *slog.Logger, further ...admin.Service) *administration {
	a := &administration{log: log, up: prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "signet_agent_admin_socket_up", Help: "1 while the admin socket is served; 0 without one.",
	})}
	metrics.MustRegister(a.up)
	if o.adminSocket == "" {
		return a
	}
	server, err := admin.NewServer(admin.Options{
		Path:      o.adminSocket,
		About:     admin.About{Version: version, Node: o.nodeID, Driver: o.driverName, TrustDomain: o.trustDomain.Name(), Started: started},
		Workloads: registry, Level: level, Heard: issuer.Heard, Services: further, EveryUser: o.delegates.strangers(), Log: log,
	})
	if err != nil {
		a.complain(err)
		return a
	}
	a.server = server
	return a
}

func (a *administration) complain(err error) {
	a.log.Error("there is no admin socket; the agent works without it (--admin-socket-path, empty for none)", "error", err)
}

// run serves until ctx ends.
func (a *administration) run(ctx context.Context) {
	if a.server == nil {
		return
	}
	a.up.Set(1)
	defer a.up.Set(0)
	if err := a.server.Run(ctx); err != nil {
		a.complain(err)
	}
}
