// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package dev

import (
	"github.com/spf13/cobra"

	"github.com/signet-spiffe/signet/internal/observe"
)

// Command is "signet-agent dev".
func Command() *cobra.Command {
	o := &options{}
	c := &cobra.Command{
		Use:   "dev [flags] [-- PROGRAM [ARGUMENT...]]",
		Short: "SPIFFE identities on a laptop: no cluster, no root; for development only",
		Long: `signet-agent dev gives programs on this machine SPIFFE identities over the same
Workload API that pods have in the cluster, so that a program written against it
runs there unchanged. It needs no cluster and no root. It is for development only:
its CA lives in memory and signs whatever you ask for.

Each --id has a socket of its own, as each pod has. Without "--" it prints where
the sockets are and serves until Ctrl-C. With "--" it runs the program with
SPIFFE_ENDPOINT_SOCKET set to the first identity's socket, in a directory made for
that run, and ends with the program's exit code; SIGNET_DEV_DIR names the directory,
in which the others are: $SIGNET_DEV_DIR/NAME/spiffe.sock.

Identities of one trust domain trust each other. Those of different trust domains
are federated. Nothing is left when it ends.`,
		Example: `  # One identity. Put the line that it prints into the shell of your program.
  signet-agent dev

  # Two services that speak mTLS to each other: one socket each.
  signet-agent dev --id spiffe://dev.local/ns/shop/sa/web --id spiffe://dev.local/ns/shop/sa/cart

  # Run tests with an identity; the exit code is theirs.
  signet-agent dev --id spiffe://dev.local/ns/shop/sa/web -- go test ./...

  # Does it cope with rotation, of SVIDs and of the CA?
  signet-agent dev --lifetime 10s --rotate-ca 30s -- ./web

  # Two trust domains, federated.
  signet-agent dev --id web=spiffe://a.test/ns/x/sa/web --id db=spiffe://b.test/ns/y/sa/db`,
		Args: func(c *cobra.Command, args []string) error {
			switch dash := c.ArgsLenAtDash(); {
			case len(args) == 0 && dash == 0:
				return observe.Usagef("there is no program after --")
			case len(args) > 0 && dash != 0:
				return observe.Usagef("what is %q? A program to run stands after --, as in: signet-agent dev -- %s", args[0], args[0])
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				o.program = args
			}
			if err := o.complete(); err != nil {
				return err
			}
			return run(c.Context(), o, c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	o.addFlags(c.Flags())
	c.Flags().SortFlags = false
	return c
}
