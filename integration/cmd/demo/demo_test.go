// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// plainShow is a show without a cluster and without a terminal.
func plainShow() (*show, *bytes.Buffer) {
	var out bytes.Buffer
	o := options{life: time.Minute, rotations: 1}
	return &show{options: o, screen: &screen{began: time.Now(), out: &out}, results: &results{options: o}}, &out
}

func request(own, peer string) line {
	return line{Event: "request", OwnID: "spiffe://td/client", OwnSerial: own, PeerID: "spiffe://td/server", PeerSerial: peer}
}

func TestClientIsWatchedUntilBothSidesHaveBeenRenewed(t *testing.T) {
	w, out := plainShow()
	for i, step := range []struct {
		line line
		done bool
	}{
		{request("aaaa", "1111"), false},
		{request("aaaa", "1111"), false},
		{request("bbbb", "1111"), false},
		{line{Event: "error", Error: "connection refused"}, false},
		{request("bbbb", "2222"), true},
	} {
		if got := w.onClient(step.line); got != step.done {
			t.Errorf("after line %d the show is over: %t, want %t", i+1, got, step.done)
		}
	}
	for _, want := range []string{
		"client, by its files: aaaa → bbbb after 3 requests, 0 failed",
		"server, by its socket: 1111 → 2222 after 4 requests, 1 failed",
		"connection refused",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q was not said in:\n%s", want, out)
		}
	}
	if strings.Contains(out.String(), "\x1b") {
		t.Error("there are escape sequences though there is no terminal")
	}
}

func TestVerdict(t *testing.T) {
	for name, test := range map[string]struct {
		results results
		want    string
	}{
		"all well":              {results{requests: 9, refused: 1}, ""},
		"a failed request":      {results{requests: 9, failed: 1, refused: 1}, "1 of 10 requests failed"},
		"an admitted stranger":  {results{requests: 9, refused: 1, admitted: 1}, "the stranger was admitted 1 times"},
		"a stranger not judged": {results{requests: 9}, "the stranger was never refused"},
	} {
		if got := fmt.Sprint(test.results.verdict()); got != test.want && !(test.want == "" && got == "<nil>") {
			t.Errorf("%s: got %q, want %q", name, got, test.want)
		}
	}
}

func TestMetricsOfAllAgentsAreAddedUp(t *testing.T) {
	const text = `# TYPE signet_agent_issuance_duration_seconds histogram
signet_agent_issuance_duration_seconds_bucket{purpose="mount",le="+Inf"} 2
signet_agent_issuance_duration_seconds_sum{purpose="mount"} 0.05
signet_agent_issuance_duration_seconds_count{purpose="mount"} 2
signet_agent_issuance_duration_seconds_bucket{purpose="renewal",le="+Inf"} 1
signet_agent_issuance_duration_seconds_sum{purpose="renewal"} 0.02
signet_agent_issuance_duration_seconds_count{purpose="renewal"} 1
`
	var r results
	for range 2 {
		if err := r.addMetrics([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	got := []string{r.mounts.String(), r.renewals.String()}
	if diff := cmp.Diff([]string{"4, 25 ms on average", "2, 20 ms on average"}, got); diff != "" {
		t.Errorf("latencies (-want +got):\n%s", diff)
	}
	if err := r.addMetrics([]byte("# nothing\n")); err == nil {
		t.Error("metrics without the histogram were taken")
	}
}

func TestLinesAreSaidWhole(t *testing.T) {
	var said []string
	w := &lineWriter{say: func(line string) { said = append(said, line) }}
	for _, part := range []string{"one\ntw", "o", "\nthree"} {
		if _, err := w.Write([]byte(part)); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]string{"one", "two"}, said); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}
