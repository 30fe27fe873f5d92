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
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// issuers tells which issuers are the SPIFFE ones: those of the flags, and the
// one that the runtime ConfigMap names, if there is such a ConfigMap.
//
// The ConfigMap is read from the cache for every decision, so there is no second
// copy of it to go stale. The issuer of the flags stays allowed beside it: agents
// learn of a change at their own pace, and requests under way are not refused.
type issuers struct {
	static []cmmeta.IssuerReference
	ref    types.NamespacedName // empty name: no ConfigMap
	reader client.Reader
	log    *slog.Logger

	mu       sync.Mutex
	reported string // version of the ConfigMap last logged about; guarded by mu
}

func (i *issuers) allowed(ctx context.Context) ([]cmmeta.IssuerReference, error) {
	if i.ref.Name == "" {
		return i.static, nil
	}
	var cm corev1.ConfigMap
	err := i.reader.Get(ctx, i.ref, &cm)
	if apierrors.IsNotFound(err) {
		return i.static, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read issuer from ConfigMap %s: %w", i.ref, err)
	}
	ref, err := runtimeIssuer(cm.Data)
	i.report(&cm, ref, err)
	if err != nil {
		return i.static, nil
	}
	return append([]cmmeta.IssuerReference{ref}, i.static...), nil
}

// The keys of the runtime ConfigMap, as csi-driver-spiffe has them.
const (
	keyIssuerName  = "issuer-name"
	keyIssuerKind  = "issuer-kind"
	keyIssuerGroup = "issuer-group"
)

func runtimeIssuer(data map[string]string) (cmmeta.IssuerReference, error) {
	ref := cmmeta.IssuerReference{Name: data[keyIssuerName], Kind: data[keyIssuerKind], Group: data[keyIssuerGroup]}
	for key, value := range map[string]string{keyIssuerName: ref.Name, keyIssuerKind: ref.Kind, keyIssuerGroup: ref.Group} {
		if value == "" {
			return cmmeta.IssuerReference{}, fmt.Errorf("key %q is missing or empty", key)
		}
	}
	return ref, nil
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
		i.log.Error("runtime issuer is ignored: the ConfigMap is not valid", "configmap", i.ref.String(), "err", err)
	default:
		i.log.Info("runtime issuer is allowed", "configmap", i.ref.String(), "issuer", ref.Name, "kind", ref.Kind, "group", ref.Group)
	}
}
