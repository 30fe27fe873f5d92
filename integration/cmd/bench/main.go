// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Command bench measures Signet on a real Kubernetes on this machine, beside the
// least that any client of cert-manager has to do. See the package
// integration/bench for how.
//
// It brings up a cluster of its own and leaves nothing running, however it ends.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/signet-spiffe/signet/integration/bench"
	"github.com/signet-spiffe/signet/integration/cluster"
	"github.com/signet-spiffe/signet/integration/install"
)

func main() {
	if bench.Attack() {
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		if !errors.Is(err, errSaid) {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
		stop()
		os.Exit(1)
	}
}

// errSaid is an error that the process inside has explained already.
var errSaid = errors.New("the measurement failed")

// options are the flags.
type options struct {
	version    string
	quick      bool
	approvers  int
	agentFlags []string
	// approverFlags are by name with dashes.
	approverFlags map[string]string
	document      string
	results       string

	// Of the process inside alone.
	cluster, apiServer, dir, agent string
}

func (o *options) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&o.quick, "quick", false, "measure a little of everything, to see that it works; writes no document")
	f.IntVar(&o.approvers, "floor-approvals", defaultApprovals, "how many requests the floor approves at the same time")
	f.StringArrayVar(&o.agentFlags, "agent-flag", nil, "additional flag of the agent (repeatable), e.g. --max-concurrent-issuances=64")
	f.StringVar(&o.document, "document", "", "Markdown file to write (default docs/benchmarks.md of the repository; none with --quick)")
	f.StringVar(&o.results, "results", "", "directory for results in the format of Go benchmarks (default bin/bench of the repository)")
}

// defaultApprovals is what cert-manager's webhook takes best, and so Signet's own
// default: it asks the API server about each approver's right once a second, under
// a client-side limit, and approvals that arrive together all ask.
const defaultApprovals = 5

func command() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:           "bench",
		Short:         "Measure Signet on a real Kubernetes on this machine, as root",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE:          func(cmd *cobra.Command, _ []string) error { return outside(cmd.Context(), &o, cmd.Flags().Changed) },
	}
	cmd.Flags().StringToStringVar(&o.approverFlags, "approver-flag", nil, "additional flag of the approver (repeatable), e.g. --concurrent-reconciles=10")
	cmd.Flags().StringVar(&o.version, "kubernetes-version", cluster.DefaultKubernetesVersion, "version of Kubernetes, one of those pinned below integration/tools")
	o.addFlags(cmd)
	cmd.AddCommand(insideCommand())
	return cmd
}

// say prints a line with the time since the start.
func say(began time.Time) func(string, ...any) {
	return func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "%7.1fs  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}
}

// lines says each line that is written to it.
type lines struct {
	say  func(string, ...any)
	rest string
}

// Write implements io.Writer.
func (l *lines) Write(p []byte) (int, error) {
	l.rest += string(p)
	for {
		line, after, ok := strings.Cut(l.rest, "\n")
		if !ok {
			return len(p), nil
		}
		l.say("%s", line)
		l.rest = after
	}
}

// downTimeout bounds the taking down; it takes a second.
const downTimeout = time.Minute

// outside brings the cluster up and has the measurement made on its node.
func outside(ctx context.Context, o *options, changed func(string) bool) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("must run as root: it makes namespaces, mounts and cgroups for a Kubernetes of its own (all gone when it ends)")
	}
	if err := o.complete(changed); err != nil {
		return err
	}
	tell := say(time.Now())
	c, images, err := bringUp(ctx, o, tell)
	if c != nil {
		defer func() {
			down, cancel := context.WithTimeout(context.WithoutCancel(ctx), downTimeout)
			defer cancel()
			if downErr := c.Down(down); downErr != nil {
				err = errors.Join(err, fmt.Errorf("take the cluster down: %w", downErr))
			}
		}()
	}
	if err != nil {
		return interrupted(ctx, err)
	}
	in, err := install.New(c, &lines{say: tell})
	if err != nil {
		return err
	}
	if err := setUp(ctx, o, c, in, images); err != nil {
		return interrupted(ctx, err)
	}
	address, err := bench.APIServerAddress(ctx, in.Kube)
	if err != nil {
		return interrupted(ctx, err)
	}
	return interrupted(ctx, measure(ctx, o, c, address, images[0].Binary))
}

