// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/signet-spiffe/signet/agent/cli"
	"github.com/signet-spiffe/signet/agent/dev"
)

// commands are what signet-agent does beside being the agent. They are made anew
// for each use: a command holds the flags that it was given.
func commands() []*cobra.Command {
	return append(cli.Commands(), cli.Workloads(), dev.Command())
}

// runCommand runs the subcommand that args name.
func runCommand(ctx context.Context, args []string) error {
	return cli.Execute(ctx, cli.New(version, commands()...), args)
}
