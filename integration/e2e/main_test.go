// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/signet-spiffe/signet/integration/clients"
	"github.com/signet-spiffe/signet/integration/cluster"
	"github.com/signet-spiffe/signet/integration/install"
)

const (
	// trustDomain is not the default, so that a default left somewhere shows.
	trustDomain = "e2e.signet.example"
	// svidLife is short, so that rotation is seen: it comes after two thirds of
	// it, less a jitter.
	svidLife = 60 * time.Second
	// testTimeout bounds one test's waiting on anything but rotation.
	testTimeout = 2 * time.Minute
)

// env is what all tests share.
var env struct {
	*install.Installer
	cluster *cluster.Cluster
	// logs is the folder for logs of this run.
	logs string
	// skipped is why nothing was set up, when nothing was.
	skipped string
}

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Short() {
		env.skipped = "brings up a Kubernetes cluster; run without -short"
		os.Exit(m.Run())
	}
	// Tests wait more than they work; go's default is the number of CPUs.
	if !isSet("test.parallel") {
		if err := flag.Set("test.parallel", "16"); err != nil {
			fail(err)
		}
	}
	if os.Geteuid() != 0 {
		fail(errors.New("these tests bring up a Kubernetes cluster and must run as root; as another user run `go test -short`"))
	}
	os.Exit(runOnCluster(m))
}

func isSet(name string) bool {
	set := false
	flag.Visit(func(f *flag.Flag) { set = set || f.Name == name })
	return set
}

func fail(err error) {
	fmt.Fprintf(os.Stderr, "e2e: %v\n", err)
	os.Exit(1)
}

func runOnCluster(m *testing.M) (code int) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	c, err := setUp(ctx)
	if c != nil {
		defer func() { code = tearDown(c, code) }()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "e2e: %v\n", err)
		return 1
	}
	// A run of some tests only begins the soak when it comes to it.
	if !isSet("test.run") {
		if err := startSoak(); err != nil {
			fmt.Fprintf(os.Stderr, "e2e: start the soak: %v\n", err)
			return 1
		}
	}
	// An interrupted run still collects its logs and takes its cluster down.
	done := make(chan int, 1)
	go func() { done <- m.Run() }()
	select {
	case code := <-done:
		return code
	case <-ctx.Done():
		fmt.Fprintln(os.Stderr, "e2e: interrupted, taking the cluster down")
		return 130
	}
}

// quickRestarts keeps kubelet's pause before it restarts a container at a second,
// which by default begins with ten and doubles: these tests kill agents by the
// dozen.
var quickRestarts = map[string]any{
	"featureGates":     map[string]any{"KubeletCrashLoopBackOffMax": true},
	"crashLoopBackOff": map[string]any{"maxContainerRestartPeriod": "1s"},
}

// setUp brings up the cluster and installs Signet. A cluster that came up is
// returned also when the installation failed.
func setUp(ctx context.Context) (*cluster.Cluster, error) {
	logs, err := logFolder()
	if err != nil {
		return nil, err
	}
	env.logs = logs
	version := os.Getenv("SIGNET_KUBERNETES_VERSION")
	if version == "" {
		version = cluster.DefaultKubernetesVersion
	}
	progress := os.Stderr

	group, building := errgroup.WithContext(ctx)
	var images []cluster.Image
	group.Go(func() error {
		standard, err := install.Build(building, progress)
		if err != nil {
			return err
		}
		killable, err := install.BuildFailpointAgent(building, progress)
		images = append(standard, killable)
		return err
	})
	// A run of some tests only builds these when it comes to them.
	if !isSet("test.run") {
		group.Go(func() error {
			_, err := clients.Build(building, clientFiles, progress)
			return err
		})
	}
	c, err := cluster.Up(ctx, cluster.Options{
		Nodes: 2, KubernetesVersion: version, LogDir: filepath.Join(logs, "components"), Progress: progress,
		KubeletConfig: quickRestarts,
	})
	if err := errors.Join(err, group.Wait()); err != nil {
		return c, fmt.Errorf("bring up the cluster: %w", err)
	}
	env.cluster = c
	env.Installer, err = install.New(c, progress)
	if err != nil {
		return c, err
	}
	if err := install.LoadImages(ctx, c, images); err != nil {
		return c, fmt.Errorf("load images: %w", err)
	}
	if err := env.Issuer(ctx); err != nil {
		return c, err
	}
	return c, env.Signet(ctx, standardOptions())
}

// standardOptions is the installation that tests find and leave. The agent and
// the approver say all they ever say, so that a secret in a log is found. kubelet
// is told soon that a mount waits, so that tests need not.
func standardOptions() install.Options {
	return install.Options{
		TrustDomain:   trustDomain,
		Duration:      svidLife,
		Requester:     install.RequesterAgent,
		AgentFlags:    map[string]string{"--log-level": "5", "--publish-timeout": "15s"},
		ApproverFlags: map[string]string{"--log-level": "5", "--allowed-dns-suffixes": "{{namespace}}.svc.cluster.local"},
	}
}

func logFolder() (string, error) {
	root := os.Getenv("SIGNET_LOGS")
	if root == "" {
		root = "logs"
	}
	dir, err := filepath.Abs(filepath.Join(root, "e2e-"+time.Now().UTC().Format("20060102-150405")))
	if err != nil {
		return "", fmt.Errorf("log folder: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("log folder: %w", err)
	}
	return dir, nil
}

// tearDown keeps the logs of a run that failed and removes those of one that
// passed.
func tearDown(c *cluster.Cluster, code int) int {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if code != 0 {
		// A run that was interrupted may have left the API server stopped; what
		// cannot be had soon is not waited for.
		collecting, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		if err := c.CollectLogs(collecting, env.logs); err != nil {
			fmt.Fprintf(os.Stderr, "e2e: collect logs: %v\n", err)
		}
		fmt.Fprintf(os.Stderr, "e2e: logs of every component and container are in %s\n", env.logs)
	}
	if err := c.Down(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "e2e: take the cluster down: %v\n", err)
		code = max(code, 1)
	}
	if code == 0 {
		if err := os.RemoveAll(env.logs); err != nil {
			fmt.Fprintf(os.Stderr, "e2e: remove logs: %v\n", err)
		}
	}
	return code
}
