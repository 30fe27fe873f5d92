// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import "github.com/spf13/cobra"

// Commands are the clients of the Workload API.
func Commands() []*cobra.Command {
	return nil
}
