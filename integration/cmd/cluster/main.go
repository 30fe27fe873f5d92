// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Command cluster brings Kubernetes clusters up and down on this machine. See
// the package integration/cluster for what they are.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/signet-spiffe/signet/integration/cluster"
)

// defaultName is the cluster that a user means who names none.
const defaultName = "signet"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "cluster",
		Short:         "Real Kubernetes clusters on this machine, without Docker",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(up(), down(), status(), deps(), build(), loadImage(), logs())
	return root
}

func up() *cobra.Command {
	var o cluster.Options
	var foreground bool
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Bring a cluster up (as root)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Progress = cmd.ErrOrStderr()
			began := time.Now()
			c, err := cluster.Up(cmd.Context(), o)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "cluster %s is up after %s\n", c.Name(), time.Since(began).Round(100*time.Millisecond))
			fmt.Fprintf(cmd.OutOrStdout(), "export KUBECONFIG=%s\n", c.Kubeconfig())
			if !foreground {
				return c.Detach()
			}
			<-cmd.Context().Done()
			return c.Down(context.WithoutCancel(cmd.Context()))
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Name, "name", defaultName, "name of the cluster")
	flags.IntVar(&o.Nodes, "nodes", 1, "number of nodes")
	flags.StringVar(&o.KubernetesVersion, "kubernetes-version", cluster.DefaultKubernetesVersion, "Kubernetes version, e.g. 1.35")
	flags.StringVar(&o.LogDir, "log-dir", "", "directory for component logs, kept after the cluster's end (default inside the state directory)")
	flags.StringArrayVar(&o.APIServerArgs, "apiserver-arg", nil, "additional argument of the kube-apiserver (repeatable)")
	flags.BoolVar(&foreground, "foreground", false, "stay until interrupted, then end the cluster")
	return cmd
}

func down() *cobra.Command {
	var name string
	var all bool
	cmd := &cobra.Command{
		Use:   "down",
		Short: "End a cluster and remove everything it left",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !all {
				return cluster.Down(cmd.Context(), name)
			}
			list, err := cluster.List()
			if err != nil {
				return err
			}
			var errs []error
			for _, info := range list {
				errs = append(errs, cluster.Down(cmd.Context(), info.Name))
			}
			return errors.Join(errs...)
		},
	}
	cmd.Flags().StringVar(&name, "name", defaultName, "name of the cluster")
	cmd.Flags().BoolVar(&all, "all", false, "all clusters on this machine")
	return cmd
}

func status() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "List the clusters on this machine and their components",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := cluster.List()
			if err != nil {
				return err
			}
			if len(list) == 0 {
				fmt.Fprintln(cmd.OutOrStdout(), "no clusters")
			}
			for _, info := range list {
				if err := printStatus(cmd, info); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func printStatus(cmd *cobra.Command, info cluster.Info) error {
	out := cmd.OutOrStdout()
	if !info.Running {
		fmt.Fprintf(out, "%s: not running; `cluster down --name %s` removes what is left of it\n", info.Name, info.Name)
		return nil
	}
	fmt.Fprintf(out, "%s: Kubernetes %s, %d node(s), up for %s\n  KUBECONFIG=%s\n  logs in %s\n", info.Name, info.KubernetesVersion,
		info.Nodes, time.Since(info.Started).Round(time.Second), info.Kubeconfig, info.LogDir)
	c, err := cluster.Attach(info.Name)
	if err != nil {
		return err
	}
	components, err := c.Status(cmd.Context())
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, s := range components {
		fmt.Fprintf(table, "  %s\t%s\t%s\t%s\n", s.Name, s.Node, s.State, s.Detail)
	}
	return table.Flush()
}

func deps() *cobra.Command {
	var install bool
	cmd := &cobra.Command{
		Use:   "deps",
		Short: "Check for the packages and rights that a cluster needs",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			missing := cluster.Missing()
			if len(missing) > 0 && install {
				apt := exec.CommandContext(cmd.Context(), "sh", "-c", cluster.InstallCommand(missing))
				apt.Stdout, apt.Stderr = cmd.ErrOrStderr(), cmd.ErrOrStderr()
				if err := apt.Run(); err != nil {
					return fmt.Errorf("%s: %w", cluster.InstallCommand(missing), err)
				}
			}
			if err := cluster.Preflight(cmd.Context()); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "everything is there")
			return nil
		},
	}
	cmd.Flags().BoolVar(&install, "install", false, "install missing packages with apt-get")
	return cmd
}

func build() *cobra.Command {
	var version string
	cmd := &cobra.Command{
		Use:   "build",
		Short: "Build the binaries of a Kubernetes version into the cache",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			binaries, err := cluster.EnsureBinaries(cmd.Context(), version, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), binaries["kubectl"])
			return nil
		},
	}
	cmd.Flags().StringVar(&version, "kubernetes-version", cluster.DefaultKubernetesVersion, "Kubernetes version, e.g. 1.35")
	return cmd
}

func loadImage() *cobra.Command {
	var name string
	var image cluster.Image
	cmd := &cobra.Command{
		Use:   "load-image REF BINARY",
		Short: "Make an image of a static binary and load it on every node",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := cluster.Attach(name)
			if err != nil {
				return err
			}
			image.Ref, image.Binary = args[0], args[1]
			return c.LoadImage(cmd.Context(), image)
		},
	}
	cmd.Flags().StringVar(&name, "name", defaultName, "name of the cluster")
	cmd.Flags().StringVar(&image.User, "user", "", "user of the image, as uid or uid:gid")
	cmd.Flags().StringArrayVar(&image.Entrypoint, "entrypoint", nil, "element of the entrypoint (repeatable); the first is where the binary is put (default /app)")
	return cmd
}

func logs() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "logs DIRECTORY",
		Short: "Copy all logs, events and requests of a cluster into a directory",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := cluster.Attach(name)
			if err != nil {
				return err
			}
			return c.CollectLogs(cmd.Context(), args[0])
		},
	}
	cmd.Flags().StringVar(&name, "name", defaultName, "name of the cluster")
	return cmd
}
