// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package certmanager

import (
	"cmp"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/signet-spiffe/signet/agent/issue"
)

// metrics of this package. No label holds a name from outside.
type metrics struct {
	results   *prometheus.CounterVec
	seconds   prometheus.Histogram
	waiting   prometheus.Gauge
	watches   *prometheus.CounterVec
	undeleted prometheus.Counter
}

func newMetrics(r prometheus.Registerer, synced func() bool) (*metrics, error) {
	m := &metrics{
		results: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "signet_agent_certificate_requests_total",
			Help: "CertificateRequest attempts that ended, by outcome.",
		}, []string{"outcome"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "signet_agent_certificate_request_seconds",
			Help:    "Time from asking cert-manager to an issued certificate.",
			Buckets: []float64{.01, .02, .03, .05, .1, .2, .5, 1, 2, 5, 10, 30, 60, 120, 300},
		}),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "signet_agent_certificate_requests_waiting",
			Help: "CertificateRequest attempts that wait for an answer.",
		}),
		watches: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "signet_agent_certificate_request_watches_total",
			Help: "List and watch calls for CertificateRequests, by call and result.",
		}, []string{"call", "result"}),
		undeleted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "signet_agent_certificate_requests_undeleted_total",
			Help: "CertificateRequests that could not be deleted and are left to the garbage collector.",
		}),
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.results, m.seconds, m.waiting, m.watches, m.undeleted,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "signet_agent_certificate_requests_synced",
			Help: "1 once the API server has listed this agent's CertificateRequests.",
		}, func() float64 {
			if synced() {
				return 1
			}
			return 0
		})} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}

// begin counts an attempt as waiting until the function it returns is called
// with how it ended.
func (m *metrics) begin() func(error) {
	start := time.Now()
	m.waiting.Inc()
	return func(err error) {
		m.waiting.Dec()
		m.results.WithLabelValues(cmp.Or(issue.Outcome(err), "withdrawn")).Inc()
		if err == nil {
			m.seconds.Observe(time.Since(start).Seconds())
		}
	}
}

// resume is begin for a request whose beginning is not known.
func (m *metrics) resume() func(error) {
	m.waiting.Inc()
	return func(err error) {
		m.waiting.Dec()
		m.results.WithLabelValues(cmp.Or(issue.Outcome(err), "withdrawn")).Inc()
	}
}

func (m *metrics) watchResult(call string, err error) {
	result := "ok"
	if err != nil {
		result = "error"
	}
	m.watches.WithLabelValues(call, result).Inc()
}
