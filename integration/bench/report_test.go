// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestVerdictsAtTheEdge(t *testing.T) {
	for name, test := range map[string]struct{ got, want Verdict }{
		"15 % slower":            {notSlower(115*time.Millisecond, 100*time.Millisecond), Reached},
		"more than 15 % slower":  {notSlower(116*time.Millisecond, 100*time.Millisecond), Missed},
		"faster":                 {notSlower(50*time.Millisecond, 100*time.Millisecond), Reached},
		"no floor":               {notSlower(time.Millisecond, 0), Missed},
		"nothing measured":       {notSlower(0, time.Millisecond), Missed},
		"15 % fewer":             {notFewer(85, 100), Reached},
		"more than 15 % fewer":   {notFewer(84.9, 100), Missed},
		"more":                   {notFewer(120, 100), Reached},
		"no floor for the rate":  {notFewer(10, 0), Missed},
		"exactly one":            {verdict(exactly(1, 1)), Reached},
		"one in a thousand more": {verdict(exactly(1.001, 1)), Reached},
		"one in a hundred more":  {verdict(exactly(1.01, 1)), Missed},
		"one in a hundred fewer": {verdict(exactly(0.99, 1)), Missed},
	} {
		if test.got != test.want {
			t.Errorf("%s: %s, want %s", name, test.got, test.want)
		}
	}
}

// good is a run in which everything was reached.
func good() *Results {
	rounds := Pair[Rounds]{Rounds{at(95), at(90)}, Rounds{at(100), at(98)}}
	return &Results{
		Began: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC), Took: 600 * time.Second, Sizes: Full(), Approvers: 5,
		Machine:   Machine{CPU: "Some CPU", CPUs: 2, MemoryBytes: 24 << 30, Kernel: "6.1"},
		Versions:  Versions{Kubernetes: "1.36.3", CertManager: "v1.21.2", Go: "go1.26", Signet: "v0.1.0"},
		Single:    Pair[Latencies]{upTo(110), upTo(100)},
		Bursts:    []Burst{{Size: 110, Times: 2, Rounds: rounds}},
		Sustained: rounds,
		CPU:       Pair[census]{census{"etcd": 2 * time.Millisecond, "signet-agent": 3 * time.Millisecond}, census{"etcd": 2 * time.Millisecond, "kubelet": time.Microsecond}},
		Requests: Requests{
			Issuances: 100, ApproverWrites: 1, ApproverPodReads: 1, AgentCPU: 2 * time.Millisecond, ApproverCPU: time.Millisecond,
			Agent: []Count{{"create certificaterequests", 1}, {"create events", 0.5}, {"delete certificaterequests", 1}},
		},
		Idle:     []Idle{{Volumes: 1350, CPU: 0.1, Memory: Memory{RSS: 60 << 20}, VolumeBytes: 30 << 20, Busy: 12}},
		Restarts: []Restart{{Volumes: 110, All: 300 * time.Millisecond, Median: 200 * time.Millisecond}},
		WorkloadAPI: WorkloadAPI{
			Fetches: Latencies{800 * time.Microsecond}, Attacked: Latencies{2 * time.Millisecond}, Streams: 2000, StreamBytes: 40_000,
			Pushes: []Push{{Change: 200 * time.Millisecond, Spread: 60 * time.Millisecond}},
		},
		Renewals: []Renewal{{Volumes: 1350, KeyType: "P-256", Wall: 15 * time.Second}},
	}
}

// manyFast are fetches of which one more is the 99th percentile.
func manyFast() Latencies {
	var l Latencies
	for range 50 {
		l = append(l, time.Millisecond/2)
	}
	return l
}

