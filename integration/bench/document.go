// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"strings"
	"time"
)

// Markdown is docs/benchmarks.md.
func (r *Results) Markdown() string {
	rows := r.Rows()
	var b strings.Builder
	b.WriteString("# Benchmarks\n\n")
	b.WriteString("Written by `make bench`; do not edit. ")
	fmt.Fprintf(&b, "%s, in %s.\n\n", r.Began.UTC().Format("2006-01-02"), r.Took.Round(time.Second))
	fmt.Fprintf(&b, "Machine: %s, %d cores, %.0f GiB, Linux %s. ", r.Machine.CPU, r.Machine.CPUs, float64(r.Machine.MemoryBytes)/(1<<30), r.Machine.Kernel)
	fmt.Fprintf(&b, "Versions: Kubernetes %s, cert-manager %s, %s, Signet %s. ", r.Versions.Kubernetes, r.Versions.CertManager, r.Versions.Go, r.Versions.Signet)
	b.WriteString("Everything is on this one machine: API server, etcd, cert-manager with its webhook, Signet, and what measures.\n\n")
	if out := missed(rows); len(out) > 0 {
		fmt.Fprintf(&b, "Missed: %s.\n\n", strings.Join(out, "; "))
	} else {
		b.WriteString("Every target was reached.\n\n")
	}
	b.WriteString(Table(rows))
	b.WriteString(r.costs())
	b.WriteString(r.method())
	b.WriteString(r.noise())
	b.WriteString(repeat)
	return b.String()
}

func (r *Results) method() string {
	return fmt.Sprintf(`
## What was measured

The signet-agent binary as it is released, started with the arguments of `+"`deploy/manifests`"+`, and the approver as those manifests
install it (two replicas). No kubelet is in the way, which takes far longer to start a pod than its SVID takes: a small CSI client calls
NodePublishVolume and NodeUnpublishVolume, for pods that exist in the API, on a node of their own, and are run by nobody. The
agent's token names that node and the approver reads those pods, as always.

*The floor* is the least that a client of cert-manager has to do: the same key, CSR and CertificateRequest, one labelled watch, a delete
in the background; and an approver in the same process that writes the same status patch for whatever it sees, %d at a time. It reads no pod, verifies nothing, mounts and
stores nothing, and writes no Events. Signet's approvers watch and skip the floor's requests, which costs the floor what the table of CPU time shows. Issuer, cert-manager, webhook and namespaces are the same. cert-manager runs with `+"`--kube-api-qps=1000 --kube-api-burst=2000 --concurrent-workers=20`"+`.

Signet and floor take turns within each line, and the next begins when nothing of the one before is under way, its deletes included (Signet's Events about good news come later, two a second).
One at a time: %d each. At once: the median round of %s; percentiles are over all rounds. Sustained: a closed loop of %d, %d windows of %s each, the lower
median. Idle: CPU time over %s, from `+"`/proc/PID/stat`"+`, with kubelet's probes; the tmpfs pages of the volumes are not in the agent's RSS (in its pod they are charged to its cgroup). Restart: from the start of the
process until each volume's socket, asked as soon as it appears, has sent the SVID; client and agent share the cores. Renewal: the agent is killed and started
with another key type and `+"`--reissue-window=0`"+`; from the start of the process.
Workload API: %d fetches one at a time, each on a new connection, from the sockets of %d volumes in turn; client and agent share the cores. Streams: %d connections with one stream each; the agent's
resident memory before and after. A change is another authority in the file of `+"`--source-ca-bundle`"+`, of which the agent writes the files of all volumes too; it waits 100 ms for the file to be complete. An attack is all
that `+"`internal/hostile`"+` knows, at once, from a process of its own on one pod's socket: 10,000 streams with closed windows, garbage, floods of resets, settings and pings, header bombs, reflection; attacker, client and agent share the cores.
`, r.Approvers, r.Sizes.Singles, r.roundsText(), r.Sizes.Concurrency, r.Sizes.Windows, r.Sizes.Window, r.Sizes.Idle,
		r.Sizes.Fetches, r.Sizes.RestartVolumes, r.Sizes.Streams)
}

// costs is a table of the CPU time of each program; what is next to nothing is
// left out.
func (r *Results) costs() string {
	var b strings.Builder
	b.WriteString("\n## Where the CPU time goes\n\nCPU time for each issuance under sustained load, by program. Rates are what this leaves of two cores; unlike them it hardly depends on what else\nthe machine does.\n\n")
	b.WriteString("| program | Signet | floor |\n|---|--:|--:|\n")
	for _, name := range programs(r.CPU) {
		if r.CPU.Signet[name]+r.CPU.Floor[name] >= 200*time.Microsecond {
			fmt.Fprintf(&b, "| %s | %s | %s |\n", name, ms(r.CPU.Signet[name]), ms(r.CPU.Floor[name]))
		}
	}
	fmt.Fprintf(&b, "| all | %s | %s |\n", ms(r.CPU.Signet.total()), ms(r.CPU.Floor.total()))
	return b.String()
}

func (r *Results) roundsText() string {
	var parts []string
	for _, b := range r.Bursts {
		parts = append(parts, fmt.Sprintf("%d (%d volumes)", b.Times, b.Size))
	}
	return strings.Join(parts, " and ")
}

// noise says how much the same measurement varied within this run.
func (r *Results) noise() string {
	var b strings.Builder
	b.WriteString("\n## How noisy it was\n\n")
	var quiet []string
	for _, i := range r.Idle {
		quiet = append(quiet, fmt.Sprintf("%.0f %%", i.Busy))
	}
	fmt.Fprintf(&b, "While nothing was asked of Signet, the machine (an idle Kubernetes, and whatever else ran on it) was %s busy. ", strings.Join(quiet, ", "))
	b.WriteString("The same thing measured again within this run, slowest and fastest round:\n\n| | Signet | floor |\n|---|--:|--:|\n")
	line := func(what string, rounds Pair[Rounds]) {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", what, spread(rounds.Signet), spread(rounds.Floor))
	}
	single := Pair[[]Latencies]{r.Single.Signet.Split(5), r.Single.Floor.Split(5)}
	fmt.Fprintf(&b, "| one at a time, p50 of each fifth | %s | %s |\n", medians(single.Signet), medians(single.Floor))
	for _, burst := range r.Bursts {
		line(fmt.Sprintf("%d at once", burst.Size), burst.Rounds)
	}
	line("sustained", r.Sustained)
	return b.String()
}

func spread(rounds Rounds) string {
	slowest, fastest := rounds.Spread()
	return fmt.Sprintf("%.1f to %.1f/s", slowest, fastest)
}

func medians(parts []Latencies) string {
	var all Latencies
	for _, part := range parts {
		all = append(all, part.Percentile(50))
	}
	return fmt.Sprintf("%s to %s", ms(all.Percentile(0)), ms(all.Percentile(100)))
}

const repeat = `
## To repeat it

As root, on Debian: ` + "`make bench`" + ` (under 12 minutes once Kubernetes is built). It brings up a cluster, measures, writes this page and, for
benchstat, ` + "`bin/bench/<time>.txt`" + `, and takes everything down. ` + "`make bench-compare`" + ` compares the last two runs;
` + "`make bench BENCH_FLAGS=--quick`" + ` takes a minute or two and writes no page. Figures of different machines do not compare: look at the floor beside them.
` + "`make bench-micro`" + ` runs the Go benchmarks of single packages.
`
