// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"
)

// installCertManager installs what the chart of cert-manager would, starts its
// controllers and its webhook, and waits until the webhook decides.
func (s *supervisor) installCertManager(ctx context.Context, config *rest.Config) error {
	a, err := newApplier(config)
	if err != nil {
		return fmt.Errorf("install cert-manager: %w", err)
	}
	definitions, err := os.ReadFile(s.Binaries[componentCRDs])
	if err != nil {
		return fmt.Errorf("install cert-manager: %w", err)
	}
	access, err := marshalAll(certManagerAccess()...)
	if err != nil {
		return fmt.Errorf("install cert-manager: %w", err)
	}
	if err := a.apply(ctx, access, definitions); err != nil {
		return fmt.Errorf("install cert-manager: %w", err)
	}
	for _, name := range []string{componentCertManager, componentWebhook} {
		if err := s.set.start(name); err != nil {
			return fmt.Errorf("install cert-manager: %w", err)
		}
	}
	webhooks, err := marshalAll(webhookConfigurations(s.pki.webhookCA.certPEM)...)
	if err != nil {
		return fmt.Errorf("install cert-manager: %w", err)
	}
	if err := a.apply(ctx, webhooks); err != nil {
		return fmt.Errorf("install cert-manager: %w", err)
	}
	if err := a.waitForWebhook(ctx); err != nil {
		return fmt.Errorf("wait for cert-manager's webhook (see %s): %w", s.LogDir, err)
	}
	return nil
}

// waitForWebhook sends it something to decide. Its rules fail closed, so that
// nothing passes before it serves.
func (a *applier) waitForWebhook(ctx context.Context) error {
	probe := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "cert-manager.io/v1",
		"kind":       "ClusterIssuer",
		"metadata":   map[string]any{"name": "webhook-probe"},
		"spec":       map[string]any{"selfSigned": map[string]any{}},
	}}
	return retry(ctx, 200*time.Millisecond, func(ctx context.Context) error {
		return a.applyObject(ctx, probe, metav1.ApplyOptions{FieldManager: fieldManager, DryRun: []string{metav1.DryRunAll}})
	})
}

// certManagerAccess is the namespace of cert-manager and what its two users
// may do: everything, since what is tested is not cert-manager's own rights.
func certManagerAccess() []map[string]any {
	binding := func(name, user string) map[string]any {
		return map[string]any{
			"apiVersion": "rbac.authorization.k8s.io/v1",
			"kind":       "ClusterRoleBinding",
			"metadata":   map[string]any{"name": name},
			"roleRef":    map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
			"subjects":   []any{map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}},
		}
	}
	return []map[string]any{
		{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": certManagerNamespace}},
		binding("cert-manager", certManagerUser),
		binding("cert-manager-webhook", webhookUser),
	}
}

// webhookConfigurations are those of the chart (templates
// webhook-mutating-webhook.yaml and webhook-validating-webhook.yaml with
// default values), except that the webhook is called by address: it runs
// beside the API server, not in a pod.
func webhookConfigurations(ca []byte) []map[string]any {
	configuration := func(kind, path string, selector map[string]any, groups, operations, resources []any) map[string]any {
		webhook := map[string]any{
			"name": "webhook.cert-manager.io",
			"rules": []any{map[string]any{
				"apiGroups":   groups,
				"apiVersions": []any{"v1"},
				"operations":  operations,
				"resources":   resources,
			}},
			"admissionReviewVersions": []any{"v1"},
			"matchPolicy":             "Equivalent",
			"timeoutSeconds":          30,
			"failurePolicy":           "Fail",
			"sideEffects":             "None",
			"clientConfig": map[string]any{
				"url":      fmt.Sprintf("https://127.0.0.1:%d%s", webhookPort, path),
				"caBundle": base64.StdEncoding.EncodeToString(ca),
			},
		}
		if selector != nil {
			webhook["namespaceSelector"] = selector
		}
		return map[string]any{
			"apiVersion": "admissionregistration.k8s.io/v1",
			"kind":       kind,
			"metadata": map[string]any{
				"name": "cert-manager-webhook",
				"labels": map[string]any{
					"app":                         "webhook",
					"app.kubernetes.io/name":      "webhook",
					"app.kubernetes.io/instance":  "cert-manager",
					"app.kubernetes.io/component": "webhook",
				},
			},
			"webhooks": []any{webhook},
		}
	}
	exempt := map[string]any{"matchExpressions": []any{
		map[string]any{"key": "cert-manager.io/disable-validation", "operator": "NotIn", "values": []any{"true"}},
	}}
	return []map[string]any{
		configuration("MutatingWebhookConfiguration", "/mutate", nil,
			[]any{"cert-manager.io"}, []any{"CREATE"}, []any{"certificaterequests"}),
		configuration("ValidatingWebhookConfiguration", "/validate", exempt,
			[]any{"cert-manager.io", "acme.cert-manager.io"}, []any{"CREATE", "UPDATE"}, []any{"*/*"}),
	}
}

// marshalAll renders objects as a YAML stream.
func marshalAll(objects ...map[string]any) ([]byte, error) {
	var stream []byte
	for _, o := range objects {
		document, err := yaml.Marshal(o)
		if err != nil {
			return nil, err
		}
		stream = append(append(stream, "---\n"...), document...)
	}
	return stream, nil
}
