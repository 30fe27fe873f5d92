// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"

	"github.com/signet-spiffe/signet/internal/observe"
)

// knownSockets is where volumes are mounted by our examples, and by Istio.
var knownSockets = []string{"/var/run/secrets/spiffe.io/spiffe.sock", "/var/run/secrets/workload-spiffe-uds/socket"}

// endpoint is which Workload API a command speaks to, and how long.
type endpoint struct {
	socketPath string
	timeout    Timeout
	// known finds sockets where nobody named one; nil: findSockets.
	known func() []string
}

func (e *endpoint) addFlags(flags *pflag.FlagSet) {
	flags.StringVar(&e.socketPath, "socketPath", "", "Socket of the Workload API, a path or unix:///path (default $"+workloadapi.SocketEnv+", else well-known places)")
	e.timeout.AddFlag(flags)
}

// path resolves the socket. Errors are *observe.UsageError.
func (e *endpoint) path() (string, error) {
	if e.socketPath != "" {
		return socketOf("-socketPath", e.socketPath)
	}
	if env := os.Getenv(workloadapi.SocketEnv); env != "" {
		return socketOf(workloadapi.SocketEnv, env)
	}
	known := e.known
	if known == nil {
		known = findSockets
	}
	switch found := known(); len(found) {
	case 0:
		return "", observe.Usagef("which socket? Set %s=unix:///path or give -socketPath. None was found at %s, nor one of signet-agent dev",
			workloadapi.SocketEnv, strings.Join(knownSockets, " or "))
	case 1:
		return found[0], nil
	default:
		return "", observe.Usagef("which socket? There are %s: set %s or give -socketPath", strings.Join(found, ", "), workloadapi.SocketEnv)
	}
}

func socketOf(from, value string) (string, error) {
	path, err := ParseSocket(value)
	if err != nil {
		return "", observe.Usagef("%s %v", from, err)
	}
	return path, nil
}

// findSockets looks at well-known places: those of a pod, those of the container that
// a debug container shares its processes with, those of signet-agent dev. The first
// kind that has any counts.
func findSockets() []string {
	for _, pattern := range []string{"", "/proc/1/root"} {
		var found []string
		for _, path := range knownSockets {
			if isSocket(pattern + path) {
				found = append(found, pattern+path)
			}
		}
		if len(found) > 0 {
			return found
		}
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		found, _ := filepath.Glob(filepath.Join(dir, "signet", "*", "spiffe.sock")) // Fails for bad patterns only.
		return found
	}
	return nil
}

// session is a connection to the Workload API.
type session struct {
	path string
	conn *grpc.ClientConn
	ctx  context.Context // Bounded by -timeout.
	end  context.CancelFunc
}

// open connects. An error says why that cannot be done. Call close.
func (e *endpoint) open(ctx context.Context) (*session, error) {
	path, err := e.path()
	if err != nil {
		return nil, err
	}
	ctx, cancel, err := e.timeout.Context(ctx)
	if err != nil {
		return nil, err
	}
	if err := Reach(ctx, path); err != nil {
		cancel()
		return nil, err
	}
	conn, err := Dial(path)
	if err != nil {
		cancel()
		return nil, err
	}
	return &session{path: path, conn: conn, ctx: ctx, end: cancel}, nil
}

func (s *session) close() {
	s.end()
	_ = s.conn.Close() // It was only asked.
}

// explain adds to an RPC's error which socket it is about, and what to do.
func (s *session) explain(err error) error {
	explained := Explain(s.ctx, err)
	if hint := hintFor(err); hint != "" {
		return fmt.Errorf("%s: %w; %s", s.path, explained, hint)
	}
	return fmt.Errorf("%s: %w", s.path, explained)
}
