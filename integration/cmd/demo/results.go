// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/signet-spiffe/signet/integration/install"
)

// results is what was measured.
type results struct {
	options
	clusterUp, installed, firstRequest time.Duration

	starts []*podStart

	// The client's log. failed are requests that failed; refused and admitted
	// are the stranger's.
	requests, failed, refused, admitted int
	handshakes                          []float64
	clientSerials, serverSerials        []string

	// mounts and renewals are the agents' own measurements, both nodes together.
	mounts, renewals latency
}

// latency is the count and the sum of a histogram.
type latency struct {
	count   uint64
	seconds float64
}

func (l latency) String() string {
	if l.count == 0 {
		return "none"
	}
	return fmt.Sprintf("%d, %.0f ms on average", l.count, 1000*l.seconds/float64(l.count))
}

// issuanceMetric is the agents' histogram of the time from making a key to
// holding a verified SVID.
const issuanceMetric = "signet_agent_issuance_duration_seconds"

// readMetrics asks the agents, through the API server.
func (r *results) readMetrics(ctx context.Context, in *install.Installer) error {
	pods, err := in.Kube.CoreV1().Pods(install.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=" + install.AgentName})
	if err != nil {
		return fmt.Errorf("find the agents: %w", err)
	}
	for _, pod := range pods.Items {
		text, err := in.Kube.CoreV1().Pods(pod.Namespace).ProxyGet("http", pod.Name, "9809", "metrics", nil).DoRaw(ctx)
		if err != nil {
			return fmt.Errorf("read metrics of %s: %w", pod.Name, err)
		}
		if err := r.addMetrics(text); err != nil {
			return fmt.Errorf("read metrics of %s: %w", pod.Name, err)
		}
	}
	return nil
}

func (r *results) addMetrics(text []byte) error {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		return err
	}
	family, ok := families[issuanceMetric]
	if !ok {
		return fmt.Errorf("there is no %s", issuanceMetric)
	}
	for _, m := range family.GetMetric() {
		to := &r.mounts
		if purposeOf(m) == "renewal" {
			to = &r.renewals
		}
		to.count += m.GetHistogram().GetSampleCount()
		to.seconds += m.GetHistogram().GetSampleSum()
	}
	return nil
}

func purposeOf(m *dto.Metric) string {
	for _, label := range m.GetLabel() {
		if label.GetName() == "purpose" {
			return label.GetValue()
		}
	}
	return ""
}

// print shows the summary.
func (r *results) print(s *screen) {
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 3, ' ', 0)
	row := func(what, format string, args ...any) {
		fmt.Fprintf(w, "  %s\t"+format+"\n", append([]any{what}, args...)...)
	}
	row("cluster up", "%s", short(r.clusterUp))
	row("issuer, images and Signet installed", "%s", short(r.installed))
	row("first request over mTLS", "%s after the start", short(r.firstRequest))
	for _, p := range r.starts {
		row(p.name+": pod created → SVID issued → Ready", "%s → %s", short(p.issued.Sub(p.created)), short(p.ready.Sub(p.created)))
	}
	row("issuances at mount (the agents' metric)", "%s", r.mounts)
	row("issuances for renewal", "%s", r.renewals)
	row("requests over mTLS", "%d, %d failed; median %.1f ms with its handshake", r.requests, r.failed, median(r.handshakes))
	row("renewals seen by the unbroken client", "its own %d, the server's %d", len(r.clientSerials)-1, len(r.serverSerials)-1)
	row("strangers refused", "%d of %d attempts", r.refused, r.refused+r.admitted)
	_ = w.Flush() // writes to memory
	s.title("\nSummary")
	s.print(strings.TrimRight(table.String(), "\n") + "\n")
}

func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// verdict is an error if something was seen that must not be.
func (r *results) verdict() error {
	var errs []error
	if r.failed > 0 {
		errs = append(errs, fmt.Errorf("%d of %d requests failed", r.failed, r.requests+r.failed))
	}
	if r.admitted > 0 {
		errs = append(errs, fmt.Errorf("the stranger was admitted %d times", r.admitted))
	}
	if r.refused == 0 {
		errs = append(errs, errors.New("the stranger was never refused"))
	}
	return errors.Join(errs...)
}
