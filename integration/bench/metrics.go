// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// Metrics are the counters and gauges of a process at one moment, by name.
type Metrics map[string][]sample

type sample struct {
	labels map[string]string
	value  float64
}

// ParseMetrics reads Prometheus' text format. Of histograms it keeps the count, as
// NAME_count, and the sum, as NAME_sum.
func ParseMetrics(text []byte) (Metrics, error) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("parse metrics: %w", err)
	}
	m := Metrics{}
	for name, family := range families {
		for _, metric := range family.GetMetric() {
			m.add(name, metric)
		}
	}
	return m, nil
}

func (m Metrics) add(name string, metric *dto.Metric) {
	labels := map[string]string{}
	for _, pair := range metric.GetLabel() {
		labels[pair.GetName()] = pair.GetValue()
	}
	put := func(name string, value float64) { m[name] = append(m[name], sample{labels, value}) }
	switch {
	case metric.GetCounter() != nil:
		put(name, metric.GetCounter().GetValue())
	case metric.GetGauge() != nil:
		put(name, metric.GetGauge().GetValue())
	case metric.GetUntyped() != nil:
		put(name, metric.GetUntyped().GetValue())
	case metric.GetHistogram() != nil:
		put(name+"_count", float64(metric.GetHistogram().GetSampleCount()))
		put(name+"_sum", metric.GetHistogram().GetSampleSum())
	}
}

// Sum adds up the samples that have all of the labels, given as "name=value". One
// that does not exist is zero: counters with labels appear when they first count.
func (m Metrics) Sum(name string, labels ...string) float64 {
	var sum float64
	for _, s := range m[name] {
		if s.has(labels) {
			sum += s.value
		}
	}
	return sum
}

func (s sample) has(labels []string) bool {
	for _, label := range labels {
		name, value, _ := strings.Cut(label, "=")
		if s.labels[name] != value {
			return false
		}
	}
	return true
}

// By adds up the samples of each combination of the given labels, which are joined
// by spaces.
func (m Metrics) By(name string, labels ...string) map[string]float64 {
	sums := map[string]float64{}
	for _, s := range m[name] {
		var values []string
		for _, label := range labels {
			values = append(values, s.labels[label])
		}
		sums[strings.Join(values, " ")] += s.value
	}
	return sums
}

// Join appends another process's samples, so that sums are over both.
func (m Metrics) Join(other Metrics) {
	for name, samples := range other {
		m[name] = append(m[name], samples...)
	}
}

// Count is how often something happened for each of a number of issuances.
type Count struct {
	What string
	Each float64
}

// perIssuance says how much each count has grown, divided by the number of
// issuances, sorted by name. What has not grown is left out.
func perIssuance(before, after map[string]float64, issuances int) []Count {
	var counts []Count
	for _, what := range slices.Sorted(maps.Keys(after)) {
		if grown := after[what] - before[what]; grown > 0 && issuances > 0 {
			counts = append(counts, Count{what, grown / float64(issuances)})
		}
	}
	return counts
}

// each finds a count by its name; zero if it is not there.
func each(counts []Count, what string) float64 {
	for _, c := range counts {
		if c.What == what {
			return c.Each
		}
	}
	return 0
}
