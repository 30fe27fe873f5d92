// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"

	"github.com/signet-spiffe/signet/agent/boundpods"
	"github.com/signet-spiffe/signet/agent/issue"
	"github.com/signet-spiffe/signet/agent/issue/certmanager"
	"github.com/signet-spiffe/signet/agent/issuerconfig"
	"github.com/signet-spiffe/signet/agent/podevents"
	"github.com/signet-spiffe/signet/agent/trust"
	"github.com/signet-spiffe/signet/agent/workload"
	"github.com/signet-spiffe/signet/csi"
	"github.com/signet-spiffe/signet/internal/failpoint"
	"github.com/signet-spiffe/signet/internal/identity"
	"github.com/signet-spiffe/signet/internal/observe"
	"github.com/signet-spiffe/signet/internal/pki"
	"github.com/signet-spiffe/signet/workloadapi"

	"github.com/prometheus/client_golang/prometheus"
)

// run is the agent until ctx ends. Volumes outlive it: pods keep their files, and
// the next agent takes the sockets up again.
func run(ctx context.Context, o *options) error {
	log, level, err := observe.NewAdjustableLogger(os.Stderr, o.log)
	if err != nil {
		return err
	}
	log.Info("signet-agent starts", "version", version, "driver", o.driverName, "node", o.nodeID, "trust_domain", o.trustDomain.Name(), "requester", string(o.requester))
	metrics := observe.NewRegistry()

	unlock, err := csi.Lock(ctx, o.dataRoot, o.driverName, log)
	switch {
	case ctx.Err() != nil:
		return nil // Told to stop while another agent was at work.
	case err != nil:
		return err
	}
	// The process ends with it.
	defer func() { _ = unlock() }()
	store, err := csi.OpenStore(csi.StoreOptions{DataRoot: o.dataRoot, DriverName: o.driverName, RequireShared: true, Log: log})
	if err != nil {
		return err
	}
	source, err := openTrust(o, metrics, log)
	if err != nil {
		return err
	}
	requests, err := countAPIRequests(o, metrics)
	if err != nil {
		return err
	}
	signers, err := openIssuerConfig(o, metrics, log)
	if err != nil {
		return err
	}
	issuer, err := newIssuer(o, signers, requests, metrics, log)
	if err != nil {
		return err
	}
	events, err := newEvents(o, metrics, log)
	if err != nil {
		return err
	}
	pods, err := openPods(o, metrics, log)
	if err != nil {
		return err
	}
	server := workloadapi.NewServer(workloadapi.Options{Log: log, Registerer: metrics, SDS: o.sds.SDSOptions, Limits: o.workloadAPI})
	storage := newVolumes(store, server, o.files, o.trustDomain, log)
	storage.pods = podsDir(filepath.Join(o.kubeletRoot, "pods"))
	registry := workload.New(workload.Options{
		Issuer: issuer, Trust: source, Volumes: storage, Attempts: storage, ID: identify(o.trustDomain, o.template), Owner: ownerOf(pods),
		KeyType: o.keyType, Duration: o.duration, MinDuration: o.durations.min, MaxDuration: o.durations.max,
		PublishTimeout: o.publishTimeout, Notifier: events, Log: log, Registerer: metrics,
		Signer: signers, ReissueWindow: o.reissueWindow, Limits: o.concurrency,
		// What a burst of mounts, or taking up the volumes of the agent before, has
		// left to be collected would stay resident for minutes.
		Calm: debug.FreeOSMemory,
	})
	// Before anything reaches for the API server: running pods need it least.
	restore(storage, registry, source, o.attributeLimits(), log)
	administration := openAdmin(o, registry, issuer, level, metrics, log, o.delegates.services(o, storage, source)...)
	return serve(ctx, o, parts{
		log: log, metrics: metrics, store: store, storage: storage, trust: source, issuer: issuer, signers: signers, workloadAPI: server, registry: registry, events: events, pods: pods, admin: administration,
	})
}

// identify computes SPIFFE IDs as the approver will.
func identify(td spiffeid.TrustDomain, template identity.Template) func(issue.Pod) (spiffeid.ID, error) {
	return func(pod issue.Pod) (spiffeid.ID, error) {
		return template.ID(td, identity.Workload{Namespace: pod.Namespace, ServiceAccount: pod.ServiceAccount})
	}
}

// openTrust opens the file of authorities, or learns them from issuers' answers
// where none is given.
func openTrust(o *options, metrics prometheus.Registerer, log *slog.Logger) (workload.Trust, error) {
	counted, err := trust.NewMetrics(metrics)
	if err != nil {
		return nil, err
	}
	if o.sourceCABundle == "" {
		return trust.NewObserved(o.trustDomain, trust.WithMetrics(counted)), nil
	}
	return trust.NewFileSource(o.sourceCABundle, o.trustDomain, log, trust.WithMetrics(counted))
}

// countAPIRequests puts a counter around the transport of every client that is
// made of o.restConfig from here on.
func countAPIRequests(o *options, metrics prometheus.Registerer) (*observe.APIRequests, error) {
	requests, err := observe.NewAPIRequests(metrics, "signet_agent")
	if err != nil {
		return nil, err
	}
	o.restConfig.Wrap(requests.Wrap)
	return requests, nil
}

// newEvents makes what tells pods' owners about their SVIDs.
func newEvents(o *options, metrics prometheus.Registerer, log *slog.Logger) (*podevents.Recorder, error) {
	sink, err := podevents.NewSink(o.restConfig)
	if err != nil {
		return nil, err
	}
	return podevents.New(podevents.Options{Sink: sink, Node: o.nodeID, Log: log, Registerer: metrics})
}

