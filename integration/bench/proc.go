// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// clockTick is the unit of CPU time in /proc: 1/USER_HZ, which is 100 on every
// architecture that Go runs on.
const clockTick = 10 * time.Millisecond

// parseStat reads the CPU time, in user and kernel mode, that a process has used,
// off /proc/PID/stat (proc_pid_stat(5)).
func parseStat(stat []byte) (time.Duration, error) {
	// The command's name is in parentheses and may hold anything, these included.
	end := bytes.LastIndexByte(stat, ')')
	if end < 0 {
		return 0, errors.New("/proc/PID/stat: no command name")
	}
	fields := strings.Fields(string(stat[end+1:]))
	const utime, stime = 14 - 3, 15 - 3 // the first of these fields is the third
	if len(fields) <= stime {
		return 0, fmt.Errorf("/proc/PID/stat: %d fields", len(fields)+2)
	}
	var ticks int64
	for _, i := range []int{utime, stime} {
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/PID/stat: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * clockTick, nil
}

// Memory is what a process holds, in bytes.
type Memory struct {
	// RSS is all of it that is resident, Anonymous the part that is the process's
	// own and neither a file's nor a tmpfs's.
	RSS, Anonymous int64
}

// parseStatus reads resident memory off /proc/PID/status (proc_pid_status(5)).
func parseStatus(status []byte) (Memory, error) {
	var m Memory
	for _, want := range []struct {
		name string
		into *int64
	}{{"VmRSS", &m.RSS}, {"RssAnon", &m.Anonymous}} {
		kib, err := kibibytes(status, want.name)
		if err != nil {
			return Memory{}, fmt.Errorf("/proc/PID/status: %w", err)
		}
		*want.into = kib << 10
	}
	return m, nil
}

// kibibytes reads a line such as "VmRSS:     1234 kB".
func kibibytes(content []byte, name string) (int64, error) {
	for line := range bytes.Lines(content) {
		key, value, _ := strings.Cut(string(line), ":")
		if key != name {
			continue
		}
		number, unit, _ := strings.Cut(strings.TrimSpace(value), " ")
		if unit != "kB" {
			return 0, fmt.Errorf("%s is in %q, not in kB", name, unit)
		}
		return strconv.ParseInt(number, 10, 64)
	}
	return 0, fmt.Errorf("no %s", name)
}

// parseBusy reads how much CPU time the machine has spent at work and in all, in
// ticks of all its CPUs, off /proc/stat (proc_stat(5)).
func parseBusy(stat []byte) (busy, all int64, err error) {
	line, _, _ := bytes.Cut(stat, []byte("\n"))
	fields := strings.Fields(string(line))
	const idle, iowait, guest = 4, 5, 9 // guest and what follows are counted in user already
	if len(fields) <= iowait || fields[0] != "cpu" {
		return 0, 0, errors.New("/proc/stat: no line of all CPUs")
	}
	for i, field := range fields[:min(len(fields), guest)] {
		if i == 0 {
			continue
		}
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("/proc/stat: %w", err)
		}
		all += n
		if i != idle && i != iowait {
			busy += n
		}
	}
	return busy, all, nil
}

func procFile(pid int, name string) ([]byte, error) {
	return os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), name))
}

func cpuTime(pid int) (time.Duration, error) {
	stat, err := procFile(pid, "stat")
	if err != nil {
		return 0, err
	}
	return parseStat(stat)
}

func memory(pid int) (Memory, error) {
	status, err := procFile(pid, "status")
	if err != nil {
		return Memory{}, err
	}
	return parseStatus(status)
}

// load measures how busy the machine is between two moments.
type load struct{ busy, all int64 }

func readLoad() (load, error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return load{}, err
	}
	busy, all, err := parseBusy(stat)
	return load{busy, all}, err
}

// since is the busy part of the time since before, in percent of all CPUs.
func (l load) since(before load) float64 {
	if l.all <= before.all {
		return 0
	}
	return 100 * float64(l.busy-before.busy) / float64(l.all-before.all)
}
