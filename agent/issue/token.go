// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package issue

import (
	"fmt"
	"io"
	"log/slog"
)

// redacted is what a Token shows of itself.
const redacted = "[redacted token]"

// Token is a bearer token. It does not print: not by fmt, slog, JSON or text
// encoding, and not as an unexported field of something that is printed,
// because the value sits behind a pointer, which fmt prints as an address
// where it may not call methods.
type Token struct{ value *string }

// NewToken wraps a bearer token. The empty string gives the zero Token.
func NewToken(s string) Token {
	if s == "" {
		return Token{}
	}
	return Token{value: &s}
}

// IsZero says whether there is no token.
func (t Token) IsZero() bool { return t.value == nil }

// Equal says whether both hold the same token. The operator == compares where the
// value is kept.
func (t Token) Equal(other Token) bool { return t.Reveal() == other.Reveal() }

// Reveal returns the token itself. Only the code that sets the Authorization
// header has a reason to call it.
func (t Token) Reveal() string {
	if t.value == nil {
		return ""
	}
	return *t.value
}

// String implements fmt.Stringer without the value.
func (t Token) String() string {
	if t.IsZero() {
		return "[no token]"
	}
	return redacted
}

// GoString implements fmt.GoStringer without the value.
func (t Token) GoString() string { return t.String() }

// Format implements fmt.Formatter without the value, for every verb and flag.
func (t Token) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, t.String()) }

// LogValue implements slog.LogValuer without the value.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

// MarshalText implements encoding.TextMarshaler without the value, and so
// covers encoding/json as well.
func (t Token) MarshalText() ([]byte, error) { return []byte(t.String()), nil }
