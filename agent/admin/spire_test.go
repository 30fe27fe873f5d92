// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	debugv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/debug/v1"
	loggerv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/logger/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
)

func (f *fixture) logger() *slog.Logger { return slog.New(slog.NewTextHandler(f.log, nil)) }

func TestGetInfo(t *testing.T) {
	f := start(t)
	c := debugv1.NewDebugClient(f.dial(t))
	info, err := c.GetInfo(t.Context(), &debugv1.GetInfoRequest{})
	must(t, err)
	if info.Uptime < 90 || info.Uptime > 120 || info.CachedX509SvidsCount != 0 || len(info.SvidChain) != 0 || info.LastSyncSuccess != 0 {
		t.Errorf("with nothing there: %v", info)
	}
	f.publish(t, "v1", "shop", "cart")
	f.publish(t, "v2", "shop", "till")
	f.heard = time.Unix(1_900_000_000, 5)
	info, err = c.GetInfo(t.Context(), &debugv1.GetInfoRequest{})
	must(t, err)
	//lint:ignore SA1019 Older clients read this one.
	old := info.SvidsCount
	if info.CachedX509SvidsCount != 2 || old != 2 || info.CachedJwtSvidsCount != 0 || info.LastSyncSuccess != 1_900_000_000 {
		t.Errorf("with two volumes: %v", info)
	}
}

func TestLogLevel(t *testing.T) {
	f := start(t)
	c := loggerv1.NewLoggerClient(f.dial(t))
	log := slog.New(slog.NewTextHandler(f.log, &slog.HandlerOptions{Level: f.level}))
	want := func(what string, got *types.Logger, err error, current types.LogLevel) {
		t.Helper()
		must(t, err)
		if got.CurrentLevel != current || got.LaunchLevel != types.LogLevel_INFO {
			t.Errorf("%s: %v, want %s", what, got, current)
		}
	}
	got, err := c.GetLogger(t.Context(), &loggerv1.GetLoggerRequest{})
	want("at first", got, err, types.LogLevel_INFO)
	log.Debug("too early")
	for _, l := range levels {
		got, err = c.SetLogLevel(t.Context(), &loggerv1.SetLogLevelRequest{NewLevel: l.api})
		want("set", got, err, l.api)
		got, err = c.GetLogger(t.Context(), &loggerv1.GetLoggerRequest{})
		want("after it was set", got, err, l.api)
		for _, level := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError} {
			if enabled := log.Enabled(t.Context(), level); enabled != (level >= l.slog) {
				t.Errorf("at %s, %s is logged: %t", l.api, level, enabled)
			}
		}
	}
	got, err = c.ResetLogLevel(t.Context(), &loggerv1.ResetLogLevelRequest{})
	want("reset", got, err, types.LogLevel_INFO)
	if strings.Contains(f.log.String(), "too early") {
		t.Error("debug was logged at info")
	}
	for _, bad := range []types.LogLevel{types.LogLevel_UNSPECIFIED, 99} {
		_, err := c.SetLogLevel(t.Context(), &loggerv1.SetLogLevelRequest{NewLevel: bad})
		wantCode(t, bad.String(), err, codes.InvalidArgument)
	}
	if f.level.Level() != slog.LevelInfo {
		t.Errorf("a level that is none has changed it to %s", f.level.Level())
	}
}

// A log that falls silent, or begins to talk, says why.
func TestLogLevelChangesAreLogged(t *testing.T) {
	f := start(t)
	c := loggerv1.NewLoggerClient(f.dial(t))
	for _, to := range []types.LogLevel{types.LogLevel_ERROR, types.LogLevel_DEBUG} {
		_, err := c.SetLogLevel(t.Context(), &loggerv1.SetLogLevelRequest{NewLevel: to})
		must(t, err)
	}
	for _, want := range []string{"from=INFO to=ERROR", "from=ERROR to=DEBUG"} {
		if !strings.Contains(f.log.String(), want) {
			t.Errorf("the log has no %q:\n%s", want, f.log)
		}
	}
}
