// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"strings"
	"time"
)

// Row is one line of the table.
type Row struct {
	What, Signet, Floor, Ratio, Target string
	// Verdict is empty where there is no target.
	Verdict Verdict
}

// Verdict says whether a target was reached.
type Verdict string

// The verdicts.
const (
	Reached Verdict = "reached"
	Missed  Verdict = "missed"
)

func verdict(ok bool) Verdict {
	if ok {
		return Reached
	}
	return Missed
}

// within is how far from the floor Signet may be, in percent.
const within = 15

// notSlower holds a latency against the floor's.
func notSlower(signet, floor time.Duration) Verdict {
	return verdict(floor > 0 && signet > 0 && 100*signet <= (100+within)*floor)
}

// notFewer holds a rate against the floor's.
func notFewer(signet, floor float64) Verdict {
	return verdict(floor > 0 && 100*signet >= (100-within)*floor)
}

// The other targets.
const (
	maxIdleCPU = 0.5 // percent of a core
	maxIdleRSS = 80 << 20
	maxRestart = time.Second
	// slack is for a request that had to be sent again.
	slack = 0.005
)

// Rows are the table: each figure beside the floor's, where there is one, and its
// target.
func (r *Results) Rows() []Row {
	var rows []Row
	rows = append(rows, r.singleRows()...)
	rows = append(rows, r.burstRows()...)
	rows = append(rows, r.sustainedRows()...)
	rows = append(rows, r.requestRows()...)
	rows = append(rows, r.idleRows()...)
	rows = append(rows, r.restartRows()...)
	rows = append(rows, r.workloadAPIRows()...)
	return append(rows, r.renewalRows()...)
}

const (
	latencyTarget = "≤ 1.15 × floor"
	rateTarget    = "≥ 0.85 × floor"
)

func latencyRow(what string, l Pair[Latencies], p float64) Row {
	signet, floor := l.Signet.Percentile(p), l.Floor.Percentile(p)
	return Row{What: what, Signet: ms(signet), Floor: ms(floor), Ratio: ratio(signet.Seconds(), floor.Seconds())}
}

func (row Row) against(target string, v Verdict) Row {
	row.Target, row.Verdict = target, v
	return row
}

func (r *Results) singleRows() []Row {
	what := "publish, one at a time: "
	return []Row{
		latencyRow(what+"p50", r.Single, 50).against(latencyTarget, notSlower(r.Single.Signet.Percentile(50), r.Single.Floor.Percentile(50))),
		latencyRow(what+"p90", r.Single, 90),
		latencyRow(what+"p99", r.Single, 99),
	}
}

func rateRow(what string, rounds Pair[Rounds]) Row {
	signet, floor := rounds.Signet.Median().PerSecond(), rounds.Floor.Median().PerSecond()
	return Row{What: what, Signet: perSecond(signet), Floor: perSecond(floor), Ratio: ratio(signet, floor)}.against(rateTarget, notFewer(signet, floor))
}

func (r *Results) burstRows() []Row {
	var rows []Row
	for _, b := range r.Bursts {
		signet, floor := b.Rounds.Signet.Median(), b.Rounds.Floor.Median()
		all := Pair[Round]{b.Rounds.Signet.Total(), b.Rounds.Floor.Total()}
		latencies := Pair[Latencies]{all.Signet.Latencies, all.Floor.Latencies}
		what := fmt.Sprintf("%d at once: ", b.Size)
		rows = append(rows,
			Row{What: what + "wall time", Signet: seconds(signet.Wall), Floor: seconds(floor.Wall), Ratio: ratio(signet.Wall.Seconds(), floor.Wall.Seconds())},
			rateRow(what+"per second", b.Rounds),
			latencyRow(what+"p50", latencies, 50),
			latencyRow(what+"p99", latencies, 99),
			Row{What: what + "failed", Signet: fmt.Sprint(all.Signet.Failed), Floor: fmt.Sprint(all.Floor.Failed)}.against("0", verdict(all.Signet.Failed == 0)),
		)
	}
	return rows
}

func (r *Results) sustainedRows() []Row {
	all := Pair[Round]{r.Sustained.Signet.Total(), r.Sustained.Floor.Total()}
	latencies := Pair[Latencies]{all.Signet.Latencies, all.Floor.Latencies}
	what := fmt.Sprintf("sustained, %d at a time: ", r.Sizes.Concurrency)
	return []Row{
		rateRow(what+"per second", r.Sustained),
		latencyRow(what+"p50", latencies, 50),
		latencyRow(what+"p99", latencies, 99),
		Row{What: what + "CPU time of all programs, each", Signet: ms(r.CPU.Signet.total()), Floor: ms(r.CPU.Floor.total()), Ratio: ratio(r.CPU.Signet.total().Seconds(), r.CPU.Floor.total().Seconds())},
		Row{What: what + "failed", Signet: fmt.Sprint(all.Signet.Failed), Floor: fmt.Sprint(all.Floor.Failed)}.against("0", verdict(all.Signet.Failed == 0)),
	}
}

