// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// standing is how one volume stands, as metrics see it.
type standing struct {
	phase    Phase
	late     Lateness
	notAfter time.Time // Of the SVID in use; zero if there is none.
}

// publishStanding leaves the machine's state where a scrape finds it without
// asking the entry.
func (e *entry) publishStanding() {
	s := &standing{phase: e.machine.Phase(), late: e.machine.Lateness()}
	if s.phase == Ready {
		s.notAfter = e.machine.notAfter
	}
	if old := e.standing.Load(); old == nil || *old != *s {
		e.standing.Store(s)
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
