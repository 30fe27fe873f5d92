// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics have bounded labels: rules are constants of package evaluate.
type metrics struct {
	decisions *prometheus.CounterVec
	podReads  *prometheus.CounterVec
	age       prometheus.Histogram
}

func newMetrics(registry prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "signet_approver_decisions_total",
			Help: "CertificateRequests by decision: approved, denied (with the rule that failed), or refused when the approver lacks the right to deny.",
		}, []string{"decision", "rule"}),
		podReads: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "signet_approver_pod_reads_total",
			Help: "Pods read from the API server by result: found, missing, or error (the request is tried again).",
		}, []string{"result"}),
		age: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "signet_approver_decision_age_seconds",
			Help:    "Age of a CertificateRequest when its decision was written. Creation times have a resolution of one second.",
			Buckets: []float64{1, 2, 3, 5, 10, 20, 30, 60, 120, 300},
		}),
	}
	for _, c := range []prometheus.Collector{m.decisions, m.podReads, m.age} {
		if err := registry.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}
