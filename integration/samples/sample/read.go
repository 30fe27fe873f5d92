// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

// readings is what read prints.
type readings struct {
	Reads int `json:"reads"`
	// Generations is how many different sets of files were met.
	Generations int `json:"generations"`
	// Serials are those of the different certificates met, in order.
	Serials  []string  `json:"serials"`
	Expired  int       `json:"expired"`
	Serial   string    `json:"serial"`
	NotAfter time.Time `json:"not_after"`
	Millis   float64   `json:"ms"`
}

func newReadCommand(p *printer) *cobra.Command {
	var (
		dir    string
		count  int
		period time.Duration
	)
	cmd := &cobra.Command{
		Use:   "read",
		Short: "Load certificate, key and bundle from the files, many times, and fail on a mismatch or an expired certificate",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			got, err := readRepeatedly(cmd.Context(), dir, count, period, p.now)
			p.print(got)
			return err
		},
	}
	cmd.Flags().StringVar(&dir, "dir", defaultDir, "directory of tls.crt, tls.key and ca.crt")
	cmd.Flags().IntVar(&count, "count", 1, "how many times")
	cmd.Flags().DurationVar(&period, "spread", 0, "spread the reads evenly over this time; 0: as fast as possible")
	return cmd
}

var errExpired = errors.New("certificate not valid at the time it was read")

func readRepeatedly(ctx context.Context, dir string, count int, period time.Duration, now func() time.Time) (readings, error) {
	var (
		got   readings
		last  string
		begun = now()
	)
	var tick <-chan time.Time
	if interval := period / time.Duration(max(count, 1)); interval > 0 {
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		tick = ticker.C
	}
	for got.Reads < count {
		id, err := readFiles(dir)
		if err != nil {
			return got, fmt.Errorf("read %d: %w", got.Reads+1, err)
		}
		leaf := id.svid.Certificates[0]
		got.Reads++
		if id.generation != last {
			got.Generations++
			last = id.generation
		}
		if at := now(); at.After(leaf.NotAfter) || at.Before(leaf.NotBefore) {
			got.Expired++
		}
		if serial := serialOf(leaf); len(got.Serials) == 0 || got.Serials[len(got.Serials)-1] != serial {
			got.Serials = append(got.Serials, serial)
		}
		got.Serial, got.NotAfter, got.Millis = serialOf(leaf), leaf.NotAfter, millis(now().Sub(begun))
		if tick == nil {
			continue
		}
		select {
		case <-tick:
		case <-ctx.Done():
			return got, context.Cause(ctx)
		}
	}
	if got.Expired > 0 {
		return got, fmt.Errorf("%d of %d reads: %w", got.Expired, got.Reads, errExpired)
	}
	return got, nil
}
