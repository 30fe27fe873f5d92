// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const agentText = `# TYPE signet_agent_api_requests_total counter
signet_agent_api_requests_total{code="201",resource="certificaterequests",verb="create"} 12
signet_agent_api_requests_total{code="500",resource="certificaterequests",verb="create"} 1
signet_agent_api_requests_total{code="200",resource="certificaterequests",verb="delete"} 12
signet_agent_api_requests_total{code="201",resource="events",verb="create"} 12
# TYPE signet_agent_issuances_total counter
signet_agent_issuances_total{purpose="mount",result="issued"} 10
signet_agent_issuances_total{purpose="renewal",result="issued"} 2
signet_agent_issuances_total{purpose="mount",result="unavailable"} 1
# TYPE signet_agent_issuances_running gauge
signet_agent_issuances_running{purpose="mount"} 0
# TYPE signet_agent_issuance_duration_seconds histogram
signet_agent_issuance_duration_seconds_bucket{purpose="mount",le="+Inf"} 10
signet_agent_issuance_duration_seconds_sum{purpose="mount"} 2.5
signet_agent_issuance_duration_seconds_count{purpose="mount"} 10
# TYPE process_cpu_seconds_total counter
process_cpu_seconds_total 3
`

func parsed(t *testing.T, text string) Metrics {
	t.Helper()
	m, err := ParseMetrics([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestSumsOfMetrics(t *testing.T) {
	m := parsed(t, agentText)
	for _, test := range []struct {
		name   string
		labels []string
		want   float64
	}{
		{agentRequests, nil, 37},
		{agentRequests, []string{"verb=create", "resource=certificaterequests"}, 13},
		{agentRequests, []string{"verb=create", "code=201"}, 24},
		{agentRequests, []string{"verb=watch"}, 0},
		{"signet_agent_issuance_duration_seconds_sum", nil, 2.5},
		{"signet_agent_issuance_duration_seconds_count", []string{"purpose=mount"}, 10},
		{"signet_agent_none_total", nil, 0},
	} {
		if got := m.Sum(test.name, test.labels...); got != test.want {
			t.Errorf("%s %q: %v, want %v", test.name, test.labels, got, test.want)
		}
	}
	want := map[string]float64{"create certificaterequests": 13, "delete certificaterequests": 12, "create events": 12}
	if diff := cmp.Diff(want, m.By(agentRequests, "verb", "resource")); diff != "" {
		t.Error(diff)
	}
	if got := failures(m); got != 1 {
		t.Errorf("%d failures, want 1", got)
	}
	m.Join(parsed(t, agentText))
	if got := m.Sum("process_cpu_seconds_total"); got != 6 {
		t.Errorf("both replicas together: %v, want 6", got)
	}
	if _, err := ParseMetrics([]byte("not metrics at all {")); err == nil {
		t.Error("no error for what is not metrics")
	}
}

func TestAtRest(t *testing.T) {
	if !atRest(parsed(t, agentText)) {
		t.Error("everything is done, and yet not at rest")
	}
	for name, more := range map[string]string{
		"a request to delete": "# TYPE signet_agent_api_requests_total counter\nsignet_agent_api_requests_total{code=\"201\",resource=\"certificaterequests\",verb=\"create\"} 1\n",
		"an issuance":         "# TYPE signet_agent_issuances_running gauge\nsignet_agent_issuances_running{purpose=\"renewal\"} 1\n",
		"one that waits":      "# TYPE signet_agent_issuances_waiting gauge\nsignet_agent_issuances_waiting{purpose=\"mount\"} 1\n",
	} {
		m := parsed(t, agentText)
		m.Join(parsed(t, more))
		if atRest(m) {
			t.Errorf("at rest with %s", name)
		}
	}
}

func TestRequestsBetween(t *testing.T) {
	const approver = `# TYPE rest_client_requests_total counter
rest_client_requests_total{code="200",host="h",method="PATCH"} 20
rest_client_requests_total{code="200",host="h",method="PUT"} 99
# TYPE signet_approver_pod_reads_total counter
signet_approver_pod_reads_total{result="found"} 9
signet_approver_pod_reads_total{result="missing"} 1
# TYPE process_cpu_seconds_total counter
process_cpu_seconds_total 1
`
	before := counts{agent: Metrics{}, approver: Metrics{}}
	after := counts{agent: parsed(t, agentText), approver: parsed(t, approver)}
	got := requestsBetween(before, after)
	want := Requests{
		Issuances:      12,
		Agent:          []Count{{"create certificaterequests", 13. / 12}, {"create events", 1}, {"delete certificaterequests", 1}},
		ApproverWrites: 20. / 12, ApproverPodReads: 10. / 12,
		AgentCPU: 250 * time.Millisecond, ApproverCPU: time.Second / 12,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(Requests{}, requestsBetween(after, after)); diff != "" {
		t.Errorf("nothing was issued: %s", diff)
	}
}

func TestRestartIsJudgedByWhatTheSocketsServed(t *testing.T) {
	began := time.Now()
	all := []served{
		{"a", "01", began.Add(30 * time.Millisecond)},
		{"b", "02", began.Add(10 * time.Millisecond)},
		{"c", "99", began.Add(20 * time.Millisecond)},
	}
	got := restartOf(began, all, map[string]string{"a": "01", "b": "02", "c": "03"}, parsed(t, agentText))
	want := Restart{Volumes: 3, All: 30 * time.Millisecond, Median: 20 * time.Millisecond, Changed: 1, Issuances: 13 + 13}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
