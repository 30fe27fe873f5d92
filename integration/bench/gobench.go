// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"strings"
	"time"
)

// GoBenchmarks are the results in the format of Go benchmarks
// (golang.org/design/14313-benchmark-format), for benchstat: one line for each
// repetition, so that it can tell a difference from noise.
func (r *Results) GoBenchmarks() string {
	var b strings.Builder
	fmt.Fprintf(&b, "kubernetes: %s\ncert-manager: %s\nsignet: %s\ncpu: %s\n", r.Versions.Kubernetes, r.Versions.CertManager, r.Versions.Signet, r.Machine.CPU)
	line := func(name string, each time.Duration, extra ...string) {
		fmt.Fprintf(&b, "Benchmark%s 1 %d ns/op", name, each.Nanoseconds())
		for _, e := range extra {
			fmt.Fprintf(&b, " %s", e)
		}
		b.WriteByte('\n')
	}
	rounds := func(name string, p Pair[Rounds]) {
		for _, impl := range []struct {
			name   string
			rounds Rounds
		}{{"signet", p.Signet}, {"floor", p.Floor}} {
			for _, round := range impl.rounds {
				line(name+"/"+impl.name, round.Latencies.Percentile(50), fmt.Sprintf("%.2f issuances/s", round.PerSecond()))
			}
		}
	}
	for _, impl := range []struct {
		name string
		all  Latencies
	}{{"signet", r.Single.Signet}, {"floor", r.Single.Floor}} {
		for _, part := range impl.all.Split(10) {
			line("PublishOne/"+impl.name, part.Percentile(50))
		}
	}
	for _, burst := range r.Bursts {
		rounds(fmt.Sprintf("PublishAtOnce/n=%d", burst.Size), burst.Rounds)
	}
	rounds("PublishSustained", r.Sustained)
	for _, i := range r.Idle {
		fmt.Fprintf(&b, "BenchmarkIdle/volumes=%d 1 %.3f cpu-%% %d RSS-bytes\n", i.Volumes, i.CPU, i.RSS)
	}
	for _, restart := range r.Restarts {
		line(fmt.Sprintf("RestartToLastSocket/volumes=%d", restart.Volumes), restart.All)
	}
	for _, n := range r.Renewals {
		line(fmt.Sprintf("RenewAll/volumes=%d/key=%s", n.Volumes, strings.ReplaceAll(n.KeyType, "-", "")), n.Wall, fmt.Sprintf("%.2f issuances/s", n.PerSecond()))
	}
	for _, part := range r.WorkloadAPI.Fetches.Split(10) {
		line("WorkloadAPIFetch/quiet", part.Percentile(50))
	}
	for _, part := range r.WorkloadAPI.Attacked.Split(10) {
		line("WorkloadAPIFetch/attacked", part.Percentile(50))
	}
	if w := r.WorkloadAPI; w.Streams > 0 {
		fmt.Fprintf(&b, "BenchmarkWorkloadAPIStream/streams=%d 1 %d RSS-bytes/stream\n", w.Streams, w.StreamBytes)
	}
	for _, p := range r.WorkloadAPI.Pushes {
		line(fmt.Sprintf("WorkloadAPIPush/streams=%d", r.WorkloadAPI.Streams), p.Spread)
	}
	return b.String()
}
