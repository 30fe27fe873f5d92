// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"fmt"
	"io"
	"log/slog"

	"github.com/spf13/pflag"
	"k8s.io/klog/v2"
)

// LogOptions are the flags of the log.
type LogOptions struct {
	// Level is "1" to "5" (csi-driver-spiffe's numbers: 1 and 2 are info, 3 and
	// above debug) or error, warn, info, debug.
	Level string
	// Format is "text" or "json".
	Format string
}

// AddFlags registers --log-level (-v) and --log-format with their defaults.
func (o *LogOptions) AddFlags(flags *pflag.FlagSet) {
	flags.StringVarP(&o.Level, "log-level", "v", "1", "How much to log: error, warn, info, debug, or csi-driver-spiffe's numbers 1 to 5 (1 and 2 are info, 3 and above debug)")
	flags.StringVar(&o.Format, "log-format", "text", "How to write the log: text or json")
}

// NewLogger makes the process's logger, writing to w, and makes it the default of
// slog and of Kubernetes' klog. Call it once, before anything logs.
func NewLogger(w io.Writer, o LogOptions) (*slog.Logger, error) {
	level, err := parseLevel(o.Level)
	if err != nil {
		return nil, err
	}
	var handler slog.Handler
	switch o.Format {
	case "text":
		handler = slog.NewTextHandler(w, &slog.HandlerOptions{Level: level})
	case "json":
		handler = slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level})
	default:
		return nil, Usagef("--log-format %q is unknown (want text or json)", o.Format)
	}
	logger := slog.New(handler)
	slog.SetDefault(logger)
	klog.SetSlogLogger(logger.With("subsystem", "client-go"))
	return logger, nil
}

func parseLevel(s string) (slog.Level, error) {
	switch s {
	case "error":
		return slog.LevelError, nil
	case "warn":
		return slog.LevelWarn, nil
	case "info", "1", "2":
		return slog.LevelInfo, nil
	case "debug", "3", "4", "5":
		return slog.LevelDebug, nil
	}
	return 0, Usagef("--log-level %q is unknown (want error, warn, info, debug or 1 to 5)", s)
}

// UsageError is a mistake on the command line: one clear line, exit code 2.
type UsageError struct{ message string }

// Error implements error.
func (e *UsageError) Error() string { return e.message }

// Usagef makes a UsageError.
func Usagef(format string, args ...any) error {
	return &UsageError{message: fmt.Sprintf(format, args...)}
}
