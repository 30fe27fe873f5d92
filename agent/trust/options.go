// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"crypto/x509"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Option configures a Source.
type Option func(*options)

type options struct{ metrics *Metrics }

func collect(opts []Option) options {
	var o options
	for _, set := range opts {
		set(&o)
	}
	return o
}

// WithMetrics makes a Source count. One Metrics serves any number of sources.
func WithMetrics(m *Metrics) Option { return func(o *options) { o.metrics = m } }

// Metrics count what happens to bundles. A nil *Metrics counts nothing.
type Metrics struct {
	authorities *prometheus.GaugeVec
	expiry      *prometheus.GaugeVec
	changes     *prometheus.CounterVec
	refusals    *prometheus.CounterVec
}

// NewMetrics makes and registers the metrics of this package.
func NewMetrics(r prometheus.Registerer) (*Metrics, error) {
	label := []string{"trust_domain"}
	m := &Metrics{
		authorities: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "signet_agent_bundle_authorities",
			Help: "CA certificates in the present trust bundle.",
		}, label),
		expiry: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "signet_agent_bundle_latest_expiry_timestamp_seconds",
			Help: "When the last CA certificate of the present trust bundle expires.",
		}, label),
		changes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "signet_agent_bundle_changes_total",
			Help: "Changes of the trust bundle.",
		}, label),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "signet_agent_bundle_refusals_total",
			Help: "Times that bundle content was refused and the present bundle kept.",
		}, label),
	}
	for _, c := range []prometheus.Collector{m.authorities, m.expiry, m.changes, m.refusals} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register bundle metrics: %w", err)
		}
	}
	return m, nil
}

func (m *Metrics) changed(domain spiffeid.TrustDomain, roots []*x509.Certificate) {
	if m == nil {
		return
	}
	var latest int64
	for _, c := range roots {
		latest = max(latest, c.NotAfter.Unix())
	}
	m.changes.WithLabelValues(domain.Name()).Inc()
	m.authorities.WithLabelValues(domain.Name()).Set(float64(len(roots)))
	m.expiry.WithLabelValues(domain.Name()).Set(float64(latest))
}

func (m *Metrics) refused(domain spiffeid.TrustDomain) {
	if m != nil {
		m.refusals.WithLabelValues(domain.Name()).Inc()
	}
}
