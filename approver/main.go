// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/signet-spiffe/signet/approver/controller"
	"github.com/signet-spiffe/signet/internal/observe"
)

// version is set by the linker.
var version = "development"

// The exit codes: exitUsage says that starting again with the same flags will
// fail again.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := execute(ctx, os.Args[1:], os.Stdout, os.Stderr, run)
	stop()
	os.Exit(code)
}

// execute parses args, calls run with a valid configuration, and returns the exit
// code. Every error becomes one line on stderr.
func execute(ctx context.Context, args []string, stdout, stderr io.Writer, run func(context.Context, *config, io.Writer) error) int {
	err := newCommand(run, stderr, args, stdout).ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	_, _ = fmt.Fprintf(stderr, "signet-approver: %v\n", err)
	var usage *observe.UsageError
	if errors.As(err, &usage) {
		return exitUsage
	}
	return exitFailure
}

func newCommand(run func(context.Context, *config, io.Writer) error, stderr io.Writer, args []string, stdout io.Writer) *cobra.Command {
	o := newOptions()
	cmd := &cobra.Command{
		Use:           "signet-approver",
		Short:         "Decides which SPIFFE identities cert-manager may sign",
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args: func(_ *cobra.Command, rest []string) error {
			if len(rest) > 0 {
				return observe.Usagef("argument %q is not known: signet-approver takes flags only", rest[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.config(cmd.Flags())
			if err != nil {
				return err
			}
			return run(cmd.Context(), c, stderr)
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return observe.Usagef("%v", err) })
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	o.addFlags(cmd.Flags())
	return cmd
}

// run decides requests until ctx ends.
func run(ctx context.Context, c *config, stderr io.Writer) error {
	log, err := observe.NewLogger(stderr, c.log)
	if err != nil {
		return err
	}
	ctrllog.SetLogger(logr.FromSlogHandler(log.Handler()))
	c.controller.Log = log
	c.controller.Registerer = ctrlmetrics.Registry
	rest, err := c.kubernetes.ClientConfig()
	if err != nil {
		return fmt.Errorf("find the API server: %w", err)
	}
	rest.UserAgent = "signet-approver/" + version
	mgr, err := controller.New(rest, c.controller)
	if err != nil {
		return err
	}
	p := c.controller.Policy
	log.Info("starting", "version", version, "driver", p.Driver, "trust_domain", p.TrustDomain.Name(), "template", p.Template.String(),
		"duration", p.Duration.String(), "duration_min", cmp.Or(p.MinDuration, p.Duration).String(), "duration_max", cmp.Or(p.MaxDuration, p.Duration).String(), "issuers", fmt.Sprint(p.Issuers), "agent", p.AgentUsername, "pods_may_request", p.AllowPod,
		"dns_suffixes", p.DNSSuffixes.String(), "approve_non_spiffe", p.ApproveNonSPIFFE)
	if err := mgr.Start(ctx); err != nil {
		return fmt.Errorf("run the approver: %w", err)
	}
	log.Info("stopped")
	return nil
}