func TestTableSaysWhatWasMissed(t *testing.T) {
	if out := missed(good().Rows()); len(out) != 0 {
		t.Errorf("missed in a good run: %q", out)
	}
	for want, spoil := range map[string]func(*Results){
		"publish, one at a time: p50":                                             func(r *Results) { r.Single.Signet = upTo(200) },
		"110 at once: per second":                                                 func(r *Results) { r.Bursts[0].Rounds.Signet = Rounds{at(50)} },
		"110 at once: failed":                                                     func(r *Results) { r.Bursts[0].Rounds.Signet[0].Failed = 1 },
		"sustained, 16 at a time: per second":                                     func(r *Results) { r.Sustained.Signet = Rounds{at(50)} },
		"per issuance: agent, create CertificateRequest":                          func(r *Results) { r.Requests.Agent[0].Each = 2 },
		"per issuance: agent, delete CertificateRequest":                          func(r *Results) { r.Requests.Agent[2].Each = 0 },
		"per issuance: approver, status write":                                    func(r *Results) { r.Requests.ApproverWrites = 2 },
		"per issuance: approver, pod read":                                        func(r *Results) { r.Requests.ApproverPodReads = 1.5 },
		"1350 volumes, idle: CPU":                                                 func(r *Results) { r.Idle[0].CPU = 0.5 },
		"1350 volumes, idle: memory (RSS)":                                        func(r *Results) { r.Idle[0].RSS = 80 << 20 },
		"kill -9 under 110 volumes: start to the last socket's answer":            func(r *Results) { r.Restarts[0].All = time.Second },
		"kill -9 under 110 volumes: sockets with another SVID":                    func(r *Results) { r.Restarts[0].Changed = 1 },
		"kill -9 under 110 volumes: new issuances":                                func(r *Results) { r.Restarts[0].Issuances = 1 },
		"Workload API, fetch on a new connection: p50":                            func(r *Results) { r.WorkloadAPI.Fetches = append(make(Latencies, 0), 900*time.Microsecond) },
		"Workload API, fetch on a new connection: p99":                            func(r *Results) { r.WorkloadAPI.Fetches = append(manyFast(), 3*time.Millisecond) },
		"Workload API, 2000 streams: memory (RSS) of each, with its connection":   func(r *Results) { r.WorkloadAPI.StreamBytes = 55_000 },
		"Workload API, 2000 streams: a change, from the first stream to the last": func(r *Results) { r.WorkloadAPI.Pushes[0].Spread = 100 * time.Millisecond },
		"renewal of 1350 volumes at once, to P-256: per second":                   func(r *Results) { r.Renewals[0].Wall = time.Minute },
		"renewal of 1350 volumes at once, to P-256: failed, expired, left out":    func(r *Results) { r.Renewals[0].Expired = 1 },
	} {
		r := good()
		r.Bursts[0].Rounds.Signet = append(Rounds(nil), r.Bursts[0].Rounds.Signet...)
		spoil(r)
		if diff := cmp.Diff([]string{want}, missed(r.Rows())); diff != "" {
			t.Error(diff)
		}
		if !strings.Contains(r.Markdown(), "Missed: "+want) {
			t.Errorf("the document hides that it missed %q", want)
		}
	}
}

func TestTable(t *testing.T) {
	got := Table([]Row{
		{What: "a | b", Signet: "1 ms"},
		Row{What: "c", Signet: "2 ms", Floor: "1 ms", Ratio: "2.00"}.against("≤ 1.15 × floor", Missed),
	})
	const want = `| measured | Signet | floor | Signet / floor | target | |
|---|--:|--:|--:|---|---|
| a \| b | 1 ms |  |  |  |  |
| c | 2 ms | 1 ms | 2.00 | ≤ 1.15 × floor | missed |
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestDocument(t *testing.T) {
	text := good().Markdown()
	for _, want := range []string{
		"2030-01-02, in 10m0s", "Some CPU, 2 cores, 24 GiB, Linux 6.1", "Kubernetes 1.36.3, cert-manager v1.21.2, go1.26, Signet v0.1.0",
		"Every target was reached.",
		"| publish, one at a time: p50 | 55.0 ms | 50.0 ms | 1.10 | ≤ 1.15 × floor | reached |",
		"| 110 at once: per second | 90.0/s | 98.0/s | 0.92 | ≥ 0.85 × floor | reached |",
		"| per issuance: agent, create events | 0.50 |  |  |  |  |",
		"| 1350 volumes, idle: CPU | 0.10 % of a core |  |  | < 0.5 % | reached |",
		"| 1350 volumes, idle: in the volumes (tmpfs) | 30.0 MiB |  |  |  |  |",
		"| renewal of 1350 volumes at once, to P-256: per second | 90.0/s | 98.0/s (sustained) | 0.92 | ≥ 0.85 × floor | reached |",
		"| signet-agent | 3.0 ms | 0.0 ms |\n| all | 5.0 ms | 2.0 ms |\n",
		"| 110 at once | 90.0 to 95.0/s | 98.0 to 100.0/s |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in the document", want)
		}
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if len(host) > 3 && strings.Contains(text, host) {
		t.Error("the document names the machine")
	}
}

// A line is BenchmarkName, a count, and pairs of value and unit.
var benchmarkLine = regexp.MustCompile(`^Benchmark[A-Z][A-Za-z0-9/=.]* 1( [0-9.]+ [A-Za-z/%-]+)+$`)

func TestGoBenchmarks(t *testing.T) {
	text := good().GoBenchmarks()
	benchmarks := 0
	for line := range strings.Lines(strings.TrimSpace(text)) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "Benchmark") {
			benchmarks++
			if !benchmarkLine.MatchString(line) {
				t.Errorf("not a line of Go benchmarks: %q", line)
			}
		}
	}
	// Ten parts and two rounds twice, each for both; idle, restart, renewal; of the Workload API fetches, attacked, streams, a push.
	if want := 2*(10+2+2) + 3 + 4; benchmarks != want {
		t.Errorf("%d lines, want %d:\n%s", benchmarks, want, text)
	}
	for _, want := range []string{
		"BenchmarkPublishAtOnce/n=110/floor 1 100000000 ns/op 100.00 issuances/s\n",
		"BenchmarkIdle/volumes=1350 1 0.100 cpu-% 62914560 RSS-bytes\n",
		"BenchmarkRenewAll/volumes=1350/key=P256 1 15000000000 ns/op 90.00 issuances/s\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
}
