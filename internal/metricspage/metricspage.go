// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Package metricspage holds docs/metrics.md to the truth: tests compare the page
// with what the binaries register, so that a metric that is added, renamed or
// relabelled without a word there fails the build.
//
// It is used by tests alone and decides nothing at run time.
package metricspage

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// Metric is one metric as the page, or a registry, has it.
type Metric struct {
	Name   string
	Type   string   // counter, gauge, histogram; "various" in rows for libraries.
	Labels []string // Sorted.
}

// String is how a Metric is compared and shown.
func (m Metric) String() string {
	return fmt.Sprintf("%s %s {%s}", m.Type, m.Name, strings.Join(m.Labels, ","))
}

// Page is the tables of one binary. A row whose name ends in "*" is for a library's
// metrics.
type Page struct {
	Metrics  []Metric
	Prefixes []string
}

// Read reads the section of the page whose heading is "## `binary`". Each of its
// table rows is | `name` | type | `label`, `label` | meaning | what to do |, with
// no cell empty.
func Read(path, binary string) (Page, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return Page{}, fmt.Errorf("read the page of metrics: %w", err)
	}
	_, section, found := strings.Cut(string(content), "\n## `"+binary+"`\n")
	if !found {
		return Page{}, fmt.Errorf("%s has no section %q", path, binary)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	var page Page
	for line := range strings.Lines(section) {
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		if err := page.add(line); err != nil {
			return Page{}, fmt.Errorf("%s, section %s: %w", path, binary, err)
		}
	}
	return page, nil
}

var quoted = regexp.MustCompile("`([^`]*)`")

func (p *Page) add(line string) error {
	cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
	if len(cells) != 5 || slices.ContainsFunc(cells, func(c string) bool { return strings.TrimSpace(c) == "" }) {
		return fmt.Errorf("row %q: want five cells: name, type, labels, meaning, what to do", line)
	}
	name := quoted.FindStringSubmatch(cells[0])[1]
	if prefix, ok := strings.CutSuffix(name, "*"); ok {
		p.Prefixes = append(p.Prefixes, prefix)
		return nil
	}
	m := Metric{Name: name, Type: strings.TrimSpace(cells[1])}
	for _, label := range quoted.FindAllStringSubmatch(cells[2], -1) {
		m.Labels = append(m.Labels, label[1])
	}
	slices.Sort(m.Labels)
	if slices.ContainsFunc(p.Metrics, func(row Metric) bool { return row.Name == m.Name }) {
		return fmt.Errorf("row %q: %s is on the page already", line, m.Name)
	}
	p.Metrics = append(p.Metrics, m)
	return nil
}

// covers says whether a row is for the library that this metric comes from.
func (p Page) covers(name string) bool {
	return slices.ContainsFunc(p.Prefixes, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
}

// Compare says what of the page is not true of the metrics, one line each. Rows
// for libraries may cover nothing: many metrics appear with their first value.
func (p Page) Compare(registered []Metric) []string {
	var wrong []string
	for _, m := range registered {
		if !p.covers(m.Name) && !slices.ContainsFunc(p.Metrics, func(row Metric) bool { return row.String() == m.String() }) {
			wrong = append(wrong, "not on the page, or not like this: "+m.String())
		}
	}
	for _, row := range p.Metrics {
		if !slices.ContainsFunc(registered, func(m Metric) bool { return row.String() == m.String() }) {
			wrong = append(wrong, "on the page, but not in the binary: "+row.String())
		}
	}
	return wrong
}

// Listing is a Registerer that also remembers what each collector describes, with
// or without a value yet.
type Listing struct {
	*prometheus.Registry
	described []Metric
}

// NewListing wraps r.
func NewListing(r *prometheus.Registry) *Listing { return &Listing{Registry: r} }

// Register implements prometheus.Registerer.
func (l *Listing) Register(c prometheus.Collector) error {
	if err := l.Registry.Register(c); err != nil {
		return err
	}
	descs := make(chan *prometheus.Desc)
	go func() { c.Describe(descs); close(descs) }()
	for desc := range descs {
		m := parse(desc)
		m.Type = typeOf(c)
		l.described = append(l.described, m)
	}
	return nil
}

// MustRegister implements prometheus.Registerer.
func (l *Listing) MustRegister(all ...prometheus.Collector) {
	for _, c := range all {
		if err := l.Register(c); err != nil {
			panic(err)
		}
	}
}

// descPattern is what prometheus.Desc prints; its fields are not exported.
var descPattern = regexp.MustCompile(`(?s)^Desc\{fqName: "([^"]*)", .*variableLabels: \{([^}]*)\}\}$`)

func parse(desc *prometheus.Desc) Metric {
	found := descPattern.FindStringSubmatch(desc.String())
	if found == nil {
		return Metric{Name: desc.String()} // Shows up in the comparison.
	}
	m := Metric{Name: found[1]}
	if found[2] != "" {
		m.Labels = strings.Split(found[2], ",")
		slices.Sort(m.Labels)
	}
	return m
}

func typeOf(c prometheus.Collector) string {
	switch c.(type) {
	case *prometheus.CounterVec:
		return "counter"
	case *prometheus.GaugeVec, prometheus.Gauge:
		return "gauge"
	case *prometheus.HistogramVec:
		return "histogram"
	}
	return ""
}

// Metrics are those that were registered here and those that the registry had
// before. Call it when every metric that is no vector has a value.
func (l *Listing) Metrics() ([]Metric, error) {
	gathered, err := Gathered(l.Registry)
	if err != nil {
		return nil, err
	}
	all := slices.Clone(l.described)
	for i, m := range all {
		if j := slices.IndexFunc(gathered, func(g Metric) bool { return g.Name == m.Name }); m.Type == "" && j >= 0 {
			all[i].Type = gathered[j].Type
		}
	}
	for _, g := range gathered {
		if !slices.ContainsFunc(all, func(m Metric) bool { return m.Name == g.Name }) {
			all = append(all, g)
		}
	}
	return all, nil
}

// Gathered are the metrics of a registry that have a value.
func Gathered(r prometheus.Gatherer) ([]Metric, error) {
	families, err := r.Gather()
	if err != nil {
		return nil, fmt.Errorf("gather metrics: %w", err)
	}
	var all []Metric
	for _, family := range families {
		m := Metric{Name: family.GetName(), Type: strings.ToLower(family.GetType().String())}
		for _, label := range family.GetMetric()[0].GetLabel() {
			m.Labels = append(m.Labels, label.GetName())
		}
		all = append(all, m)
	}
	return all, nil
}
