// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"os"
	"strings"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	const after = " S 1 10 10 0 -1 4194560 2000 0 0 0 150 25 7 9 20 0 9 0 12345 1300000000 9000 18446744073709551615"
	for name, test := range map[string]struct {
		stat string
		want time.Duration
		ok   bool
	}{
		"plain":                         {"42 (agent)" + after, 1750 * time.Millisecond, true},
		"a name with spaces":            {"42 (a b c)" + after, 1750 * time.Millisecond, true},
		"a name that looks like fields": {"42 (x) R 1 2 (y))" + after, 1750 * time.Millisecond, true},
		"cut off":                       {"42 (agent) S 1 10 10 0 -1 4194560 2000 0 0 0 150", 0, false},
		"no name":                       {"42 agent S 1", 0, false},
		"words for numbers":             {"42 (agent)" + strings.Replace(after, "150", "many", 1), 0, false},
	} {
		got, err := parseStat([]byte(test.stat))
		if got != test.want || (err == nil) != test.ok {
			t.Errorf("%s: %s, %v; want %s", name, got, err, test.want)
		}
	}
}

func TestParseStatus(t *testing.T) {
	const status = "Name:\tagent\nVmPeak:\t  99 kB\nVmRSS:\t    51200 kB\nRssAnon:\t   20480 kB\nRssFile:\t 30720 kB\n"
	got, err := parseStatus([]byte(status))
	if err != nil || got.RSS != 50<<20 || got.Anonymous != 20<<20 {
		t.Errorf("%+v, %v", got, err)
	}
	for _, broken := range []string{"Name:\tagent\n", strings.Replace(status, "RssAnon", "Rss", 1), strings.Replace(status, "51200 kB", "50 MB", 1), strings.Replace(status, "51200", "x", 1)} {
		if got, err := parseStatus([]byte(broken)); err == nil {
			t.Errorf("%q: %+v, want an error", broken, got)
		}
	}
}

func TestParseBusy(t *testing.T) {
	busy, all, err := parseBusy([]byte("cpu  100 1 50 800 40 2 3 4 90 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n"))
	if err != nil || busy != 160 || all != 1000 {
		t.Errorf("%d of %d ticks, %v; want 160 of 1000: guests' time is users' too", busy, all, err)
	}
	for _, broken := range []string{"", "cpu0 1 2 3 4 5 6 7 8\n", "cpu  1 2 3\n", "cpu  1 2 x 4 5 6\n"} {
		if _, _, err := parseBusy([]byte(broken)); err == nil {
			t.Errorf("%q: no error", broken)
		}
	}
	if got := (load{busy: 30, all: 200}).since(load{busy: 10, all: 100}); got != 20 {
		t.Errorf("%v %%, want 20 %%", got)
	}
	if got := (load{}).since(load{}); got != 0 {
		t.Errorf("%v %% in no time", got)
	}
}

// The parsers read what this kernel writes.
func TestThisProcess(t *testing.T) {
	if _, err := cpuTime(os.Getpid()); err != nil {
		t.Error(err)
	}
	m, err := memory(os.Getpid())
	if err != nil || m.RSS < 1<<20 || m.Anonymous > m.RSS {
		t.Errorf("%+v, %v", m, err)
	}
	if l, err := readLoad(); err != nil || l.all == 0 || l.busy == 0 {
		t.Errorf("%+v, %v", l, err)
	}
	here, err := thisMachine()
	if err != nil || here.CPUs < 1 || here.MemoryBytes < 1<<20 || here.Kernel == "" || here.CPU == "" {
		t.Errorf("%+v, %v", here, err)
	}
}

func TestCPUModel(t *testing.T) {
	if got := cpuModel([]byte("processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\nflags\t: a b\n")); got != "Some CPU @ 3 GHz" {
		t.Errorf("%q", got)
	}
}

func TestPinned(t *testing.T) {
	const mod = "module x\n\nrequire (\n\texample.org/a v1.2.3\n\texample.org/b v0.1.0 // indirect\n)\n"
	if got, err := pinned([]byte(mod), "example.org/a"); err != nil || got != "v1.2.3" {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := pinned([]byte(mod), "example.org/c"); err == nil {
		t.Errorf("%q for what is not required", got)
	}
}
