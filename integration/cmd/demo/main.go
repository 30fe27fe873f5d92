// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/signet-spiffe/signet/integration/cluster"
	"github.com/signet-spiffe/signet/integration/install"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		stop()
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	version   string
	life      time.Duration
	rotations int
}

func command() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:           "demo",
		Short:         "Two services speak mTLS with SPIFFE identities on a real Kubernetes, on this machine, as root",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return demo(cmd.Context(), o, newScreen(os.Stdout))
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.version, "kubernetes-version", cluster.DefaultKubernetesVersion, "version of Kubernetes, one of those pinned below integration/tools")
	f.DurationVar(&o.life, "svid-lifetime", time.Minute, "lifetime of every SVID, at least 30s; each is renewed at two thirds of it")
	f.IntVar(&o.rotations, "rotations", 2, "how many renewals of both services to watch")
	return cmd
}

// downTimeout bounds the taking down; it takes a second.
const downTimeout = time.Minute

// demo runs it all, and takes down whatever it brought up.
func demo(ctx context.Context, o options, s *screen) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("must run as root: it makes namespaces, mounts and cgroups for a Kubernetes of its own (all gone when it ends)")
	}
	s.title(fmt.Sprintf("Signet: SPIFFE identities for pods. Kubernetes %s on this machine, two nodes, no Docker.", o.version))
	r := &results{options: o}
	c, images, err := bringUp(ctx, o, s, r)
	if c != nil {
		defer func() {
			s.rest()
			err = errors.Join(err, takeDown(ctx, c, s))
		}()
	}
	if err != nil {
		return interrupted(ctx, err)
	}
	in, err := install.New(c, s.lines(cyan, "signet"))
	if err != nil {
		return err
	}
	if err := installSignet(ctx, o, c, in, images, r); err != nil {
		return interrupted(ctx, err)
	}
	if err := (&show{options: o, screen: s, installer: in, results: r}).run(ctx); err != nil {
		return interrupted(ctx, err)
	}
	if err := r.readMetrics(ctx, in); err != nil {
		return interrupted(ctx, err)
	}
	s.rest()
	r.print(s)
	return r.verdict()
}

// interrupted replaces what broke by Ctrl-C, which is many things, by that.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	return err
}

// bringUp starts the cluster while Signet is compiled.
func bringUp(ctx context.Context, o options, s *screen, r *results) (*cluster.Cluster, []cluster.Image, error) {
	var images []cluster.Image
	began := time.Now()
	group, building := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		images, err = install.Build(building, s.lines(grey, "build"))
		return err
	})
	c, err := cluster.Up(ctx, cluster.Options{Nodes: 2, KubernetesVersion: o.version, Progress: s.lines(cyan, "cluster")})
	if err == nil {
		r.clusterUp = time.Since(began)
	}
	if err := errors.Join(err, group.Wait()); err != nil {
		return c, nil, err
	}
	return c, images, nil
}

func installSignet(ctx context.Context, o options, c *cluster.Cluster, in *install.Installer, images []cluster.Image, r *results) error {
	began := time.Now()
	group, both := errgroup.WithContext(ctx)
	group.Go(func() error { return install.LoadImages(both, c, images) })
	group.Go(func() error { return in.Issuer(both) })
	if err := group.Wait(); err != nil {
		return err
	}
	if err := in.Signet(ctx, install.Options{Duration: o.life}); err != nil {
		return err
	}
	r.installed = time.Since(began)
	return nil
}

// takeDown removes the cluster, also after Ctrl-C.
func takeDown(ctx context.Context, c *cluster.Cluster, s *screen) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), downTimeout)
	defer cancel()
	if err := c.Down(ctx); err != nil {
		return fmt.Errorf("take the cluster down: %w", err)
	}
	s.say(cyan, "cluster", "taken down; nothing is left of it")
	return nil
}
