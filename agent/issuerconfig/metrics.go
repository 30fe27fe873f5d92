// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package issuerconfig

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of this package, without labels.
type metrics struct {
	refusals, changes prometheus.Counter
	valid             prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		refusals: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "signet_agent_runtime_issuer_refusals_total",
			Help: "Times that the ConfigMap with the issuer was not valid and the issuer stayed as it was.",
		}),
		changes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "signet_agent_runtime_issuer_changes_total",
			Help: "Times that the issuer became another one while the agent was running.",
		}),
		valid: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "signet_agent_runtime_issuer_valid",
			Help: "0 while the ConfigMap with the issuer is not valid (or was not read yet), else 1.",
		}),
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.refusals, m.changes, m.valid} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}
