// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/signet-spiffe/signet/internal/observe"
)

func newHealthcheck() *cobra.Command {
	var (
		e                endpoint
		shallow, verbose bool
	)
	c := &cobra.Command{
		Use: "healthcheck", Short: "Say whether a Workload API socket is healthy (exit code 0) or not (1)",
		Long: `Ask a Workload API socket whether it is healthy, by grpc.health.v1. It is when a
workload would have an answer at once. While the first SVID is being issued it is
not; -shallow takes that for healthy too: somebody is there.

` + socketHelp,
		Args: NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			p := &printer{w: c.OutOrStdout()}
			if verbose {
				p.printf("Checking agent health...\n")
			}
			err := e.healthy(c, shallow)
			var usage *observe.UsageError
			if errors.As(err, &usage) {
				return err
			}
			if err != nil {
				if _, err := fmt.Fprintf(c.ErrOrStderr(), "Agent is unhealthy: %v\n", err); err != nil {
					return err
				}
				return &ExitError{Code: 1}
			}
			p.printf("Agent is healthy.\n")
			return p.err
		},
	}
	e.addFlags(c.Flags())
	c.Flags().BoolVar(&shallow, "shallow", false, "Perform a less stringent health check: an identity that is pending is fine")
	c.Flags().BoolVar(&verbose, "verbose", false, "Print verbose information")
	return c
}

func (e *endpoint) healthy(c *cobra.Command, shallow bool) error {
	s, err := e.open(c.Context())
	if err != nil {
		return err
	}
	defer s.close()
	answer, err := healthpb.NewHealthClient(s.conn).Check(s.ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		return s.explain(err)
	}
	got := answer.GetStatus()
	if got == healthpb.HealthCheckResponse_SERVING || shallow && got == healthpb.HealthCheckResponse_NOT_SERVING {
		return nil
	}
	return fmt.Errorf("agent returned status %q", got)
}
