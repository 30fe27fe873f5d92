// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/signet-spiffe/signet/approver/evaluate"
)

// Options configure New. All but RuntimeIssuer are needed.
type Options struct {
	// Policy is what to decide by. Its Issuers are joined by RuntimeIssuer's.
	Policy evaluate.Policy
	// RuntimeIssuer names a ConfigMap with one more issuer; empty name: none.
	RuntimeIssuer types.NamespacedName
	// ConcurrentReconciles is how many decisions are written at the same time;
	// readAhead times as many requests are evaluated.
	ConcurrentReconciles int
	// LeaderElectionNamespace holds the Lease, which is named after the driver.
	LeaderElectionNamespace string
	// ProbeAddress serves /readyz and /healthz, MetricsAddress /metrics; "0"
	// switches either off.
	ProbeAddress, MetricsAddress string
	// Registerer takes the approver's own metrics.
	Registerer prometheus.Registerer
	Log        *slog.Logger
}

// The lease's times: a leader that dies without a word is replaced after at most
// leaseDuration+retryPeriod, well inside kubelet's patience with a mount; one that
// is stopped hands over within retryPeriod.
const (
	leaseDuration = 10 * time.Second
	renewDeadline = 7 * time.Second
	retryPeriod   = time.Second
)

// syncPatience is how long a replica waits for its first list of requests before it
// ends and begins anew.
const syncPatience = time.Hour

// Failed requests are tried again after retryBase, doubling up to retryMax. The
// limit is per request: controller-runtime's default adds one for all of them
// together (10/s), which would stretch the recovery of a large burst.
const (
	retryBase = 100 * time.Millisecond
	retryMax  = 10 * time.Second
)

// readAhead is how many requests are evaluated for each decision that may be
// written. Writes are bounded for the sake of cert-manager's webhook, which reads
// of pods do not meet: with one bound for both, each write would wait for a read,
// and approvals would come at half the speed that the webhook allows.
const readAhead = 4

// New makes a manager that decides requests when it is started. The caller's
// config is not changed. Nothing is read from the API server yet.
func New(config *rest.Config, o Options) (manager.Manager, error) {
	if err := o.Policy.Validate(); err != nil {
		return nil, fmt.Errorf("approver policy: %w", err)
	}
	scheme, err := newScheme()
	if err != nil {
		return nil, err
	}
	mgr, err := manager.New(unlimited(config), managerOptions(o, scheme))
	if err != nil {
		return nil, fmt.Errorf("set up the approver: %w", err)
	}
	if err := addReconciler(mgr, o); err != nil {
		return nil, err
	}
	if err := mgr.AddHealthzCheck("ping", healthz.Ping); err != nil {
		return nil, fmt.Errorf("add health check: %w", err)
	}
	if err := mgr.AddReadyzCheck("requests", requestsSynced(mgr.GetCache())); err != nil {
		return nil, fmt.Errorf("add readiness check: %w", err)
	}
	return mgr, nil
}

// newScheme knows the types used, and no others.
func newScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{cmapi.AddToScheme, corev1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("register API types: %w", err)
		}
	}
	return scheme, nil
}

// newMapper knows the resources of those types. controller-runtime would ask the
// API server for them before anything else, and an approver that starts while there
// is none would end at once, again and again, and be held back by kubelet when there
// is one.
func newMapper() meta.RESTMapper {
	mapper := meta.NewDefaultRESTMapper([]schema.GroupVersion{cmapi.SchemeGroupVersion, corev1.SchemeGroupVersion})
	mapper.Add(cmapi.SchemeGroupVersion.WithKind("CertificateRequest"), meta.RESTScopeNamespace)
	mapper.Add(corev1.SchemeGroupVersion.WithKind("Pod"), meta.RESTScopeNamespace)
	mapper.Add(corev1.SchemeGroupVersion.WithKind("ConfigMap"), meta.RESTScopeNamespace)
	return mapper
}

// unlimited switches client-go's own rate limit off: at its default of 5 requests
// a second, one approver would hold back a whole cluster.
func unlimited(config *rest.Config) *rest.Config {
	config = rest.CopyConfig(config)
	config.QPS, config.Burst, config.RateLimiter = -1, 0, nil
	return config
}

func managerOptions(o Options, scheme *runtime.Scheme) manager.Options {
	lease, renew, retry := leaseDuration, renewDeadline, retryPeriod
	return manager.Options{
		Scheme:                        scheme,
		MapperProvider:                func(*rest.Config, *http.Client) (meta.RESTMapper, error) { return newMapper(), nil },
		Logger:                        logr.FromSlogHandler(o.Log.Handler()),
		Cache:                         cacheOptions(o),
		Metrics:                       server.Options{BindAddress: o.MetricsAddress},
		HealthProbeBindAddress:        o.ProbeAddress,
		LeaderElection:                true,
		LeaderElectionID:              o.Policy.Driver,
		LeaderElectionNamespace:       o.LeaderElectionNamespace,
		LeaderElectionReleaseOnCancel: true, // the process ends with the manager
		LeaseDuration:                 &lease,
		RenewDeadline:                 &renew,
		RetryPeriod:                   &retry,
	}
}

func addReconciler(mgr manager.Manager, o Options) error {
	m, err := newMetrics(o.Registerer)
	if err != nil {
		return err
	}
	r := &reconciler{
		requests: mgr.GetClient(),
		status:   mgr.GetClient().Status(),
		pods:     mgr.GetAPIReader(),
		issuers:  &issuers{static: o.Policy.Issuers, ref: o.RuntimeIssuer, reader: mgr.GetClient(), log: o.Log},
		policy:   o.Policy,
		writing:  make(chan struct{}, o.ConcurrentReconciles),
		recorder: mgr.GetEventRecorder(FieldOwner),
		metrics:  m,
		log:      o.Log,
		now:      time.Now,
	}
	if o.RuntimeIssuer.Name != "" {
		if err := mgr.Add(follower{r.issuers, mgr.GetCache()}); err != nil {
			return fmt.Errorf("set up the watch of ConfigMap %s: %w", o.RuntimeIssuer, err)
		}
	}
	warm, validated := true, true
	err = builder.ControllerManagedBy(mgr).
		Named("certificaterequests").
		For(&cmapi.CertificateRequest{}, builder.WithPredicates(candidates(o.Policy.Driver, o.Policy.ApproveNonSPIFFE))).
		WithOptions(controller.Options{
			MaxConcurrentReconciles: readAhead * o.ConcurrentReconciles,
			RateLimiter:             workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](retryBase, retryMax),
			// A standby keeps its cache filled and takes over at once.
			EnableWarmup: &warm,
			// An API server that is away is waited for; /readyz says so meanwhile.
			CacheSyncTimeout: syncPatience,
			// One process may hold several approvers (tests do).
			SkipNameValidation: &validated,
		}).
		Complete(r)
	if err != nil {
		return fmt.Errorf("set up the approver's controller: %w", err)
	}
	return nil
}

// requestsSynced is ready once the requests have been listed: from then on this
// replica can decide, or take over.
func requestsSynced(c cache.Cache) healthz.Checker {
	return func(req *http.Request) error {
		ctx, cancel := context.WithTimeout(req.Context(), time.Second)
		defer cancel()
		informer, err := c.GetInformer(ctx, &cmapi.CertificateRequest{}, cache.BlockUntilSynced(false))
		if err != nil {
			return fmt.Errorf("watch CertificateRequests: %w", err)
		}
		if !informer.HasSynced() {
			return errors.New("CertificateRequests are not listed yet")
		}
		return nil
	}
}
