// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// got is what a command of the test's tree was run with.
type got struct {
	command, write, audience, level string
	silent                          bool
	args                            []string
}

// newTree makes "fetch" with a subcommand "jwt", and "dev", which takes a command.
func newTree(ran *got) *cobra.Command {
	newCommand := func(use string) *cobra.Command {
		var g got
		c := &cobra.Command{Use: use, RunE: func(c *cobra.Command, args []string) error {
			g.command, g.args = c.Name(), args
			*ran = g
			return nil
		}}
		c.Flags().StringVar(&g.write, "write", "", "")
		c.Flags().StringVar(&g.audience, "audience", "", "")
		c.Flags().StringVarP(&g.level, "level", "v", "", "")
		c.Flags().BoolVar(&g.silent, "silent", false, "")
		return c
	}
	fetch := newCommand("fetch")
	fetch.AddCommand(newCommand("jwt"))
	return New("v1", Group("api", "", "", fetch), newCommand("dev"))
}

func TestOneDashOrTwo(t *testing.T) {
	for line, want := range map[string]got{
		"api fetch":                               {command: "fetch"},
		"api fetch -write d":                      {command: "fetch", write: "d"},
		"api fetch --write d":                     {command: "fetch", write: "d"},
		"api fetch -write=d":                      {command: "fetch", write: "d"},
		"api fetch -write=":                       {command: "fetch"},
		"api fetch -write=a=-b":                   {command: "fetch", write: "a=-b"},
		"api fetch jwt -audience x -silent":       {command: "jwt", audience: "x", silent: true},
		"api fetch jwt -silent=false -audience x": {command: "jwt", audience: "x"},
		// Values that look like flags are values.
		"api fetch -write -silent":         {command: "fetch", write: "-silent"},
		"api fetch --write -silent":        {command: "fetch", write: "-silent"},
		"api fetch -write --audience":      {command: "fetch", write: "--audience"},
		"api fetch -write -- -silent":      {command: "fetch", write: "--", silent: true},
		"api fetch -write -h":              {command: "fetch", write: "-h"},
		"api fetch -write -":               {command: "fetch", write: "-"},
		"api fetch -silent -write jwt":     {command: "fetch", write: "jwt", silent: true},
		"api fetch -write -audience -v -w": {command: "fetch", write: "-audience", level: "-w"},
		// Short flags, with their values in all forms.
		"api fetch -v3":                 {command: "fetch", level: "3"},
		"api fetch -v -silent":          {command: "fetch", level: "-silent"},
		"api fetch -v=debug -silent":    {command: "fetch", level: "debug", silent: true},
		"api fetch -level debug":        {command: "fetch", level: "debug"},
		"dev -silent -- prog -write -x": {command: "dev", silent: true, args: []string{"prog", "-write", "-x"}},
		"dev -- -silent --":             {command: "dev", args: []string{"-silent", "--"}},
		"dev -write x -- api fetch -h":  {command: "dev", write: "x", args: []string{"api", "fetch", "-h"}},
	} {
		t.Run(line, func(t *testing.T) {
			var ran got
			if err := Execute(t.Context(), newTree(&ran), strings.Fields(line)); err != nil {
				t.Fatal(err)
			}
			if len(ran.args) == 0 {
				ran.args = nil
			}
			if ran.command != want.command || ran.write != want.write || ran.audience != want.audience ||
				ran.level != want.level || ran.silent != want.silent || !slices.Equal(ran.args, want.args) {
				t.Errorf("got %+v, want %+v", ran, want)
			}
		})
	}
}

func TestEmptyArgumentsStay(t *testing.T) {
	var ran got
	if err := Execute(t.Context(), newTree(&ran), []string{"api", "fetch", "-write", "", "-audience", "x"}); err != nil {
		t.Fatal(err)
	}
	if ran.write != "" || ran.audience != "x" {
		t.Errorf("got %+v", ran)
	}
}

func TestMistakesOfUsage(t *testing.T) {
	for line, want := range map[string]string{
		"api fetch -socketPaht x": `unknown flag: --socketPaht (signet-agent api fetch --help lists the flags)`,
		"api fetch -x":            `unknown shorthand flag: 'x' in -x`,
		"api fetch -write":        `flag needs an argument: --write`,
		"api fetch -silent=often": `invalid argument "often" for "--silent" flag`,
		"api":                     `which of fetch? (signet-agent api --help)`,
		"api fecth":               `unknown command "fecth": signet-agent api has fetch`,
		"apy fetch":               `unknown command "apy": signet-agent has api, dev`,
	} {
		t.Run(line, func(t *testing.T) {
			var ran got
			err := Execute(t.Context(), newTree(&ran), strings.Fields(line))
			if !isUsage(err) || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want a UsageError with %q", err, want)
			}
		})
	}
}

func TestHelpInAllSpellings(t *testing.T) {
	for _, line := range []string{"api fetch -h", "api fetch -help", "api fetch --help", "help api fetch", "api fetch -silent -help"} {
		t.Run(line, func(t *testing.T) {
			var ran got
			var out strings.Builder
			root := newTree(&ran)
			root.SetOut(&out)
			if err := Execute(t.Context(), root, strings.Fields(line)); err != nil {
				t.Fatal(err)
			}
			if ran.command != "" || !strings.Contains(out.String(), "--audience") {
				t.Errorf("ran %q, printed %q", ran.command, out.String())
			}
		})
	}
}

func TestWordsAreCommandsAndFlagsAreTheAgents(t *testing.T) {
	for _, args := range [][]string{nil, {""}, {"-v"}, {"--node-id", "api"}, {"--"}, {"-"}} {
		if IsCommand(args) {
			t.Errorf("%q is taken for a command", args)
		}
	}
	for _, args := range [][]string{{"api"}, {"nonsense"}, {"dev", "--id"}} {
		if !IsCommand(args) {
			t.Errorf("%q is not taken for a command", args)
		}
	}
}
