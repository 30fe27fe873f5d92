// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/signet-spiffe/signet/integration/cluster"
)

// FailpointAgentImage is an agent that tests can kill at every step
// (internal/failpoint). Nothing but a test installs it.
const FailpointAgentImage = registry + "signet-agent:" + Version + "-failpoint"

var failpointAgent = program{dir: ".", pkg: "./agent", ref: FailpointAgentImage, entrypoint: "/signet-agent", tags: "failpoint"}

// BuildFailpointAgent is Build for FailpointAgentImage. The binary is kept apart
// from those of real images.
func BuildFailpointAgent(ctx context.Context, progress io.Writer) (cluster.Image, error) {
	root, err := repository()
	if err != nil {
		return cluster.Image{}, err
	}
	bin := filepath.Join(root, "bin", "failpoint")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return cluster.Image{}, fmt.Errorf("build images: %w", err)
	}
	unlock, err := lock(bin)
	if err != nil {
		return cluster.Image{}, err
	}
	defer unlock()
	fmt.Fprintln(progress, "building signet-agent with failpoints")
	if err := failpointAgent.install(ctx, root, bin); err != nil {
		return cluster.Image{}, err
	}
	return cluster.Image{
		Ref:        failpointAgent.ref,
		Binary:     filepath.Join(bin, filepath.Base(failpointAgent.pkg)),
		Entrypoint: []string{failpointAgent.entrypoint},
	}, nil
}
