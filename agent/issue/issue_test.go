// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package issue

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestTokenDoesNotPrint(t *testing.T) {
	const secret = "s3cr3t-t0k3n"
	token := NewToken(secret)
	if token.Reveal() != secret {
		t.Fatalf("Reveal gives %q", token.Reveal())
	}
	type wrapper struct{ inner Token } // fmt may not call methods on inner
	r := IssueRequest{Token: token}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		fmt.Fprintf(&out, verb, token)
		fmt.Fprintf(&out, verb, &token)
		fmt.Fprintf(&out, verb, r)
		fmt.Fprintf(&out, verb, wrapper{token})
		fmt.Fprintf(&out, verb, &wrapper{token})
	}
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "token", token, "request", r, "wrapped", wrapper{token})
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "token", token, "request", token, "wrapped", wrapper{token})
	if err := json.NewEncoder(&out).Encode(map[string]any{"t": token, "p": &token}); err != nil {
		t.Fatal(err)
	}
	for _, form := range []string{secret, fmt.Sprintf("%x", secret), fmt.Sprintf("%X", secret)} {
		if strings.Contains(out.String(), form) {
			t.Errorf("token leaks as %q", form)
		}
	}
	if !strings.Contains(out.String(), redacted) {
		t.Error("nothing was printed: the test proves nothing")
	}
}

func TestZeroToken(t *testing.T) {
	if !NewToken("").IsZero() || !(Token{}).IsZero() || (Token{}).Reveal() != "" {
		t.Error("the empty token is not zero")
	}
	if NewToken("x").IsZero() {
		t.Error("a token is zero")
	}
}

func TestQuote(t *testing.T) {
	long := strings.Repeat("ä", maxForeign)
	for in, want := range map[string]string{
		"":                     "",
		"plain words":          "plain words",
		" two\nlines\r\n":      "two lines",
		"bell\a and \x1b[31m!": "bell and [31m!",
		"bad \xff utf-8":       "bad \uFFFD utf-8",
	} {
		if got := Quote(in); got != want {
			t.Errorf("Quote(%q) = %q, want %q", in, got, want)
		}
	}
	if got := Quote(long); len(got) > maxForeign || !strings.HasSuffix(got, "…") {
		t.Errorf("long words become %d bytes", len(got))
	}
}

func FuzzQuote(f *testing.F) {
	for _, s := range []string{"", "a\nb", "\xff", strings.Repeat("é", 600), "\u2028x\u202e"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := Quote(s)
		if len(got) > maxForeign || !utf8.ValidString(got) {
			t.Fatalf("Quote(%q) = %q", s, got)
		}
		if i := strings.IndexFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
			t.Fatalf("Quote(%q) holds something unprintable at %d: %q", s, i, got)
		}
		if again := Quote(got); again != got {
			t.Fatalf("Quote is not stable: %q then %q", got, again)
		}
	})
}

func TestOutcome(t *testing.T) {
	for want, err := range map[string]error{
		"issued": nil, "denied": ErrDenied, "failed": fmt.Errorf("request x: %w: no", ErrFailed),
		"unavailable": ErrUnavailable, "no_token": fmt.Errorf("%w", ErrNoToken), "gone": fmt.Errorf("x: %w", ErrGone), "": errors.New("another"),
	} {
		if got := Outcome(err); got != want {
			t.Errorf("Outcome(%v) = %q, want %q", err, got, want)
		}
	}
}
