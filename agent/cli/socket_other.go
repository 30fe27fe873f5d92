// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package cli

import (
	"context"
	"net"
)

func dialUnix(ctx context.Context, path string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", path)
}