// complete finds out where results go.
func (o *options) complete(changed func(string) bool) error {
	root, err := bench.Repository()
	if err != nil {
		return err
	}
	if !changed("document") && !o.quick {
		o.document = filepath.Join(root, "docs", "benchmarks.md")
	}
	if !changed("results") {
		o.results = filepath.Join(root, "bin", "bench")
	}
	for _, path := range []*string{&o.document, &o.results} {
		if *path == "" {
			continue
		}
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
	}
	return nil
}

// interrupted replaces what broke by Ctrl-C, which is many things, by that.
func interrupted(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return errors.New("interrupted")
	}
	return err
}

// bringUp starts the cluster while Signet is compiled.
func bringUp(ctx context.Context, o *options, tell func(string, ...any)) (*cluster.Cluster, []cluster.Image, error) {
	var images []cluster.Image
	group, building := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		images, err = install.Build(building, &lines{say: tell})
		return err
	})
	c, err := cluster.Up(ctx, cluster.Options{KubernetesVersion: o.version, Progress: &lines{say: tell}})
	return c, images, errors.Join(err, group.Wait())
}

func setUp(ctx context.Context, o *options, c *cluster.Cluster, in *install.Installer, images []cluster.Image) error {
	group, both := errgroup.WithContext(ctx)
	group.Go(func() error { return install.LoadImages(both, c, images) })
	group.Go(func() error { return in.Issuer(both) })
	if err := group.Wait(); err != nil {
		return err
	}
	return in.Signet(ctx, install.Options{ApproverFlags: o.approverFlags})
}

// measure runs this program again, on the cluster's node.
func measure(ctx context.Context, o *options, c *cluster.Cluster, address, agent string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "signet-bench-")
	if err != nil {
		return err
	}
	// Empty: what is mounted there is seen inside only.
	defer os.Remove(dir)
	argv := []string{
		self, insideName, "--cluster=" + c.Name(), "--api-server=" + address, "--dir=" + dir, "--agent=" + agent,
		fmt.Sprintf("--floor-approvals=%d", o.approvers), fmt.Sprintf("--quick=%t", o.quick),
		"--document=" + o.document, "--results=" + o.results, "--kubernetes-version=" + o.version,
	}
	for _, f := range o.agentFlags {
		argv = append(argv, "--agent-flag="+f)
	}
	if err := bench.Enter(ctx, c.Nodes()[0], argv...); err != nil {
		return errSaid
	}
	return nil
}

const insideName = "inside"

// insideCommand is this program as it runs on the node.
func insideCommand() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use: insideName, Hidden: true, Args: cobra.NoArgs, SilenceUsage: true, SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error { return inside(cmd.Context(), &o) },
	}
	o.addFlags(cmd)
	f := cmd.Flags()
	f.StringVar(&o.version, "kubernetes-version", "", "version of Kubernetes")
	f.StringVar(&o.cluster, "cluster", "", "name of the cluster")
	f.StringVar(&o.apiServer, "api-server", "", "address of the API server")
	f.StringVar(&o.dir, "dir", "", "empty directory")
	f.StringVar(&o.agent, "agent", "", "the agent's binary")
	return cmd
}

func inside(ctx context.Context, o *options) error {
	c, err := cluster.Attach(o.cluster)
	if err != nil {
		return err
	}
	sizes := bench.Full()
	if o.quick {
		sizes = bench.Quick()
	}
	results, err := bench.Run(ctx, bench.Options{
		Sizes: sizes, Config: c.RESTConfig(), APIServer: o.apiServer, Cluster: o.cluster, Kubernetes: o.version, Dir: o.dir, Agent: o.agent,
		Approvers: o.approvers, AgentFlags: o.agentFlags, Say: say(time.Now()),
	})
	if ctx.Err() != nil {
		return errSaid // Outside says it.
	}
	if err != nil {
		return err
	}
	return o.write(results)
}

// write prints the table and writes the files.
func (o *options) write(r *bench.Results) error {
	fmt.Println(r.Markdown())
	if err := os.MkdirAll(o.results, 0o755); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	name := filepath.Join(o.results, r.Began.UTC().Format("20060102-150405")+".txt")
	if err := os.WriteFile(name, []byte(r.GoBenchmarks()), 0o644); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	if o.document == "" {
		return nil
	}
	if err := os.WriteFile(o.document, []byte(r.Markdown()), 0o644); err != nil {
		return fmt.Errorf("write the document: %w", err)
	}
	return nil
}
