// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/signet-spiffe/signet/internal/observe"
)

// ExitError ends the process with a code and without a word: whoever failed has
// said why.
type ExitError struct{ Code int }

// Error implements error.
func (e *ExitError) Error() string { return fmt.Sprintf("exit status %d", e.Code) }

// IsCommand says whether args name a subcommand, or try to: their first is a word
// and no flag. Otherwise they are the agent's own.
func IsCommand(args []string) bool {
	return len(args) > 0 && args[0] != "" && !strings.HasPrefix(args[0], "-")
}

// New makes the tree of subcommands. Each command's flags are as pflag knows them;
// Normalize lets them be given with one dash.
func New(version string, commands ...*cobra.Command) *cobra.Command {
	root := Group("signet-agent", "SPIFFE identities for every pod of this node, signed by cert-manager", "", commands...)
	root.Version = version
	root.SilenceErrors = true
	root.SilenceUsage = true
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return observe.Usagef("%v (%s --help lists the flags)", err, c.CommandPath())
	})
	return root
}

// Execute runs the subcommand of root that args name. Mistakes on the command line
// are *observe.UsageError.
func Execute(ctx context.Context, root *cobra.Command, args []string) error {
	root.SetArgs(Normalize(root, args))
	return root.ExecuteContext(ctx)
}

// Group is a command that only has subcommands.
func Group(use, short, long string, commands ...*cobra.Command) *cobra.Command {
	group := &cobra.Command{
		Use: use, Short: short, Long: long,
		Args: cobra.ArbitraryArgs, // RunE has better words.
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return observe.Usagef("which of %s? (%s --help)", names(c), c.CommandPath())
			}
			return observe.Usagef("unknown command %q: %s has %s", args[0], c.CommandPath(), names(c))
		},
	}
	group.AddCommand(commands...)
	return group
}

func names(c *cobra.Command) string {
	var all []string
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() && sub.Name() != "help" {
			all = append(all, sub.Name())
		}
	}
	return strings.Join(all, ", ")
}

// NoArgs refuses arguments that are no flags, as a mistake of usage.
func NoArgs(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return observe.Usagef("%s takes no argument, but there is %q (%s --help lists the flags)", c.CommandPath(), args[0], c.CommandPath())
}

// List names commands in a table, for the agent's own help.
func List(commands ...*cobra.Command) string {
	var b strings.Builder
	for _, c := range commands {
		fmt.Fprintf(&b, "  %-12s %s\n", c.Name(), c.Short)
	}
	return b.String()
}