func (r *Results) requestRows() []Row {
	const what = "per issuance: "
	q := r.Requests
	count := func(name string, n float64, target string, ok bool) Row {
		return Row{What: what + name, Signet: fmt.Sprintf("%.2f", n)}.against(target, verdict(ok))
	}
	const create, remove = "create certificaterequests", "delete certificaterequests"
	creates, deletes := each(q.Agent, create), each(q.Agent, remove)
	rows := []Row{
		count("agent, create CertificateRequest", creates, "1", exactly(creates, 1)),
		count("agent, delete CertificateRequest", deletes, "1", exactly(deletes, 1)),
		count("approver, status write", q.ApproverWrites, "1", exactly(q.ApproverWrites, 1)),
		count("approver, pod read", q.ApproverPodReads, "≤ 1", q.ApproverPodReads <= 1+slack),
	}
	for _, c := range q.Agent {
		if c.What != create && c.What != remove {
			rows = append(rows, Row{What: what + "agent, " + c.What, Signet: fmt.Sprintf("%.2f", c.Each)})
		}
	}
	return append(rows,
		Row{What: what + "agent's CPU time", Signet: ms(q.AgentCPU)},
		Row{What: what + "approvers' CPU time", Signet: ms(q.ApproverCPU)})
}

func exactly(n, want float64) bool { return n >= want-slack && n <= want+slack }

func (r *Results) idleRows() []Row {
	var rows []Row
	for _, i := range r.Idle {
		what := fmt.Sprintf("%d volumes, idle: ", i.Volumes)
		rows = append(rows,
			Row{What: what + "CPU", Signet: fmt.Sprintf("%.2f %% of a core", i.CPU)}.against("< 0.5 %", verdict(i.CPU < maxIdleCPU)),
			Row{What: what + "memory (RSS)", Signet: mib(i.RSS)}.against("< 80 MiB", verdict(i.RSS < maxIdleRSS)),
			Row{What: what + "in the volumes (tmpfs)", Signet: mib(i.VolumeBytes)})
	}
	return rows
}

func (r *Results) restartRows() []Row {
	if len(r.Restarts) == 0 {
		return nil
	}
	var all, median Latencies
	var changed, issued int
	for _, restart := range r.Restarts {
		all, median = append(all, restart.All), append(median, restart.Median)
		changed, issued = changed+restart.Changed, issued+restart.Issuances
	}
	what := fmt.Sprintf("kill -9 under %d volumes: ", r.Restarts[0].Volumes)
	return []Row{
		Row{What: what + "start to the last socket's answer", Signet: fmt.Sprintf("%s (worst of %d: %s)", ms(all.Percentile(50)), len(all), ms(all.Percentile(100)))}.
			against("< 1 s", verdict(all.Percentile(100) < maxRestart)),
		Row{What: what + "to the median socket's", Signet: ms(median.Percentile(50))},
		Row{What: what + "sockets with another SVID", Signet: fmt.Sprint(changed)}.against("0", verdict(changed == 0)),
		Row{What: what + "new issuances", Signet: fmt.Sprint(issued)}.against("0", verdict(issued == 0)),
	}
}

func (r *Results) renewalRows() []Row {
	floor := r.Sustained.Floor.Median().PerSecond()
	var rows []Row
	for _, n := range r.Renewals {
		what := fmt.Sprintf("renewal of %d volumes at once, to %s: ", n.Volumes, n.KeyType)
		rows = append(rows,
			Row{What: what + "wall time", Signet: seconds(n.Wall)},
			Row{What: what + "per second", Signet: perSecond(n.PerSecond()), Floor: perSecond(floor) + " (sustained)", Ratio: ratio(n.PerSecond(), floor)}.
				against(rateTarget, notFewer(n.PerSecond(), floor)),
			Row{What: what + "failed, expired, left out", Signet: fmt.Sprintf("%d, %d, %d", n.Failed, n.Expired, n.Unchanged)}.
				against("0, 0, 0", verdict(n.Failed+n.Expired+n.Unchanged == 0)))
	}
	return rows
}

// Missed lists what did not reach its target.
func missed(rows []Row) []string {
	var out []string
	for _, row := range rows {
		if row.Verdict == Missed {
			out = append(out, row.What)
		}
	}
	return out
}

// Table renders rows as Markdown.
func Table(rows []Row) string {
	var b strings.Builder
	b.WriteString("| measured | Signet | floor | Signet / floor | target | |\n|---|--:|--:|--:|---|---|\n")
	for _, row := range rows {
		cells := []string{row.What, row.Signet, row.Floor, row.Ratio, row.Target, string(row.Verdict)}
		for i, cell := range cells {
			cells[i] = strings.ReplaceAll(cell, "|", "\\|")
		}
		fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | "))
	}
	return b.String()
}

func ms(d time.Duration) string      { return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond)) }
func seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }
func perSecond(rate float64) string  { return fmt.Sprintf("%.1f/s", rate) }
func mib(bytes int64) string         { return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20)) }

func round(d time.Duration) time.Duration { return d.Round(100 * time.Millisecond) }

func ratio(signet, floor float64) string {
	if floor <= 0 {
		return ""
	}
	return fmt.Sprintf("%.2f", signet/floor)
}
