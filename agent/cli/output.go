// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/pflag"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/signet-spiffe/signet/internal/observe"
)

// Output is the flag -output: for people ("pretty", also when not given) or for
// programs ("json"). The zero value is ready.
type Output struct{ json bool }

var _ pflag.Value = (*Output)(nil)

// AddFlag registers -output.
func (o *Output) AddFlag(flags *pflag.FlagSet) {
	flags.Var(o, "output", "How to print: pretty or json")
}

// JSON says whether the output is for programs.
func (o *Output) JSON() bool { return o.json }

// String implements pflag.Value.
func (o *Output) String() string {
	if o.json {
		return "json"
	}
	return "pretty"
}

// Set implements pflag.Value.
func (o *Output) Set(s string) error {
	switch s {
	case "pretty", "json":
		o.json = s == "json"
		return nil
	}
	return errors.New("want pretty or json")
}

// Type implements pflag.Value.
func (o *Output) Type() string { return "pretty|json" }

// WriteProtoJSON writes messages as SPIRE's command line does: one line of JSON, names
// as in the .proto file, fields without a value too; one message as an object,
// several as an array. Equal messages give equal bytes.
func WriteProtoJSON(w io.Writer, messages ...proto.Message) error {
	values := make([]any, 0, len(messages))
	for _, m := range messages {
		v, err := jsonValue(m)
		if err != nil {
			return err
		}
		values = append(values, v)
	}
	var all any = values
	if len(values) == 1 {
		all = values[0]
	}
	return WriteJSON(w, all)
}

// WriteJSON writes v as one line.
func WriteJSON(w io.Writer, v any) error {
	if err := json.NewEncoder(w).Encode(v); err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	return nil
}

// jsonValue is m as encoding/json would have decoded it; protojson's own bytes are
// not stable.
func jsonValue(m proto.Message) (any, error) {
	b, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("write JSON: %w", err)
	}
	var v any
	decoder := json.NewDecoder(bytes.NewReader(b))
	decoder.UseNumber()
	if err := decoder.Decode(&v); err != nil {
		return nil, fmt.Errorf("write JSON: %w", err)
	}
	return withoutNulls(v), nil
}

// withoutNulls leaves out fields of messages that are not set. It changes v.
func withoutNulls(v any) any {
	switch v := v.(type) {
	case map[string]any:
		maps.DeleteFunc(v, func(_ string, field any) bool { return field == nil })
		for name, field := range v {
			v[name] = withoutNulls(field)
		}
	case []any:
		for i := range v {
			v[i] = withoutNulls(v[i])
		}
	}
	return v
}

// Clean makes foreign words fit for a terminal: control characters, of which some
// are commands to it, become spaces.
func Clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
}

// DefaultTimeout is SPIRE's.
const DefaultTimeout = 5 * time.Second

// Timeout is the flag -timeout. Add it with AddFlag.
type Timeout struct{ limit time.Duration }

// AddFlag registers -timeout.
func (t *Timeout) AddFlag(flags *pflag.FlagSet) {
	flags.DurationVar(&t.limit, "timeout", DefaultTimeout, "How long to wait for an answer, as in 500ms or 1m; 0: as long as it takes")
}

// Context bounds ctx. The error is a *observe.UsageError.
func (t *Timeout) Context(ctx context.Context) (context.Context, context.CancelFunc, error) {
	switch {
	case t.limit < 0:
		return nil, nil, observe.Usagef("-timeout %s: must not be negative", t.limit)
	case t.limit == 0:
		ctx, cancel := context.WithCancel(ctx)
		return ctx, cancel, nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, t.limit, fmt.Errorf("no answer within %s (-timeout)", t.limit))
	return ctx, cancel, nil
}
