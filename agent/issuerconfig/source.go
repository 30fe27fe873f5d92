// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package issuerconfig

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	coreclient "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/signet-spiffe/signet/internal/request"
)

// DefaultSyncTimeout is how long one issuance waits for the ConfigMap's first
// list. The attempt that waited in vain is tried again like any other.
const DefaultSyncTimeout = 10 * time.Second

// Options configure New.
type Options struct {
	// Client lists and watches the ConfigMap, and writes Events beside it.
	Client coreclient.CoreV1Interface
	// ConfigMap that may name the issuer.
	ConfigMap types.NamespacedName
	// Default is the issuer where there is no such ConfigMap; the zero value says
	// that there is none then.
	Default cmmeta.IssuerReference
	// SyncTimeout bounds the wait for the first list; 0: DefaultSyncTimeout.
	SyncTimeout time.Duration
	// Reporter names this agent in Events, its node for instance.
	Reporter string
	// Log and Registerer may be nil.
	Log        *slog.Logger
	Registerer prometheus.Registerer
}

// Source tells which issuer to ask, now. Safe for concurrent use.
type Source struct {
	options Options
	log     *slog.Logger
	metrics *metrics
	synced  chan struct{} // Closed after the first list.

	mu         sync.Mutex // Guards what follows. Never held during I/O.
	ref        cmmeta.IssuerReference
	refused    string // Why the ConfigMap's content does not count; empty: it does.
	reported   string // The version of the ConfigMap that was refused last.
	trouble    error  // The last error of list or watch before the first list.
	superseded chan struct{}
}

// Fixed is a Source that never changes and needs no Run.
func Fixed(ref cmmeta.IssuerReference) *Source {
	s := newSource(Options{Default: ref})
	close(s.synced)
	return s
}

// New makes a Source that knows nothing until Run is running. It does no I/O.
func New(o Options) (*Source, error) {
	if o.Client == nil || o.ConfigMap.Name == "" || o.ConfigMap.Namespace == "" {
		return nil, errors.New("issuer from a ConfigMap: client, name and namespace are needed")
	}
	s := newSource(o)
	var err error
	if s.metrics, err = newMetrics(o.Registerer); err != nil {
		return nil, fmt.Errorf("issuer from ConfigMap %s: %w", o.ConfigMap, err)
	}
	return s, nil
}

func newSource(o Options) *Source {
	if o.SyncTimeout <= 0 {
		o.SyncTimeout = DefaultSyncTimeout
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Source{
		options: o, log: o.Log, ref: o.Default,
		synced: make(chan struct{}), superseded: make(chan struct{}),
	}
}

// Synced says whether it is known by now if there is a ConfigMap.
func (s *Source) Synced() bool {
	select {
	case <-s.synced:
		return true
	default:
		return false
	}
}

// IssuerRef returns the issuer to ask. It waits until the ConfigMap was listed
// once, up to SyncTimeout and the end of ctx; report is told so. The error says
// what is missing and what to do.
func (s *Source) IssuerRef(ctx context.Context, report func(what string)) (cmmeta.IssuerReference, error) {
	if !s.Synced() {
		report(fmt.Sprintf("waiting for ConfigMap %s to be read, which may name the issuer", s.options.ConfigMap))
		if err := s.wait(ctx); err != nil {
			return cmmeta.IssuerReference{}, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ref != (cmmeta.IssuerReference{}):
		return s.ref, nil
	case s.refused != "":
		return cmmeta.IssuerReference{}, fmt.Errorf("no issuer is configured: ConfigMap %s is not valid: %s", s.options.ConfigMap, s.refused)
	}
	return cmmeta.IssuerReference{}, fmt.Errorf("no issuer is configured: there is no ConfigMap %s and --issuer-name is empty", s.options.ConfigMap)
}

func (s *Source) wait(ctx context.Context) error {
	bound := time.NewTimer(s.options.SyncTimeout)
	defer bound.Stop()
	select {
	case <-s.synced:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("withdrawn while waiting for ConfigMap %s: %w", s.options.ConfigMap, context.Cause(ctx))
	case <-bound.C:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.trouble != nil {
		return fmt.Errorf("ConfigMap %s, which may name the issuer, could not be read: %w (the agent needs the right to list and watch it)", s.options.ConfigMap, s.trouble)
	}
	return fmt.Errorf("ConfigMap %s, which may name the issuer, could not be read within %s; is the API server reachable?", s.options.ConfigMap, s.options.SyncTimeout)
}

// Issuer names the issuer that IssuerRef returns now, as request.IssuerName does, and a
// channel that is closed when that has changed. The name is empty while it is not
// known or there is none.
func (s *Source) Issuer() (name string, superseded <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.Synced() {
		return "", s.superseded
	}
	return request.IssuerName(s.ref), s.superseded
}

// absent takes in that there is no ConfigMap.
func (s *Source) absent() {
	if s.settle(s.options.Default, "") {
		s.log.Info("issuer is the one of the flags: there is no ConfigMap that names another",
			"configmap", s.options.ConfigMap.String(), "issuer", request.IssuerName(s.options.Default))
	}
	s.metrics.valid.Set(1)
}

// present takes in the ConfigMap's content. It returns why it was refused, once
// for each version.
func (s *Source) present(cm *corev1.ConfigMap) error {
	ref, err := request.ParseRuntimeIssuer(cm.Data)
	if err != nil {
		return s.refuse(cm, err)
	}
	if s.settle(ref, "") {
		s.log.Info("issuer is the one that the ConfigMap names",
			"configmap", s.options.ConfigMap.String(), "issuer", request.IssuerName(ref), "resource_version", cm.ResourceVersion)
	}
	s.metrics.valid.Set(1)
	return nil
}

func (s *Source) refuse(cm *corev1.ConfigMap, err error) error {
	version := string(cm.UID) + "/" + cm.ResourceVersion
	s.mu.Lock()
	stays, seen := s.ref, s.reported == version
	s.reported = version
	s.mu.Unlock()
	if !s.Synced() {
		// Nothing is known that could stay. The issuer of the flags is perhaps no
		// longer meant: to ask it would replace every SVID by one of its own.
		stays = cmmeta.IssuerReference{}
	}
	s.settle(stays, err.Error())
	s.metrics.valid.Set(0)
	if seen {
		return nil
	}
	s.metrics.refusals.Inc()
	s.log.Error("ConfigMap with the issuer is not valid and was refused; the issuer stays as it was",
		"configmap", s.options.ConfigMap.String(), "resource_version", cm.ResourceVersion, "error", err, "issuer", request.IssuerName(stays))
	return err
}

// settle makes ref the issuer and says whether that is worth a line in the log:
// it changed, or it is the first.
func (s *Source) settle(ref cmmeta.IssuerReference, refused string) (news bool) {
	first := !s.Synced()
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := s.ref != ref
	s.ref, s.refused, s.trouble = ref, refused, nil
	if first {
		close(s.synced)
	}
	if changed || first {
		close(s.superseded)
		s.superseded = make(chan struct{})
	}
	if changed && !first {
		s.metrics.changes.Inc()
	}
	return changed || first
}

func (s *Source) failed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trouble = err
}
