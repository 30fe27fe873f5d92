// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package metricspage

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
)

const page = `# Metrics

## ` + "`other`" + `

| ` + "`not_mine` | gauge | – | x | y |" + `

## ` + "`binary`" + `

| metric | type | labels | meaning | what to do |
|---|---|---|---|---|
| ` + "`a_total` | counter | `verb`, `code` | x | y |" + `
| ` + "`b` | gauge | – | x `z` | y |" + `
| ` + "`lib_*` | various | various | x | y |" + `

## Other
`

func read(t *testing.T, content string) (Page, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "metrics.md")
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return Read(file, "binary")
}

func TestCompare(t *testing.T) {
	p, err := read(t, page)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		register []prometheus.Collector
		want     []string
	}{
		"all there": {[]prometheus.Collector{
			prometheus.NewCounterVec(prometheus.CounterOpts{Name: "a_total", Help: "says \"x\""}, []string{"code", "verb"}),
			prometheus.NewGauge(prometheus.GaugeOpts{Name: "b", Help: "x"}), prometheus.NewCounter(prometheus.CounterOpts{Name: "lib_x", Help: "x"}),
		}, nil},
		"another label, another type, one too many": {[]prometheus.Collector{
			prometheus.NewCounterVec(prometheus.CounterOpts{Name: "a_total", Help: "x"}, []string{"verb", "pod"}),
			prometheus.NewCounter(prometheus.CounterOpts{Name: "b", Help: "x"}), prometheus.NewHistogram(prometheus.HistogramOpts{Name: "c", Help: "x"}),
		}, []string{
			"not on the page, or not like this: counter a_total {pod,verb}",
			"not on the page, or not like this: counter b {}",
			"not on the page, or not like this: histogram c {}",
			"on the page, but not in the binary: counter a_total {code,verb}",
			"on the page, but not in the binary: gauge b {}",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			l := NewListing(prometheus.NewRegistry())
			l.MustRegister(tt.register...)
			all, err := l.Metrics()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, p.Compare(all)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestUnreadablePages(t *testing.T) {
	for name, content := range map[string]string{
		"no section":  "# Metrics\n",
		"a cell less": strings.Replace(page, " | x `z` | y |", " | x |", 1),
		"empty cell":  strings.Replace(page, " | x `z` | y |", " | x | |", 1),
		"a row twice": strings.Replace(page, "| `b` |", "| `a_total` | gauge | – | x | y |\n| `b` |", 1),
	} {
		if _, err := read(t, content); err == nil {
			t.Errorf("%s: want an error", name)
		}
	}
}
