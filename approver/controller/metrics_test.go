// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"path/filepath"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/signet-spiffe/signet/internal/metricspage"
)

// docs/metrics.md has exactly the approver's own metrics, and a row for every
// library whose metrics the process shows.
func TestMetricsPageIsTrue(t *testing.T) {
	page, err := metricspage.Read(filepath.Join("..", "..", "docs", "metrics.md"), "signet-approver")
	if err != nil {
		t.Fatal(err)
	}
	listing := metricspage.NewListing(prometheus.NewRegistry())
	if _, err := newMetrics(listing); err != nil {
		t.Fatal(err)
	}
	own, err := listing.Metrics()
	if err != nil {
		t.Fatal(err)
	}
	libraries, err := metricspage.Gathered(ctrlmetrics.Registry)
	if err != nil {
		t.Fatal(err)
	}
	if len(own) == 0 || len(libraries) == 0 {
		t.Fatalf("%d metrics of the approver and %d of libraries: the test proves nothing", len(own), len(libraries))
	}
	for _, wrong := range page.Compare(append(own, libraries...)) {
		t.Error(wrong)
	}
}
