// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/pflag"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// defaultDir is where the examples mount the volume.
const defaultDir = "/var/run/secrets/spiffe.io"

const (
	fromSocket = "socket"
	fromFiles  = "files"
)

// source is an identity that follows rotation.
type source interface {
	x509svid.Source
	x509bundle.Source
	io.Closer
}

// sourceOptions are the flags that choose a source.
type sourceOptions struct {
	kind    string
	dir     string
	socket  string
	timeout time.Duration
}

func (o *sourceOptions) addFlags(flags *pflag.FlagSet) {
	flags.StringVar(&o.kind, "source", fromSocket, `where the identity comes from: "socket" (the Workload API) or "files"`)
	flags.StringVar(&o.dir, "dir", defaultDir, "directory of tls.crt, tls.key and ca.crt, for --source=files")
	o.addSocketFlags(flags)
}

func (o *sourceOptions) addSocketFlags(flags *pflag.FlagSet) {
	flags.StringVar(&o.socket, "socket", "", "address of the Workload API, unix:///…; default: the environment's "+workloadapi.SocketEnv)
	flags.DurationVar(&o.timeout, "timeout", 30*time.Second, "how long to wait for the identity")
}

// clientOptions are go-spiffe's.
func (o sourceOptions) clientOptions(more ...workloadapi.ClientOption) []workloadapi.ClientOption {
	if o.socket != "" {
		more = append(more, workloadapi.WithAddr(o.socket))
	}
	return more
}

// open waits for the first identity. Problems later on are printed; the identity
// before stays in use.
func (o sourceOptions) open(ctx context.Context, p *printer) (source, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("no identity after %s", o.timeout))
	defer cancel()
	switch o.kind {
	case fromSocket:
		s, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(o.clientOptions()...))
		if err != nil {
			return nil, fmt.Errorf("get an identity from the Workload API: %w", withCause(ctx, err))
		}
		return s, nil
	case fromFiles:
		s, err := openFiles(o.dir, func(err error) { p.event(event{Event: "error", Error: err.Error()}) })
		if err != nil {
			return nil, err
		}
		return s, nil
	}
	return nil, fmt.Errorf("--source %q is unknown (want %q or %q)", o.kind, fromSocket, fromFiles)
}

// withCause adds what ended ctx, if anything did.
func withCause(ctx context.Context, err error) error {
	if ctx.Err() == nil || errors.Is(err, context.Cause(ctx)) {
		return err
	}
	return fmt.Errorf("%w: %w", context.Cause(ctx), err)
}

// serialOf is a certificate's serial number in hexadecimal, as openssl and
// kubectl plugins show it.
func serialOf(c *x509.Certificate) string { return c.SerialNumber.Text(16) }
