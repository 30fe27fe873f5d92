// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// ParseSocket takes a path, as SPIRE's -socketPath, or a URI as in
// SPIFFE_ENDPOINT_SOCKET (unix:///path), and returns an absolute path.
func ParseSocket(s string) (string, error) {
	switch {
	case s == "":
		return "", errors.New("is empty")
	case strings.HasPrefix(s, "tcp:"):
		return "", fmt.Errorf("%q: only Unix sockets are spoken to, unix:///path", s)
	case strings.HasPrefix(s, "@"), strings.HasPrefix(s, "unix:@"), strings.HasPrefix(s, "unix-abstract:"):
		return "", fmt.Errorf("%q: abstract sockets are open to everybody on the machine and not spoken to", s)
	case !strings.HasPrefix(s, "unix:"):
		return filepath.Abs(s)
	}
	u, err := url.Parse(s)
	if err != nil {
		return "", fmt.Errorf("%q is no URI: %w", s, err)
	}
	if u.Host != "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || !filepath.IsAbs(u.Path) {
		return "", fmt.Errorf("%q: must be unix:///absolute/path, with three slashes and nothing behind the path", s)
	}
	return filepath.Clean(u.Path), nil
}

// Dial makes a client of the gRPC server on a Unix socket. Nothing is connected to
// yet. Paths may be longer than a socket's address can hold, on Linux.
func Dial(path string) (*grpc.ClientConn, error) {
	dial := func(ctx context.Context, _ string) (net.Conn, error) { return dialUnix(ctx, path) }
	conn, err := grpc.NewClient("passthrough:///localhost", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(dial))
	if err != nil {
		return nil, fmt.Errorf("make a client of %s: %w", path, err)
	}
	return conn, nil
}

// Reach connects once and says in plain words why that cannot be done.
func Reach(ctx context.Context, path string) error {
	conn, err := dialUnix(ctx, path)
	if err != nil {
		return unreachable(path, err)
	}
	return conn.Close()
}

func unreachable(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("there is no socket at %s: is the path right, and the volume mounted here?", path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("user %d may not connect to %s: %w", os.Getuid(), path, fs.ErrPermission)
	case errors.Is(err, syscall.ECONNREFUSED) && !isSocket(path), errors.Is(err, syscall.ENOTSOCK):
		return fmt.Errorf("%s is not a socket", path)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("nobody listens on %s: the agent is not running, or was stopped without removing its socket", path)
	}
	return fmt.Errorf("connect to %s: %w", path, err)
}

func isSocket(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().Type() == fs.ModeSocket
}

// Explain says in plain words what an RPC's error means. ctx is the one that the
// RPC was given.
func Explain(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	s := status.Convert(err)
	said := Clean(s.Message())
	if s.Code() == codes.DeadlineExceeded {
		awaitDeadline(ctx)
	}
	cause := context.Cause(ctx)
	switch {
	case cause != nil && s.Code() == codes.DeadlineExceeded:
		return cause
	case cause != nil && s.Code() == codes.Canceled:
		return errors.New("interrupted")
	case s.Code() == codes.Unknown && said == "":
		return err
	}
	return fmt.Errorf("%s: %s", s.Code(), said)
}

// awaitDeadline waits for ctx to end if that is about to happen: a server is told of
// the client's deadline, and may be the first to notice.
func awaitDeadline(ctx context.Context) {
	const slack = 200 * time.Millisecond
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < slack {
		<-ctx.Done()
	}
}

// hintFor says what to do about an error of the Workload API; empty where nothing
// is to be added.
func hintFor(err error) string {
	switch status.Code(err) {
	case codes.PermissionDenied:
		return "this socket's workload has no identity, or has been removed: the pod's Events say why (kubectl describe pod)"
	case codes.DeadlineExceeded:
		return "the identity is being issued, or the agent is stuck: the pod's Events and the agent's log say which; -timeout waits longer"
	case codes.Unimplemented:
		return "this Workload API does not have that profile"
	}
	return ""
}