func newIssuer(o *options, signers *issuerconfig.Source, requests *observe.APIRequests, metrics prometheus.Registerer, log *slog.Logger) (*certmanager.Issuer, error) {
	client, err := certmanager.NewClient(o.restConfig)
	if err != nil {
		return nil, err
	}
	return certmanager.New(certmanager.Options{
		Client: client, RESTConfig: o.restConfig, WrapTransport: requests.Wrap, Driver: o.driverName, Node: o.nodeID,
		IssuerRef: signers.IssuerRef, Requester: o.requester, Annotations: o.annotations, Retention: o.retention, Log: log, Registerer: metrics,
	})
}

// restore takes up the volumes of the agent before.
func restore(storage *volumes, registry *workload.Registry, source workload.Trust, allowed attributeLimits, log *slog.Logger) {
	found := storage.recover()
	failpoint.Here("restore/recovered")
	for _, r := range found {
		if r.svid == nil {
			continue
		}
		if learner, ok := source.(workload.Learner); ok {
			if _, err := learner.Observe(pki.MarshalCertificates(r.bundle.X509Authorities()), r.svid.NotAfter()); err != nil {
				log.Warn("could not take over the trust bundle of a volume", "volume", r.volume.ID, "error", err)
			}
		}
	}
	for _, r := range found {
		if err := takeUp(storage, registry, allowed, r, log); err != nil {
			log.Error("could not take up a volume that has no SVID yet", "volume", r.volume.ID, "error", err)
		}
	}
	log.Info("took up the volumes of the agent before", "volumes", len(found))
}

// takeUp hands a volume of the agent before to the lifecycle.
func takeUp(storage *volumes, registry *workload.Registry, allowed attributeLimits, r recovered, log *slog.Logger) error {
	refused := allowed.check(r.volume.Attributes)
	switch {
	case refused != nil && r.awaited():
		return storage.Remove(r.volume.ID) // Not published yet: kubelet asks again, and is told why.
	case refused != nil:
		log.Warn("a volume of the agent before chose what is no longer allowed; it gets the nearest that is", "volume", r.volume.ID, "error", refused)
	}
	switch {
	case r.svid != nil:
		registry.Restore(r.volume, r.svid, r.attempt)
		return nil
	case r.awaited():
		return registry.Await(r.volume, *r.attempt)
	}
	return registry.Resume(r.volume, r.attempt)
}

// parts is everything that runs.
type parts struct {
	log         *slog.Logger
	metrics     *prometheus.Registry
	store       *csi.Store
	storage     *volumes
	trust       workload.Trust
	issuer      *certmanager.Issuer
	signers     *issuerconfig.Source
	workloadAPI *workloadapi.Server
	registry    *workload.Registry
	events      *podevents.Recorder
	pods        *boundpods.Pods // nil without --watch-pods.
	admin       *administration
}

// shutdownGrace bounds how long streams may take to hear that the agent stops.
const shutdownGrace = 2 * time.Second

func serve(ctx context.Context, o *options, p parts) error {
	endpoint, err := csi.ParseEndpoint(o.endpoint)
	if err != nil {
		return err
	}
	registration, err := csi.NewRegistration(csi.RegistrationOptions{Dir: o.registrationDir, DriverName: o.driverName, Endpoint: endpoint, Log: p.log})
	if err != nil {
		return err
	}
	ready := readiness(registration, p)
	driver, err := csi.NewServer(csi.ServerOptions{
		Endpoint: o.endpoint, DriverName: o.driverName, Version: version, NodeID: o.nodeID,
		Workloads: workloads{p.registry, o.attributeLimits(), p.storage}, Store: p.store, Log: p.log,
	})
	if err != nil {
		return err
	}
	web, err := observe.NewServer(observe.ServerOptions{
		Address: o.httpAddress, Registry: p.metrics, Ready: ready, Live: live, Log: p.log,
	})
	if err != nil {
		return err
	}

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return web.Run(ctx) })
	group.Go(func() error { return driver.Run(ctx) })
	group.Go(func() error { return ignoreCancel(registration.Run(ctx)) })
	group.Go(func() error { p.issuer.Run(ctx); return nil })
	group.Go(func() error { p.signers.Run(ctx); return nil })
	group.Go(func() error { p.registry.Run(ctx); return nil })
	group.Go(func() error { p.events.Run(ctx); return nil })
	group.Go(func() error { p.admin.run(ctx); return nil })
	if p.pods != nil {
		group.Go(func() error { p.pods.Run(ctx); return nil })
	}
	if watcher, ok := p.trust.(interface{ Run(context.Context) }); ok {
		group.Go(func() error { watcher.Run(ctx); return nil })
	}
	group.Go(func() error {
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
		defer cancel()
		return ignoreCancel(p.workloadAPI.Shutdown(grace))
	})
	err = group.Wait()
	p.log.Info("signet-agent stopped")
	return err
}

func ignoreCancel(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return err
}

// readiness is /readyz. A bundle that is learned has no file to wait for.
func readiness(registration *csi.Registration, p parts) observe.Check {
	h := health{registered: registration.Registered, synced: p.issuer.Synced, watching: p.issuer.Watching, named: p.signers.Synced}
	if _, learns := p.trust.(workload.Learner); !learns {
		h.bundle = p.trust.Bundle
	}
	if p.pods != nil {
		h.pods = p.pods.Watching
	}
	return h.ready
}
