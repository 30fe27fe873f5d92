// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"crypto/x509"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/signet-spiffe/signet/internal/pki"
)

// standing is how one volume stands, as metrics and the administrator see it. It
// holds no key. It is comparable.
type standing struct {
	phase    Phase
	late     Lateness
	notAfter time.Time // Of the SVID in use; zero if there is none.

	subject  *subject
	next     time.Time
	inFlight bool
	failures int
	trouble  *trouble
	// Of the SVID in use; zero if there is none.
	leaf    *x509.Certificate
	issuer  string
	keyType pki.KeyType
}

// publishStanding leaves the machine's state where a scrape finds it without
// asking the entry.
func (e *entry) publishStanding() {
	m := &e.machine
	s := &standing{phase: m.phase, late: m.late, subject: e.subject, next: m.renew, inFlight: m.inFlight, failures: m.failures, trouble: e.trouble}
	if s.phase == Ready {
		s.notAfter = m.notAfter
	}
	if s.phase == Ready && e.current != nil {
		s.leaf, s.issuer, s.keyType = e.current.Chain[0], e.current.Basis.Issuer, e.current.Basis.KeyType
	}
	if old := e.standing.Load(); old == nil || *old != *s {
		e.standing.Store(s)
		e.registry.watchers.changed(e.name)
	}
}

func (r *Registry) standings() []standing {
	entries := r.all()
	all := make([]standing, 0, len(entries))
	for _, e := range entries {
		if s := e.standing.Load(); s != nil {
			all = append(all, *s)
		}
	}
	return all
}

var (
	volumesDesc = prometheus.NewDesc("signet_agent_volumes",
		"Volumes on this node by phase (pending: no SVID yet; ready: SVID stored).", []string{"phase"}, nil)
	overdueDesc = prometheus.NewDesc("signet_agent_renewals_overdue",
		"Volumes whose SVID is past five sixths of its life (or half of the time after a later planned renewal) without one, expired ones included.", nil, nil)
	expiredDesc = prometheus.NewDesc("signet_agent_svids_expired",
		"Volumes whose SVID has expired.", nil, nil)
	earliestDesc = prometheus.NewDesc("signet_agent_svid_earliest_expiry_timestamp_seconds",
		"When the first of this node's SVIDs expires, as Unix time; absent while there is no SVID. Minus time() it is the time that is left.", nil, nil)
)

// standingCollector counts at scrape time: an idle volume costs nothing between
// scrapes.
type standingCollector struct{ standings func() []standing }

// Describe implements prometheus.Collector.
func (c standingCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{volumesDesc, overdueDesc, expiredDesc, earliestDesc} {
		ch <- desc
	}
}

// Collect implements prometheus.Collector.
func (c standingCollector) Collect(ch chan<- prometheus.Metric) {
	phases := map[Phase]int{Pending: 0, Ready: 0}
	var overdue, expired int
	var earliest time.Time
	for _, s := range c.standings() {
		if s.phase != Absent {
			phases[s.phase]++
		}
		if s.late >= Overdue {
			overdue++
		}
		if s.late >= Expired {
			expired++
		}
		if !s.notAfter.IsZero() && (earliest.IsZero() || s.notAfter.Before(earliest)) {
			earliest = s.notAfter
		}
	}
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	for phase, n := range phases {
		gauge(volumesDesc, float64(n), phase.String())
	}
	gauge(overdueDesc, float64(overdue))
	gauge(expiredDesc, float64(expired))
	if !earliest.IsZero() {
		gauge(earliestDesc, float64(earliest.Unix()))
	}
}
