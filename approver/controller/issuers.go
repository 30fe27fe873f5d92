// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/signet-spiffe/signet/internal/request"
)

// issuers tells which issuers are the SPIFFE ones: those of the flags, and the
// one that the runtime ConfigMap names, if there is such a ConfigMap.
//
// The ConfigMap is read from the cache for every decision, so there is no second
// copy of it to go stale. The issuer of the flags stays allowed beside it: agents
// learn of a change at their own pace, and requests under way are not refused.
//
// Content that is not valid changes nothing: agents go on with the issuer that
// they had, so the one that was valid last stays allowed until the ConfigMap is
// valid again or deleted.
type issuers struct {
	static []cmmeta.IssuerReference
	ref    types.NamespacedName // empty name: no ConfigMap
	reader client.Reader
	log    *slog.Logger

	mu       sync.Mutex             // guards the rest
	reported string                 // version of the ConfigMap last logged about
	last     cmmeta.IssuerReference // the one that was valid last; zero: none
}

func (i *issuers) allowed(ctx context.Context) ([]cmmeta.IssuerReference, error) {
	if i.ref.Name == "" {
		return i.static, nil
	}
	var cm corev1.ConfigMap
	err := i.reader.Get(ctx, i.ref, &cm)
	if apierrors.IsNotFound(err) {
		i.remember(cmmeta.IssuerReference{})
		return i.static, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read issuer from ConfigMap %s: %w", i.ref, err)
	}
	ref, err := request.ParseRuntimeIssuer(cm.Data)
	i.report(&cm, ref, err)
	if err != nil {
		ref = i.lastValid()
	} else {
		i.remember(ref)
	}
	if ref == (cmmeta.IssuerReference{}) {
		return i.static, nil
	}
	return append([]cmmeta.IssuerReference{ref}, i.static...), nil
}

func (i *issuers) lastValid() cmmeta.IssuerReference {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.last
}

func (i *issuers) remember(ref cmmeta.IssuerReference) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.last = ref
}

// follower keeps the issuer that was valid last also in a replica that decides
// nothing, so that one that takes over knows it.
type follower struct {
	issuers *issuers
	cache   cache.Cache
}

var _ manager.LeaderElectionRunnable = follower{}

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (follower) NeedLeaderElection() bool { return false }

// Start implements manager.Runnable.
func (f follower) Start(ctx context.Context) error {
	informer, err := f.cache.GetInformer(ctx, &corev1.ConfigMap{})
	if err != nil {
		return fmt.Errorf("watch ConfigMap %s: %w", f.issuers.ref, err)
	}
	registration, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc:    f.issuers.learn,
		UpdateFunc: func(_, now any) { f.issuers.learn(now) },
		DeleteFunc: func(any) { f.issuers.remember(cmmeta.IssuerReference{}) },
	})
	if err != nil {
		return fmt.Errorf("watch ConfigMap %s: %w", f.issuers.ref, err)
	}
	<-ctx.Done()
	return informer.RemoveEventHandler(registration)
}

// learn remembers the issuer of a ConfigMap if it is valid. The cache holds no
// other ConfigMap.
func (i *issuers) learn(o any) {
	cm, ok := o.(*corev1.ConfigMap)
	if !ok {
		return
	}
	ref, err := request.ParseRuntimeIssuer(cm.Data)
	i.report(cm, ref, err)
	if err == nil {
		i.remember(ref)
	}
}

// report logs once for each version of the ConfigMap.
func (i *issuers) report(cm *corev1.ConfigMap, ref cmmeta.IssuerReference, err error) {
	i.mu.Lock()
	seen := i.reported == cm.ResourceVersion
	i.reported = cm.ResourceVersion
	i.mu.Unlock()
	switch {
	case seen:
	case err != nil:
		i.log.Error("runtime issuer is refused, the one before stays: the ConfigMap is not valid", "configmap", i.ref.String(), "err", err)
	default:
		i.log.Info("runtime issuer is allowed", "configmap", i.ref.String(), "issuer", ref.Name, "kind", ref.Kind, "group", ref.Group)
	}
}
