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
	logger, _, err := NewAdjustableLogger(w, o)
	return logger, err
}

// NewAdjustableLogger is NewLogger with a handle by which the level can be changed
// while the process runs, Kubernetes' log included.
func NewAdjustableLogger(w io.Writer, o LogOptions) (*slog.Logger, *Level, error) {
	launch, err := parseLevel(o.Level)
	if err != nil {
		return nil, nil, err
	}
	level := NewLevel(launch)
	var handler slog.Handler
	switch o.Format {
	case "text":
		handler = slog.NewTextHandler(w, &slog.HandlerOptions{Level: level})
	case "json":
		handler = slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level})
	default:
		return nil, nil, Usagef("--log-format %q is unknown (want text or json)", o.Format)
	}
	logger := slog.New(handler)
	slog.SetDefault(logger)
	klog.SetSlogLogger(logger.With("subsystem", "client-go"))
	return logger, level, nil
}

// Level is how much a logger lets through. Safe for concurrent use.
type Level struct {
	current slog.LevelVar
	launch  slog.Level
}

// NewLevel makes the Level of a logger that was launched with it.
func NewLevel(launch slog.Level) *Level {
	l := &Level{launch: launch}
	l.Reset()
	return l
}

// Level implements slog.Leveler: the least severe level that is logged at present.
func (l *Level) Level() slog.Level { return l.current.Level() }

// Launch is the level that the process was started with.
func (l *Level) Launch() slog.Level { return l.launch }

// Set changes the level, for everything that is logged from then on.
func (l *Level) Set(level slog.Level) { l.current.Set(level) }

// Reset goes back to Launch.
func (l *Level) Reset() { l.Set(l.launch) }

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
