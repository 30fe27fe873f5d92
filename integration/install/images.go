// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/signet-spiffe/signet/integration/cluster"
)

// Version is what the images are tagged with; the manifests name it too.
const Version = "v0.1.0"

const registry = "ghcr.io/signet-spiffe/"

// AgentImage is the agent's image.
const AgentImage = registry + "signet-agent:" + Version

// SampleImage is the image of integration/samples/sample.
const SampleImage = registry + "signet-sample:" + Version

// program is a binary of the repository and the image it goes into.
type program struct {
	// dir is its module, relative to the repository; pkg is relative to dir.
	dir, pkg string
	// ref and entrypoint are those of the manifests.
	ref, entrypoint string
	user            string
	// tags are build tags; images that are installed have none.
	tags string
}

// nonRoot is the user that images run as unless a pod says otherwise.
const nonRoot = "65532:65532"

var programs = []program{
	{dir: ".", pkg: "./agent", ref: AgentImage, entrypoint: "/signet-agent"},
	{dir: ".", pkg: "./approver", ref: registry + "signet-approver:" + Version, entrypoint: "/signet-approver", user: nonRoot},
	{dir: "integration", pkg: "./samples/sample", ref: SampleImage, entrypoint: "/sample", user: nonRoot},
}

// Build compiles the agent, the approver and the sample and says what images
// they make. The binaries stay in bin/; what has not changed is not linked again.
func Build(ctx context.Context, progress io.Writer) ([]cluster.Image, error) {
	root, err := repository()
	if err != nil {
		return nil, err
	}
	// In the tree, so that two trees on one machine do not get each other's.
	bin := filepath.Join(root, "bin", "images")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return nil, fmt.Errorf("build images: %w", err)
	}
	unlock, err := lock(bin)
	if err != nil {
		return nil, err
	}
	defer unlock()
	began := time.Now()
	var images []cluster.Image
	for _, p := range programs {
		fmt.Fprintf(progress, "building %s\n", strings.TrimPrefix(p.entrypoint, "/"))
		if err := p.install(ctx, root, bin); err != nil {
			return nil, err
		}
		images = append(images, cluster.Image{
			Ref:        p.ref,
			Binary:     filepath.Join(bin, filepath.Base(p.pkg)),
			Entrypoint: []string{p.entrypoint},
			User:       p.user,
		})
	}
	fmt.Fprintf(progress, "built %d images' binaries in %s\n", len(images), time.Since(began).Round(100*time.Millisecond))
	return images, nil
}

// install uses `go install`, which leaves a binary alone that is up to date.
func (p program) install(ctx context.Context, root, bin string) error {
	cmd := exec.CommandContext(ctx, "go", "install", "-mod=readonly", "-trimpath", "-buildvcs=false", "-tags="+p.tags,
		"-ldflags", "-s -w -X main.version="+Version, p.pkg)
	cmd.Dir = filepath.Join(root, p.dir)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=", "GOBIN="+bin)
	// The compilers end with the go command.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", p.pkg, err, output.Bytes())
	}
	return nil
}

// LoadImages puts the images on every node.
func LoadImages(ctx context.Context, c *cluster.Cluster, images []cluster.Image) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, img := range images {
		group.Go(func() error { return c.LoadImage(ctx, img) })
	}
	return group.Wait()
}

// repository is the root of the source tree that this was compiled from.
func repository() (string, error) {
	_, file, _, ok := runtime.Caller(0)
	root := filepath.Join(filepath.Dir(file), "..", "..")
	if ok && filepath.IsAbs(file) {
		if _, err := os.Stat(filepath.Join(root, "deploy", "manifests")); err == nil {
			return root, nil
		}
	}
	return "", fmt.Errorf("find the repository: no deploy/manifests in %s; build this program without -trimpath, inside the repository", root)
}

// lock keeps two runs from linking into one directory at once.
func lock(dir string) (unlock func(), err error) {
	file, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, errors.Join(err, file.Close()))
	}
	return func() { file.Close() }, nil
}
