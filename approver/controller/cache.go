// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"

	"github.com/signet-spiffe/signet/approver/evaluate"
	"github.com/signet-spiffe/signet/internal/request"
)

// cacheOptions keeps trimmed requests, and of ConfigMaps the one that may name
// the issuer.
func cacheOptions(o Options) cache.Options {
	byObject := map[client.Object]cache.ByObject{
		&cmapi.CertificateRequest{}: {Transform: trim(o.Policy.Driver, o.Policy.ApproveNonSPIFFE)},
	}
	if o.RuntimeIssuer.Name != "" {
		byObject[&corev1.ConfigMap{}] = cache.ByObject{
			Namespaces: map[string]cache.Config{
				o.RuntimeIssuer.Namespace: {FieldSelector: fields.OneTermEqualSelector("metadata.name", o.RuntimeIssuer.Name)},
			},
			Transform: cache.TransformStripManagedFields(),
		}
	}
	return cache.Options{ByObject: byObject, NewInformer: newInformer(o.Log)}
}

// trim drops from a CertificateRequest what its verdict does not depend on. It
// may be applied twice to one object and leaves other types alone.
func trim(driver string, approveNonSPIFFE bool) toolscache.TransformFunc {
	return func(obj any) (any, error) {
		cr, ok := obj.(*cmapi.CertificateRequest)
		if !ok {
			return obj, nil
		}
		cr.ManagedFields, cr.Labels, cr.Finalizers = nil, nil, nil
		cr.Status.Certificate, cr.Status.CA, cr.Status.FailureTime = nil, nil, nil
		cr.Spec.UID, cr.Spec.Groups = "", nil
		cr.Annotations = keep(cr.Annotations, request.AnnotationIdentity, request.AnnotationDriver)
		if !candidate(cr, driver, approveNonSPIFFE) {
			// It may come back only with a newer version, from the API server.
			cr.OwnerReferences = nil
			cr.Spec = cmapi.CertificateRequestSpec{}
			cr.Status.Conditions = verdicts(cr.Status.Conditions)
		}
		return cr, nil
	}
}

func keep(annotations map[string]string, keys ...string) map[string]string {
	var kept map[string]string
	for _, key := range keys {
		if value, ok := annotations[key]; ok {
			if kept == nil {
				kept = map[string]string{}
			}
			kept[key] = value
		}
	}
	return kept
}

// verdicts keeps that a request is decided, without the words.
func verdicts(conditions []cmapi.CertificateRequestCondition) []cmapi.CertificateRequestCondition {
	var kept []cmapi.CertificateRequestCondition
	for _, c := range conditions {
		if c.Type == cmapi.CertificateRequestConditionApproved || c.Type == cmapi.CertificateRequestConditionDenied {
			kept = append(kept, cmapi.CertificateRequestCondition{Type: c.Type, Status: c.Status})
		}
	}
	return kept
}

// candidate reports whether evaluate.Evaluate could do anything but ignore cr.
func candidate(cr *cmapi.CertificateRequest, driver string, approveNonSPIFFE bool) bool {
	if cr.DeletionTimestamp != nil || evaluate.Decided(cr) {
		return false
	}
	switch evaluate.KindOf(cr, driver) {
	case evaluate.Ours:
		return true
	case evaluate.Plain:
		return approveNonSPIFFE
	}
	return false
}

// candidates lets only undecided requests of ours into the queue, so that the
// condition this approver writes, and what the issuer writes later, wake nobody.
func candidates(driver string, approveNonSPIFFE bool) predicate.Predicate {
	is := func(obj client.Object) bool {
		cr, ok := obj.(*cmapi.CertificateRequest)
		return ok && candidate(cr, driver, approveNonSPIFFE)
	}
	return predicate.Funcs{
		CreateFunc:  func(e event.CreateEvent) bool { return is(e.Object) },
		UpdateFunc:  func(e event.UpdateEvent) bool { return is(e.ObjectNew) },
		DeleteFunc:  func(event.DeleteEvent) bool { return false },
		GenericFunc: func(event.GenericEvent) bool { return false },
	}
}
