// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package boundpods

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// How a pod was looked up.
const (
	lookupWatched = "watched"
	lookupRead    = "read"
	lookupFailed  = "failed"
)

// metrics of this package.
type metrics struct{ lookups *prometheus.CounterVec }

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{lookups: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "signet_agent_pod_lookups_total",
		Help: "Times that a mount needed its pod's user, by result (watched: the watch had shown the pod; read: one read, or the watch meanwhile; failed).",
	}, []string{"result"})}
	for _, result := range []string{lookupWatched, lookupRead, lookupFailed} {
		m.lookups.WithLabelValues(result)
	}
	if r == nil {
		return m, nil
	}
	if err := r.Register(m.lookups); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	return m, nil
}
