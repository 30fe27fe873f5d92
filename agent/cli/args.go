// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Normalize gives flags that have one dash, as Go's flag package and so SPIRE
// takes them, the two that pflag wants: -socketPath becomes --socketPath. It
// changes nothing that is a value:
//
//   - what follows a flag that takes a value and has no "=" is that value, even if
//     it begins with a dash, as both packages have it;
//   - what follows "--" is not looked at.
//
// A letter alone (-h), and letters of which the first is a short flag of the
// command (-v3), stay as they are. Commands are named before their flags.
func Normalize(root *cobra.Command, args []string) []string {
	command, n := leading(root, args)
	out := slices.Clone(args[:n])
	for i := n; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			return append(out, args[i:]...)
		}
		if !strings.HasPrefix(arg, "-") || arg == "-" {
			out = append(out, arg)
			continue
		}
		word := strings.TrimPrefix(strings.TrimPrefix(arg, "-"), "-")
		name, _, given := strings.Cut(word, "=")
		flag := lookup(command, name)
		out = append(out, dashes(command, arg, word, name, flag))
		if flag == nil && len(name) == 1 {
			flag = command.Flags().ShorthandLookup(name)
		}
		if flag != nil && flag.NoOptDefVal == "" && !given && i+1 < len(args) {
			i++
			out = append(out, args[i])
		}
	}
	return out
}

// leading follows args down the tree and says how many of them named commands.
func leading(root *cobra.Command, args []string) (command *cobra.Command, n int) {
	command = root
	for ; n < len(args); n++ {
		i := slices.IndexFunc(command.Commands(), func(c *cobra.Command) bool { return c.Name() == args[n] || c.HasAlias(args[n]) })
		if i < 0 {
			break
		}
		command = command.Commands()[i]
	}
	return command, n
}

// lookup finds a flag by its long name, on the command or, if it is persistent,
// above it.
func lookup(c *cobra.Command, name string) *pflag.Flag {
	if f := c.Flags().Lookup(name); f != nil {
		return f
	}
	for ; c != nil; c = c.Parent() {
		if f := c.PersistentFlags().Lookup(name); f != nil {
			return f
		}
	}
	return nil
}

// dashes is arg with the dashes that pflag wants.
func dashes(c *cobra.Command, arg, word, name string, flag *pflag.Flag) string {
	switch {
	case strings.HasPrefix(arg, "--"), len(name) <= 1:
		return arg
	case flag == nil && name != "help" && c.Flags().ShorthandLookup(name[:1]) != nil:
		return arg
	}
	return "--" + word // Known, or unknown by its whole name.
}
