// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/signet-spiffe/signet/internal/observe"
)

func isUsage(err error) bool {
	var usage *observe.UsageError
	return errors.As(err, &usage)
}

func TestParseSocket(t *testing.T) {
	t.Chdir("/tmp")
	for s, want := range map[string]string{
		"/run/spiffe.sock":                "/run/spiffe.sock",
		"unix:///run/spiffe.sock":         "/run/spiffe.sock",
		"unix:/run/spiffe.sock":           "/run/spiffe.sock",
		"spiffe.sock":                     "/tmp/spiffe.sock",
		"./spiffe.sock":                   "/tmp/spiffe.sock",
		"":                                "",
		"tcp://127.0.0.1:8000":            "",
		"@signet":                         "",
		"unix:@signet":                    "",
		"unix-abstract:signet":            "",
		"unix://run/spiffe.sock":          "",
		"unix:spiffe.sock":                "",
		"unix://":                         "",
		"unix:///run/spiffe.sock?x=1":     "",
		"unix:///run/spiffe.sock#x":       "",
		"unix://user@host/run/s.sock":     "",
		"unix:///run/with%20space/s.sock": "/run/with space/s.sock",
	} {
		if got, err := ParseSocket(s); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: got %q and %v, want %q", s, got, err, want)
		}
	}
}

// A node's volumes, seen through /proc/1/root, are deeper than a socket's address
// is long.
func TestSocketsDeepInTheTree(t *testing.T) {
	base := t.TempDir()
	dir := filepath.Join(base, strings.Repeat("d", 100), strings.Repeat("e", 100))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir) // For the bind, which has the same limit.
	l, err := net.Listen("unix", "s")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := Reach(t.Context(), filepath.Join(dir, "s")); err != nil {
		t.Error(err)
	}
}

func TestReachSaysWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	dead := filepath.Join(dir, "dead")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"none": "there is no socket at",
		"dead": "nobody listens on",
		"file": "is not a socket",
		filepath.Join(strings.Repeat("x", 110), "s"): "there is no socket at",
	} {
		if err := Reach(t.Context(), filepath.Join(dir, name)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", name, err, want)
		}
	}
}

func TestTimeout(t *testing.T) {
	for value, want := range map[string]time.Duration{"1m": time.Minute, "0s": 0} {
		var timeout Timeout
		flags := pflag.NewFlagSet("", pflag.ContinueOnError)
		timeout.AddFlag(flags)
		if err := flags.Set("timeout", value); err != nil {
			t.Fatal(err)
		}
		ctx, cancel, err := timeout.Context(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer cancel()
		deadline, ok := ctx.Deadline()
		if ok != (want != 0) || ok && time.Until(deadline).Round(time.Second) != want {
			t.Errorf("%s: ends in %s (%t)", value, time.Until(deadline), ok)
		}
	}
	if _, _, err := (&Timeout{limit: -time.Second}).Context(t.Context()); !isUsage(err) {
		t.Errorf("a negative timeout gives %v", err)
	}
}

func TestProtoJSONIsStable(t *testing.T) {
	m := &workload.X509BundlesResponse{Bundles: map[string][]byte{"spiffe://b": {1}, "spiffe://a": {2}}}
	var one, two strings.Builder
	if err := WriteProtoJSON(&one, m); err != nil {
		t.Fatal(err)
	}
	if want := `{"bundles":{"spiffe://a":"Ag==","spiffe://b":"AQ=="},"crl":[]}` + "\n"; one.String() != want {
		t.Errorf("one message: got %s, want %s", one.String(), want)
	}
	if err := WriteProtoJSON(&two, m, &workload.ValidateJWTSVIDResponse{}); err != nil {
		t.Fatal(err)
	}
	// A message that is not set is left out, as SPIRE does.
	if want := "[" + strings.TrimSpace(one.String()) + `,{"spiffe_id":""}]` + "\n"; two.String() != want {
		t.Errorf("two messages: got %s, want %s", two.String(), want)
	}
}

func TestClean(t *testing.T) {
	if got := Clean("a\x1b[2J\nb\xff\u0085c"); got != "a [2J b\uFFFD c" {
		t.Errorf("got %q", got)
	}
}

// A server may see the client's deadline before the client does.
func TestTheServerMayBeTheFirstToSeeTheDeadline(t *testing.T) {
	late := status.Error(codes.DeadlineExceeded, "context deadline exceeded")
	ctx, cancel, err := (&Timeout{limit: 20 * time.Millisecond}).Context(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer cancel()
	if got := Explain(ctx, late).Error(); got != "no answer within 20ms (-timeout)" {
		t.Errorf("got %q", got)
	}
	// A deadline of the server's own is none of ours.
	own, cancel, err := (&Timeout{limit: time.Hour}).Context(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer cancel()
	if got := Explain(own, status.Error(codes.DeadlineExceeded, "no selectors found")).Error(); got != "DeadlineExceeded: no selectors found" {
		t.Errorf("got %q", got)
	}
}
