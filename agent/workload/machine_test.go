// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the transcripts in testdata with what the machine does")

var epoch = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

// TestTranscripts replays the files in testdata. A line that begins with ">" is
// an event, with the time since the epoch before it ("> 40s tick"); the lines
// below it are the actions that it must cause. Lines that begin with "#" explain.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := replay(t, string(want))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("transcript differs (-want +got), go test -update rewrites it:\n%s", diff)
			}
		})
	}
}

func replay(t *testing.T, transcript string) string {
	t.Helper()
	var m Machine
	var out strings.Builder
	for line := range strings.Lines(transcript) {
		line = strings.TrimRight(line, "\n")
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
			fmt.Fprintln(&out, line)
		case strings.HasPrefix(line, "> "):
			fmt.Fprintln(&out, line)
			now, event := parseEvent(t, strings.Fields(line)[1:])
			actions := m.Step(now, event)
			for _, action := range actions {
				fmt.Fprintln(&out, printAction(now, action))
			}
			if len(actions) == 0 {
				fmt.Fprintln(&out, "nothing")
			}
		}
	}
	return out.String()
}

// parseEvent reads "TIME NAME ARGUMENTS...".
func parseEvent(t *testing.T, words []string) (time.Time, Event) {
	t.Helper()
	if len(words) < 2 {
		t.Fatalf("event %q: want a time and a name", words)
	}
	now := epoch.Add(duration(t, words[0]))
	args := map[string]string{}
	for _, word := range words[2:] {
		key, value, _ := strings.Cut(word, "=")
		args[key] = value
	}
	var err error
	if text, ok := args["err"]; ok {
		err = errors.New(text)
	}
	jitter, _ := strconv.ParseFloat(args["jitter"], 64)
	attempt, _ := strconv.ParseUint(args["attempt"], 10, 64)
	_, final := args["final"]
	_, lost := args["lost"]
	_, inFlight := args["in-flight"]
	notBefore, notAfter := now, now
	if life, ok := args["life"]; ok {
		notAfter = now.Add(duration(t, life))
	}
	if age, ok := args["age"]; ok {
		notBefore = now.Add(-duration(t, age))
		notAfter = notBefore.Add(duration(t, args["life"]))
	}
	terms := Terms{}
	_, terms.NoWait = args["nowait"]
	if before, ok := args["renew-before"]; ok {
		terms.RenewBefore = duration(t, before)
	}
	switch words[1] {
	case "published":
		return now, Published{terms}
	case "resumed":
		return now, Resumed{Terms: terms, InFlight: inFlight}
	case "awaited":
		return now, Awaited{terms}
	case "sending":
		return now, Sending{Attempt: attempt}
	case "prepared":
		return now, Prepared{Err: err, Jitter: jitter}
	case "issued":
		return now, Issued{Attempt: attempt, NotBefore: notBefore, NotAfter: notAfter, Jitter: jitter}
	case "failed":
		return now, Failed{Attempt: attempt, Err: err, Final: final, Lost: lost, Jitter: jitter}
	case "stored":
		return now, Stored{Err: err, Jitter: jitter}
	case "tick":
		return now, Tick{}
	case "bundle-changed":
		return now, BundleChanged{}
	case "reissue":
		return now, Reissue{Window: duration(t, args["window"]), Jitter: jitter}
	case "token-refreshed":
		return now, TokenRefreshed{}
	case "renew":
		return now, Renew{}
	case "restored":
		return now, Restored{Terms: terms, NotBefore: notBefore, NotAfter: notAfter, Jitter: jitter, InFlight: inFlight}
	case "unpublished":
		return now, Unpublished{}
	}
	t.Fatalf("unknown event %q", words[1])
	return now, nil
}

func duration(t *testing.T, s string) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func printAction(now time.Time, action Action) string {
	switch a := action.(type) {
	case Prepare:
		return "prepare"
	case Request:
		if a.Resume {
			return fmt.Sprintf("request %d, resumed", a.Attempt)
		}
		return fmt.Sprintf("request %d", a.Attempt)
	case Keep:
		return fmt.Sprintf("keep %d", a.Attempt)
	case Drop:
		return "drop"
	case Cancel:
		return fmt.Sprintf("cancel %d", a.Attempt)
	case Store:
		return "store"
	case Push:
		return "push"
	case Schedule:
		return fmt.Sprintf("schedule tick at %s (in %s)", a.At.Sub(epoch), a.At.Sub(now))
	case Answer:
		if a.Err == nil {
			return "answer ok"
		}
		return fmt.Sprintf("answer error: %v", a.Err)
	case Remove:
		return "remove"
	case Notify:
		if a.Err == nil {
			return "notify " + a.Notice.String()
		}
		return fmt.Sprintf("notify %s: %v", a.Notice, a.Err)
	}
	return fmt.Sprintf("unknown action %T", action)
}

func TestRetryDelay(t *testing.T) {
	for _, tt := range []struct {
		failures  int
		remaining time.Duration
		jitter    float64
		want      time.Duration
	}{
		{1, time.Hour, 0, time.Second},
		{4, time.Hour, 0, 8 * time.Second},
		{9, time.Hour, 0, 256 * time.Second},
		{20, time.Hour, 0, 5 * time.Minute},
		{1 << 40, time.Hour, 0, 5 * time.Minute},
		{20, 10 * time.Minute, 0, 75 * time.Second},
		{20, 20 * time.Second, 0, 5 * time.Second},
		{20, -time.Hour, 0, 5 * time.Second},
		{20, time.Hour, 0.999999, 4*time.Minute + 60*time.Microsecond},
	} {
		if got := retryDelay(tt.failures, tt.remaining, tt.jitter); got != tt.want {
			t.Errorf("retryDelay(%d, %s, %v) = %s, want %s", tt.failures, tt.remaining, tt.jitter, got, tt.want)
		}
	}
}

func TestRenewAt(t *testing.T) {
	for _, tt := range []struct {
		age, lifetime, renewBefore time.Duration
		jitter                     float64
		want                       time.Duration // After issuance.
	}{
		{0, time.Hour, 0, 0, 40 * time.Minute},
		{0, time.Hour, 0, 1, 34 * time.Minute},
		{0, time.Hour, 10 * time.Minute, 0, 50 * time.Minute},
		{0, time.Hour, 10 * time.Minute, 1, 45 * time.Minute},
		{0, time.Hour, 54 * time.Minute, 1, 6*time.Minute - 36*time.Second},
		// The issuer gave less than was asked for: as if nothing had been said.
		{0, 10 * time.Minute, 10 * time.Minute, 0, 400 * time.Second},
		{0, 10 * time.Minute, time.Hour, 0, 400 * time.Second},
		// Overdue.
		{55 * time.Minute, time.Hour, 10 * time.Minute, 0, 55 * time.Minute},
	} {
		now := epoch.Add(tt.age)
		if got := renewAt(now, epoch, epoch.Add(tt.lifetime), tt.renewBefore, tt.jitter).Sub(epoch); got != tt.want {
			t.Errorf("age %s, lifetime %s, renew-before %s, jitter %v: %s, want %s", tt.age, tt.lifetime, tt.renewBefore, tt.jitter, got, tt.want)
		}
	}
}

func TestRefusedDelay(t *testing.T) {
	for failures, want := range map[int]time.Duration{1: time.Second, 7: 64 * time.Second, 8: 2 * time.Minute, 1 << 40: 2 * time.Minute} {
		if got := refusedDelay(failures, 0); got != want {
			t.Errorf("refusedDelay(%d) = %s, want %s", failures, got, want)
		}
	}
}
