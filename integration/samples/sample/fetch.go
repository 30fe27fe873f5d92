// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// fetched is what fetch prints.
type fetched struct {
	ID        string    `json:"id"`
	Serial    string    `json:"serial"`
	Hint      string    `json:"hint,omitempty"`
	DNSNames  []string  `json:"dns_names,omitempty"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	// Chain is how many certificates the SVID has, Roots how many authorities
	// its trust domain's bundle has.
	Chain int `json:"chain"`
	Roots int `json:"roots"`
	// ReadyMillis is how long go-spiffe's X509Source took to be ready, and
	// Attempts how many streams it opened until then.
	ReadyMillis float64 `json:"ready_ms"`
	Attempts    int     `json:"attempts"`
}

func newFetchCommand(p *printer) *cobra.Command {
	var (
		o       sourceOptions
		attempt int
		output  string
	)
	cmd := &cobra.Command{
		Use:   "fetch",
		Short: "Get the identity from the Workload API once, as a go-spiffe X509Source does",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			got, err := fetch(cmd.Context(), o)
			if err != nil {
				return err
			}
			if attempt > 0 && got.Attempts > attempt {
				return fmt.Errorf("it took %d attempts to get an identity, at most %d were allowed", got.Attempts, attempt)
			}
			if output == "" {
				p.print(got)
				return nil
			}
			return printTo(output, got)
		},
	}
	o.addSocketFlags(cmd.Flags())
	cmd.Flags().IntVar(&attempt, "max-attempts", 0, "fail if it takes more attempts; 0: no matter")
	cmd.Flags().StringVar(&output, "output", "", "file to write the result to (a postStart hook's output is not kept)")
	return cmd
}

func printTo(path string, v any) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	(&printer{out: f, now: time.Now}).print(v)
	return f.Close()
}

func fetch(ctx context.Context, o sourceOptions) (fetched, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("no identity after %s", o.timeout))
	defer cancel()
	var streams streamCounter
	start := time.Now()
	s, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(
		o.clientOptions(workloadapi.WithDialOptions(grpc.WithChainStreamInterceptor(streams.intercept)))...))
	took := time.Since(start)
	if err != nil {
		return fetched{}, fmt.Errorf("after %d attempts: %w", streams.opened.Load(), errors.Join(withCause(ctx, err), streams.reason()))
	}
	defer s.Close()
	svid, err := s.GetX509SVID()
	if err != nil {
		return fetched{}, err
	}
	bundle, err := s.GetX509BundleForTrustDomain(svid.ID.TrustDomain())
	if err != nil {
		return fetched{}, err
	}
	return describeSVID(svid, bundle.X509Authorities(), took, int(streams.opened.Load())), nil
}

func describeSVID(svid *x509svid.SVID, roots []*x509.Certificate, took time.Duration, attempts int) fetched {
	leaf := svid.Certificates[0]
	return fetched{
		ID: svid.ID.String(), Serial: serialOf(leaf), Hint: svid.Hint, DNSNames: leaf.DNSNames,
		NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter,
		Chain: len(svid.Certificates), Roots: len(roots),
		ReadyMillis: millis(took), Attempts: attempts,
	}
}

// streamCounter counts the streams that a Workload API client opens, and keeps
// why the last one ended, which go-spiffe only logs.
type streamCounter struct {
	opened atomic.Int64
	last   atomic.Pointer[error]
}

func (c *streamCounter) intercept(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	c.opened.Add(1)
	s, err := streamer(ctx, desc, cc, method, opts...)
	if err != nil {
		c.last.Store(&err)
		return nil, err
	}
	return countedStream{s, c}, nil
}

// reason is the last error that was not our own hanging up.
func (c *streamCounter) reason() error {
	if err := c.last.Load(); err != nil {
		return *err
	}
	return nil
}

type countedStream struct {
	grpc.ClientStream
	counter *streamCounter
}

func (s countedStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if code := status.Code(err); err != nil && code != codes.Canceled && code != codes.DeadlineExceeded {
		s.counter.last.Store(&err)
	}
	return err
}
