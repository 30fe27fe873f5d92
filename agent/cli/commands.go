// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import "github.com/spf13/cobra"

// Commands are the clients of the Workload API: api and healthcheck. They are made
// anew by each call.
func Commands() []*cobra.Command {
	fetch := newFetchX509("fetch", "Fetch identities from the Workload API: X.509-SVIDs, or (fetch jwt) JWT-SVIDs")
	fetch.AddCommand(newFetchX509("x509", "Fetch X.509-SVIDs, print what they are, and write them to files if asked to"), newFetchJWT())
	validate := Group("validate", "Have an SVID validated by the Workload API", "", newValidateJWT())
	api := Group("api", "Ask a SPIFFE Workload API, as a program in a pod does", apiHelp, fetch, newWatch(), validate)
	return []*cobra.Command{api, newHealthcheck()}
}

const apiHelp = `Ask a SPIFFE Workload API what it tells a workload. The commands, their flags and
their output are those of "spire-agent api"; flags may have one dash or two.

` + socketHelp

const socketHelp = `The socket is, in this order:
  -socketPath                  a path, or a URI (unix:///path)
  $SPIFFE_ENDPOINT_SOCKET      a URI, as programs read it
  what is found at             /var/run/secrets/spiffe.io/spiffe.sock,
                               /var/run/secrets/workload-spiffe-uds/socket, the same two below
                               /proc/1/root (in a debug container that shares the processes of
                               its target), and where "signet-agent dev" puts them

Exit codes: 0; 1, something failed; 2, the command line is wrong.`
