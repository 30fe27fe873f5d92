// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"time"

	debugv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/debug/v1"
	loggerv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/logger/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	"github.com/signet-spiffe/signet/agent/workload"
	"github.com/signet-spiffe/signet/internal/observe"
)

// debugService is spire.agent.debug.v1's Debug.
type debugService struct {
	debugv1.UnimplementedDebugServer
	started   time.Time
	workloads Workloads
	heard     func() time.Time
}

// GetInfo implements debugv1.DebugServer, as far as there is something to tell:
//   - svid_chain stays empty. It is the SVID of the agent itself, and this agent has
//     none: it proves who it is by its service account. A workload's SVID there would
//     be a lie, and spire-agent prints no chain where there is none.
//   - svids_count and cached_x509_svids_count are the volumes that have an SVID; the
//     other counts are of what this agent has not.
//   - last_sync_success is when the API server was last heard: now, while the watch of
//     requests stands. It takes the place of SPIRE's server.
func (s *debugService) GetInfo(context.Context, *debugv1.GetInfoRequest) (*debugv1.GetInfoResponse, error) {
	svids := int32(0)
	for _, w := range s.workloads.List() {
		if w.Phase == workload.Ready {
			svids++
		}
	}
	info := &debugv1.GetInfoResponse{
		Uptime:               int32(min(time.Since(s.started)/time.Second, math.MaxInt32)),
		CachedX509SvidsCount: svids,
	}
	//lint:ignore SA1019 Older clients read this one, and SPIRE's agent sets both.
	info.SvidsCount = svids
	if s.heard == nil {
		return info, nil
	}
	if heard := s.heard(); !heard.IsZero() {
		info.LastSyncSuccess = heard.Unix()
	}
	return info, nil
}

// loggerService is spire.api.agent.logger.v1's Logger.
type loggerService struct {
	loggerv1.UnimplementedLoggerServer
	level *observe.Level
	log   *slog.Logger
}

// levels are SPIRE's, the least severe first, each with what it is in slog. Nothing is
// logged below debug, and nothing above error: "trace" shows as much as "debug", and
// "fatal" and "panic" silence the log.
var levels = []struct {
	api  types.LogLevel
	slog slog.Level
}{
	{types.LogLevel_TRACE, slog.LevelDebug - 4},
	{types.LogLevel_DEBUG, slog.LevelDebug},
	{types.LogLevel_INFO, slog.LevelInfo},
	{types.LogLevel_WARN, slog.LevelWarn},
	{types.LogLevel_ERROR, slog.LevelError},
	{types.LogLevel_FATAL, slog.LevelError + 4},
	{types.LogLevel_PANIC, slog.LevelError + 8},
}

// GetLogger implements loggerv1.LoggerServer.
func (s *loggerService) GetLogger(context.Context, *loggerv1.GetLoggerRequest) (*types.Logger, error) {
	return &types.Logger{CurrentLevel: apiLevel(s.level.Level()), LaunchLevel: apiLevel(s.level.Launch())}, nil
}

// SetLogLevel implements loggerv1.LoggerServer.
func (s *loggerService) SetLogLevel(ctx context.Context, r *loggerv1.SetLogLevelRequest) (*types.Logger, error) {
	for _, l := range levels {
		if l.api == r.GetNewLevel() {
			s.set(ctx, l.slog)
			return s.GetLogger(ctx, nil)
		}
	}
	return nil, fmt.Errorf("%w: new_level %s is no log level", errInvalid, r.GetNewLevel())
}

// ResetLogLevel implements loggerv1.LoggerServer.
func (s *loggerService) ResetLogLevel(ctx context.Context, _ *loggerv1.ResetLogLevelRequest) (*types.Logger, error) {
	s.set(ctx, s.level.Launch())
	return s.GetLogger(ctx, nil)
}

// set changes the level and says so while the one of the two applies that logs more:
// a log that falls silent says why.
func (s *loggerService) set(ctx context.Context, level slog.Level) {
	before := s.level.Level()
	s.level.Set(min(before, level))
	s.log.Log(ctx, max(min(before, level), slog.LevelInfo), "log level changed", "from", apiLevel(before).String(), "to", apiLevel(level).String())
	s.level.Set(level)
}

func apiLevel(level slog.Level) types.LogLevel {
	for _, l := range levels {
		if level <= l.slog {
			return l.api
		}
	}
	return types.LogLevel_PANIC
}
