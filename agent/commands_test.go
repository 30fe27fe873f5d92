// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"strings"
	"testing"
)

// The agent's own command line is what it was before there were subcommands: words
// are values of its flags, wherever they stand.
func TestTheAgentsFlagsKnowNoCommands(t *testing.T) {
	kubeconfig := "--kubeconfig=" + writeKubeconfig(t)
	for _, args := range [][]string{
		{"--node-id", "api", kubeconfig},
		{"--issuer-name", "dev", "--node-id=node-1", kubeconfig},
		{"-v", "2", "--node-id=node-1", kubeconfig},
		{"-v2", "--node-id=node-1", kubeconfig},
	} {
		ran := false
		if code := execute(t.Context(), args, func(context.Context, *options) error { ran = true; return nil }); code != 0 || !ran {
			t.Errorf("%q: exit code %d, agent ran: %t", args, code, ran)
		}
	}
}

func TestWordsThatAreNoCommandsAreUsage(t *testing.T) {
	for line, want := range map[string]int{
		"--node-id":      exitUsage,
		"--no-such-flag": exitUsage,
		"nonsense":       exitUsage,
		"--version":      0,
	} {
		agent := func(context.Context, *options) error { t.Errorf("%q runs the agent", line); return nil }
		if got := execute(t.Context(), strings.Fields(line), agent); got != want {
			t.Errorf("%q: exit code %d, want %d", line, got, want)
		}
	}
}
