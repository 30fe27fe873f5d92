// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/signet-spiffe/signet/integration/install"
)

const (
	issuerConfigMap = "spiffe-issuer"
	nextIssuer      = "next-ca"
)

// TestRuntimeIssuer lets a ConfigMap name the issuer, and changes its mind. SVIDs
// live for an hour here: what is issued again is so because of the ConfigMap.
func TestRuntimeIssuer(t *testing.T) {
	ctx := needCluster(t, 2*testTimeout)
	installRuntimeIssuer(ctx, t)
	t.Cleanup(func() {
		ctx := context.WithoutCancel(ctx)
		_ = env.Kube.CoreV1().ConfigMaps(install.Namespace).Delete(ctx, issuerConfigMap, metav1.DeleteOptions{})
		if err := env.Signet(ctx, standardOptions()); err != nil {
			t.Error(err)
		}
	})
	ns := newNamespace(ctx, t)
	pod := runPod(ctx, t, ns, podSpec{Name: "app"})
	first := fetch(ctx, t, pod).Serial
	configMaps := env.Kube.CoreV1().ConfigMaps(install.Namespace)

	// Requests are seen from here on, however fast they go.
	before := requestsVersion(ctx, t, ns)

	// Named: the running pod gets an SVID of that issuer, and so does a new one.
	config, err := configMaps.Create(ctx, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: issuerConfigMap},
		Data:       map[string]string{"issuer-name": nextIssuer, "issuer-kind": "ClusterIssuer", "issuer-group": "cert-manager.io"},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	waitStored(ctx, t, ns, before, pod.Name, nextIssuer)
	second := fetch(ctx, t, pod).Serial
	if second == first {
		t.Error("the pod still has the SVID of the issuer before")
	}

	// Not valid: refused with an Event, and the issuer stays.
	config.Data["issuer-kind"] = ""
	if config, err = configMaps.Update(ctx, config, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	event := waitEventOf(ctx, t, install.Namespace, config.UID, "issuer-kind", "refused")
	t.Logf("the ConfigMap's Event says: %s: %s", event.Reason, event.Message)
	createPod(ctx, t, ns, podSpec{Name: "meanwhile"})
	waitStored(ctx, t, ns, before, "meanwhile", nextIssuer)
	waitPod(ctx, t, ns, "meanwhile", "to be ready", readyOrNot)
	if got := fetch(ctx, t, pod).Serial; got != second {
		t.Error("content that was refused changed the SVID of a running pod")
	}

	// Deleted: back to the issuer of the flags.
	before = requestsVersion(ctx, t, ns)
	if err := configMaps.Delete(ctx, issuerConfigMap, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	waitStored(ctx, t, ns, before, pod.Name, install.IssuerName)
	if got := fetch(ctx, t, pod).Serial; got == second {
		t.Error("the pod still has the SVID of the issuer that the ConfigMap named")
	}
	waitNoRequests(ctx, t, ns)
}

// installRuntimeIssuer makes a second issuer and installs Signet as the component
// runtime-issuer does.
func installRuntimeIssuer(ctx context.Context, t *testing.T) {
	t.Helper()
	_, err := env.CertManager.CertmanagerV1().ClusterIssuers().Create(ctx, &cmapi.ClusterIssuer{
		ObjectMeta: metav1.ObjectMeta{Name: nextIssuer},
		Spec:       cmapi.IssuerSpec{IssuerConfig: cmapi.IssuerConfig{CA: &cmapi.CAIssuer{SecretName: install.IssuerName}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("create ClusterIssuer: %v", err)
	}
	rights, err := os.ReadFile("../../deploy/runtime-issuer/rbac.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := env.cluster.Apply(ctx, rights); err != nil {
		t.Fatal(err)
	}
	options := standardOptions()
	options.Duration = time.Hour
	options.AgentFlags["--reissue-window"] = "2s"
	for _, flags := range []map[string]string{options.AgentFlags, options.ApproverFlags} {
		flags["--runtime-issuance-config-map-name"] = issuerConfigMap
		flags["--runtime-issuance-config-map-namespace"] = install.Namespace
	}
	if err := env.Signet(ctx, options); err != nil {
		t.Fatal(err)
	}
}

// requestsVersion is a point in the history of a namespace's requests.
func requestsVersion(ctx context.Context, t *testing.T, ns string) string {
	t.Helper()
	list, err := env.CertManager.CertmanagerV1().CertificateRequests(ns).List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return list.ResourceVersion
}

// waitStored waits until a pod has stored an SVID of an issuer, since from: the
// agent deletes the request then.
func waitStored(ctx context.Context, t *testing.T, ns, from, pod, issuer string) {
	t.Helper()
	_, err := install.Await(ctx, install.Selection{
		Client: env.CertManager.CertmanagerV1().RESTClient(), Resource: "certificaterequests", Namespace: ns, From: from,
		What: fmt.Sprintf("a certificate by %s for pod %s/%s", issuer, ns, pod),
	}, func(cr *cmapi.CertificateRequest, deleted bool) error {
		switch {
		case len(cr.OwnerReferences) != 1 || cr.OwnerReferences[0].Name != pod:
			return errors.New("there are requests of other pods")
		case cr.Spec.IssuerRef.Name != issuer:
			return fmt.Errorf("issuer %s was asked", cr.Spec.IssuerRef.Name)
		case !deleted || len(cr.Status.Certificate) == 0:
			return errors.New("it is not stored yet")
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, describePod(ctx, ns, pod))
	}
}
