// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Command cert-manager-controller runs cert-manager's own controllers, linked
// from its public packages, the way the cert-manager-controller of a release
// does with
//
//	--controllers=*,-certificaterequests-approver
//
// and without the ACME, Venafi, ingress and CertificateSigningRequest
// controllers, which nothing here uses. There is one replica, so it does not
// elect a leader.
//
// cert-manager's command is a Go module of its own with replace directives,
// which cannot be fetched from a module proxy; hence this main.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"github.com/cert-manager/cert-manager/pkg/controller"
	"github.com/cert-manager/cert-manager/pkg/logs"

	// Each of these registers itself with the controller package.
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/ca"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/selfsigned"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/vault"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/issuing"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/keymanager"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/readiness"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/requestmanager"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/revisionmanager"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/trigger"
	_ "github.com/cert-manager/cert-manager/pkg/controller/clusterissuers"
	_ "github.com/cert-manager/cert-manager/pkg/controller/issuers"
	_ "github.com/cert-manager/cert-manager/pkg/issuer/ca"
	_ "github.com/cert-manager/cert-manager/pkg/issuer/selfsigned"
	_ "github.com/cert-manager/cert-manager/pkg/issuer/vault"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "cert-manager-controller:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	logs.InitLogs()
	defer logs.FlushLogs()

	opts, workers, err := parse(args)
	if err != nil {
		return err
	}
	factory, err := controller.NewContextFactory(ctx, opts)
	if err != nil {
		return fmt.Errorf("connect to the API server: %w", err)
	}
	shared, err := factory.Build()
	if err != nil {
		return fmt.Errorf("build controller context: %w", err)
	}

	group, ctx := errgroup.WithContext(ctx)
	for name, construct := range controller.Known() {
		c, err := construct(factory)
		if err != nil {
			return fmt.Errorf("construct controller %s: %w", name, err)
		}
		group.Go(func() error {
			if err := c.Run(workers, ctx); err != nil {
				return fmt.Errorf("controller %s: %w", name, err)
			}
			return nil
		})
	}
	// Constructing a controller is what asks the factories for informers, so
	// they start last.
	shared.SharedInformerFactory.Start(ctx.Done())
	shared.KubeSharedInformerFactory.Start(ctx.Done())
	return group.Wait()
}

// parse reads the flags, which are named as cert-manager names them.
func parse(args []string) (opts controller.ContextOptions, workers int, err error) {
	flags := pflag.NewFlagSet("cert-manager-controller", pflag.ContinueOnError)
	flags.StringVar(&opts.Kubeconfig, "kubeconfig", "", "path of the kubeconfig to connect with")
	flags.Float32Var(&opts.KubernetesAPIQPS, "kube-api-qps", 20, "sustained requests per second to the API server")
	flags.IntVar(&opts.KubernetesAPIBurst, "kube-api-burst", 50, "burst of requests to the API server")
	flags.StringVar(&opts.ClusterResourceNamespace, "cluster-resource-namespace", "cert-manager", "namespace of the secrets of cluster issuers")
	flags.BoolVar(&opts.EnableOwnerRef, "enable-certificate-owner-ref", false, "make a Certificate the owner of its Secret")
	flags.DurationVar(&opts.CertificateRequestMinimumBackoffDuration, "certificate-request-minimum-backoff-duration", time.Hour, "first backoff after a failed request of a Certificate")
	flags.DurationVar(&opts.CertificateRequestMaximumBackoffDuration, "certificate-request-maximum-backoff-duration", 32*time.Hour, "longest backoff after failed requests of a Certificate")
	flags.IntVar(&workers, "concurrent-workers", 5, "workers of each controller")
	if err := flags.Parse(args); err != nil {
		return opts, 0, err
	}
	if flags.NArg() > 0 {
		return opts, 0, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	opts.CopiedAnnotationPrefixes = []string{"*", "-kubectl.kubernetes.io/", "-fluxcd.io/", "-argocd.argoproj.io/"}
	return opts, workers, nil
}
