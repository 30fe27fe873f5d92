// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"cmp"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/signet-spiffe/signet/agent/issue"
	"github.com/signet-spiffe/signet/internal/pki"
)

// purpose tells a mount's issuance from a renewal's.
type purpose string

const (
	purposeMount   purpose = "mount"
	purposeRenewal purpose = "renewal"
)

// metrics has bounded labels only: no volume, pod or request is ever named.
type metrics struct {
	issuances *prometheus.CounterVec
	duration  *prometheus.HistogramVec
	reissues  *prometheus.CounterVec
}

func newMetrics(registerer prometheus.Registerer, standings func() []standing, t *turns) *metrics {
	m := &metrics{
		issuances: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "signet_agent_issuances_total",
			Help: "Attempts to obtain an SVID, by purpose (mount, renewal) and result (issued, denied, failed, unavailable, no_token, gone, refused, other).",
		}, []string{"purpose", "result"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "signet_agent_issuance_duration_seconds",
			Help:    "Time from making the key to holding a verified SVID, of attempts that succeeded.",
			Buckets: []float64{.005, .01, .02, .03, .05, .075, .1, .15, .25, .5, 1, 2.5, 5, 10, 30, 60},
		}, []string{"purpose"}),
		reissues: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "signet_agent_reissues_total",
			Help: "SVIDs that are replaced before their time, by what has changed (issuer, key_type, duration, authority: the issuing CA left the trust bundle).",
		}, []string{"reason"}),
	}
	for _, reason := range reasons {
		m.reissues.WithLabelValues(reason)
	}
	registerer.MustRegister(m.issuances, m.duration, m.reissues, standingCollector{standings}, turnsCollector{t})
	return m
}

// issuance counts an attempt. When one that was resumed had begun nobody knows.
func (m *metrics) issuance(p purpose, err error, took time.Duration, resumed bool) {
	m.issuances.WithLabelValues(string(p), result(err)).Inc()
	if err == nil && !resumed {
		m.duration.WithLabelValues(string(p)).Observe(took.Seconds())
	}
}

func result(err error) string {
	var broken *pki.RuleError
	if errors.As(err, &broken) {
		return "refused"
	}
	return cmp.Or(issue.Outcome(err), "other")
}

var (
	runningDesc = prometheus.NewDesc("signet_agent_issuances_running", "Attempts to obtain an SVID that are under way, by purpose.", []string{"purpose"}, nil)
	waitingDesc = prometheus.NewDesc("signet_agent_issuances_waiting", "Attempts to obtain an SVID that wait for others to end, by purpose.", []string{"purpose"}, nil)
)

// turnsCollector counts at scrape time.
type turnsCollector struct{ turns *turns }

func (c turnsCollector) Describe(ch chan<- *prometheus.Desc) { ch <- runningDesc; ch <- waitingDesc }

func (c turnsCollector) Collect(ch chan<- prometheus.Metric) {
	for _, p := range []purpose{purposeMount, purposeRenewal} {
		running, waiting := c.turns.count(p)
		ch <- prometheus.MustNewConstMetric(runningDesc, prometheus.GaugeValue, float64(running), string(p))
		ch <- prometheus.MustNewConstMetric(waitingDesc, prometheus.GaugeValue, float64(waiting), string(p))
	}
}
