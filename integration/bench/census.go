// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"cmp"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// census is how much CPU time each program of the cluster has used, and Signet's
// agent and this process, by the program's name. Unlike rates it hardly changes
// when something else on the machine wants the CPU too.
type census map[string]time.Duration

// thisProgram is the floor, and the client that plays kubelet.
const thisProgram = "bench (floor, CSI client)"

// takeCensus reads the CPU time of every process in the cluster's cgroups, by the
// programs' names; of what has ended meanwhile nothing is known.
func takeCensus(cluster string, agent int) (census, error) {
	pids, err := clusterProcesses("/sys/fs/cgroup", cluster)
	if err != nil {
		return nil, err
	}
	c := census{}
	for pid := range pids {
		c.add(pid, "")
	}
	c.add(agent, "signet-agent")
	c.add(os.Getpid(), thisProgram)
	return c, nil
}

func (c census) add(pid int, name string) {
	spent, err := cpuTime(pid)
	if err != nil {
		return // It has ended.
	}
	if name == "" {
		line, err := procFile(pid, "cmdline")
		if err != nil {
			return
		}
		name = programName(line)
	}
	c[name] += spent
}

// programName reads /proc/PID/cmdline.
func programName(cmdline []byte) string {
	first, _, _ := bytes.Cut(cmdline, []byte{0})
	return filepath.Base(string(first))
}

// clusterProcesses lists the processes in all cgroups of the cluster (package
// cluster names them after it), in whichever hierarchies there are.
func clusterProcesses(root, cluster string) (map[int]bool, error) {
	pids := map[int]bool{}
	for _, pattern := range []string{"*/signet-" + cluster, "signet-" + cluster} {
		tops, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return nil, err
		}
		for _, top := range tops {
			if err := processesBelow(top, pids); err != nil {
				return nil, err
			}
		}
	}
	return pids, nil
}

func processesBelow(top string, into map[int]bool) error {
	return filepath.WalkDir(top, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.Name() != "cgroup.procs" {
			return err
		}
		content, err := os.ReadFile(path)
		for field := range strings.FieldsSeq(string(content)) {
			if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
				into[pid] = true
			}
		}
		return err
	})
}

// since is what was used since before.
func (c census) since(before census) census {
	grown := census{}
	for name, spent := range c {
		if d := spent - before[name]; d > 0 {
			grown[name] = d
		}
	}
	return grown
}

func (c census) join(other census) {
	for name, spent := range other {
		c[name] += spent
	}
}

// each divides by a number of issuances.
func (c census) each(issuances int) census {
	out := census{}
	for name, spent := range c {
		if issuances > 0 {
			out[name] = spent / time.Duration(issuances)
		}
	}
	return out
}

func (c census) total() time.Duration {
	var sum time.Duration
	for _, spent := range c {
		sum += spent
	}
	return sum
}

// programs are the names in either, the most costly first.
func programs(p Pair[census]) []string {
	all := census{}
	all.join(p.Signet)
	all.join(p.Floor)
	return slices.SortedFunc(maps.Keys(all), func(a, b string) int {
		return cmp.Or(cmp.Compare(all[b], all[a]), cmp.Compare(a, b))
	})
}
