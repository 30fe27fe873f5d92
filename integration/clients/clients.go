// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Package clients names the programs of others that speak the Workload API and that
// the end-to-end tests run in pods, against the real socket. docs/clients.md tells
// users what was run; a test here holds the two together.
//
// It owns their list and nothing else: integration/tools pins and integration/cluster
// builds them.
package clients

import (
	"context"
	"io"

	"github.com/signet-spiffe/signet/integration/cluster"
)

// The programs' names, which are also those of their binaries, images and containers.
const (
	SpireAgent   = "spire-agent"
	Ghostunnel   = "ghostunnel"
	SpiffeHelper = "spiffe-helper"
)

// Programs are all of them.
var Programs = []cluster.Program{
	{Name: SpireAgent, Module: "github.com/spiffe/spire", Package: "github.com/spiffe/spire/cmd/spire-agent"},
	// v1.8.4 does not compile where it leaves PKCS #11 out.
	{Name: Ghostunnel, Module: "github.com/ghostunnel/ghostunnel", Package: "github.com/ghostunnel/ghostunnel", Cgo: true},
	{Name: SpiffeHelper, Module: "github.com/spiffe/spiffe-helper", Package: "github.com/spiffe/spiffe-helper/cmd/spiffe-helper"},
}

// Image is what pods name to run a program.
func Image(program string) string { return "third-party.example/" + program + ":pinned" }

// Files are laid into a program's image, by absolute path.
type Files map[string]map[string][]byte

// Build makes what is not in the cache yet, some minutes of work at the first time,
// and says what images to load.
func Build(ctx context.Context, files Files, progress io.Writer) ([]cluster.Image, error) {
	binaries, err := cluster.EnsurePrograms(ctx, Programs, progress)
	if err != nil {
		return nil, err
	}
	var images []cluster.Image
	for _, p := range Programs {
		images = append(images, cluster.Image{
			Ref: Image(p.Name), Binary: binaries[p.Name], Entrypoint: []string{"/" + p.Name},
			User: "65532:65532", ExtraFiles: files[p.Name],
		})
	}
	return images, nil
}
