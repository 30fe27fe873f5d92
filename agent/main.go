// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/signet-spiffe/signet/agent/cli"
	"github.com/signet-spiffe/signet/internal/observe"
)

// version is set by the linker.
var version = "v0.0.0-dev"

// Exit codes: 1 says that something failed, 2 that the command line is wrong.
const (
	exitFailure = 1
	exitUsage   = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := execute(ctx, os.Args[1:], run)
	stop()
	os.Exit(code)
}

// execute parses args, runs the agent or the subcommand that they name, and turns
// its error into an exit code.
func execute(ctx context.Context, args []string, run func(context.Context, *options) error) int {
	var err error
	switch {
	case len(args) == 1 && args[0] == "help":
		err = newCommand(run, []string{"--help"}).ExecuteContext(ctx)
	case cli.IsCommand(args):
		err = runCommand(ctx, args)
	default:
		err = newCommand(run, args).ExecuteContext(ctx)
	}
	var quiet *cli.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &quiet):
		return quiet.Code
	}
	fmt.Fprintln(os.Stderr, "signet-agent:", err)
	var usage *observe.UsageError
	if errors.As(err, &usage) {
		return exitUsage
	}
	return exitFailure
}

func newCommand(run func(context.Context, *options) error, args []string) *cobra.Command {
	o := &options{}
	command := &cobra.Command{
		Use:   "signet-agent",
		Short: "SPIFFE identities for every pod of this node, signed by cert-manager",
		Long: `signet-agent gives every pod that mounts its CSI volume an X.509-SVID: as files
and over a SPIFFE Workload API socket, both in the volume. It makes the keys in
memory, has cert-manager sign them, verifies and renews them.

It runs on each node as a DaemonSet and registers itself with kubelet. Flags that
csi-driver-spiffe has are named as there and mean the same.

It also has commands, for a terminal; each has its own --help:
` + cli.List(commands()...),
		Args:          cobra.NoArgs,
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(command *cobra.Command, _ []string) error {
			if err := o.complete(); err != nil {
				return err
			}
			return run(command.Context(), o)
		},
	}
	o.addFlags(command.Flags())
	command.SetArgs(args)
	command.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return observe.Usagef("%v (--help lists the flags)", err)
	})
	return command
}
