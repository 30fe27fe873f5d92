// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"maps"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"

	"github.com/signet-spiffe/signet/integration/install"
)

// TestBundleFromAFile gives the agent --source-ca-bundle, as an operator would: a
// ConfigMap mounted into the DaemonSet.
func TestBundleFromAFile(t *testing.T) {
	if env.skipped != "" {
		t.Skip(env.skipped)
	}
	run(t, []part{{"the file is the bundle, and is watched", testTheFileIsTheBundle}})
}

const rootsName, rootsKey = "spiffe-roots", "roots.pem"

// What pods trust is what the file says, not what the issuer says; a changed file
// reaches streams and files of running pods.
func testTheFileIsTheBundle(t *testing.T) {
	ctx := needCluster(t, 2*testTimeout)
	issuing := issuingRoot(ctx, t)
	extra := strangeRoot(t)
	writeRoots(ctx, t, issuing, extra)
	mountRoots(ctx, t)

	ns := newNamespace(ctx, t)
	pod := runPod(ctx, t, ns, podSpec{Name: "app", Node: nodeOne})
	if got := mustExecute(ctx, t, pod, "cat", mountPath+"/ca.crt"); !sameCertificates(got, issuing, extra) {
		t.Errorf("ca.crt is not the file's two roots:\n%s", got)
	}
	stream, err := workload.NewSpiffeWorkloadAPIClient(node(ctx, t, nodeOne).podSocket(t, pod)).FetchX509Bundles(
		withMetadata(ctx, "workload.spiffe.io", "true"), &workload.X509BundlesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if n := bundleSize(t, stream); n != 2 {
		t.Errorf("the stream begins with %d roots, want 2", n)
	}
	writeRoots(ctx, t, issuing)
	if n := bundleSize(t, stream); n != 1 { // Waits until kubelet has brought the change.
		t.Errorf("the stream goes on with %d roots, want 1", n)
	}
	if got := mustExecute(ctx, t, pod, "cat", mountPath+"/ca.crt"); !sameCertificates(got, issuing) {
		t.Errorf("ca.crt is not the file's one root:\n%s", got)
	}
}

// issuingRoot is the root of the issuer that signs the SVIDs, PEM.
func issuingRoot(ctx context.Context, t *testing.T) []byte {
	t.Helper()
	secret, err := env.Kube.CoreV1().Secrets("cert-manager").Get(ctx, "spiffe-ca", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return secret.Data[corev1.TLSCertKey]
}

// strangeRoot is a root that signs nothing here, PEM.
func strangeRoot(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "retired root"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func writeRoots(ctx context.Context, t *testing.T, roots ...[]byte) {
	t.Helper()
	configMaps := env.Kube.CoreV1().ConfigMaps(install.Namespace)
	cm := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: rootsName, Namespace: install.Namespace},
		Data:       map[string]string{rootsKey: string(bytes.Join(roots, nil))},
	}
	_, err := configMaps.Update(ctx, cm, metav1.UpdateOptions{})
	if err != nil {
		_, err = configMaps.Create(ctx, cm, metav1.CreateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// mountRoots puts the ConfigMap into the DaemonSet until the test ends.
func mountRoots(ctx context.Context, t *testing.T) {
	t.Helper()
	var before appsv1.DaemonSetSpec
	changeAgents(ctx, t, func(spec *appsv1.DaemonSetSpec) {
		before = *spec.DeepCopy()
		pod := &spec.Template.Spec
		pod.Volumes = append(pod.Volumes, corev1.Volume{Name: "roots", VolumeSource: corev1.VolumeSource{
			ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: rootsName}},
		}})
		agent := &pod.Containers[0]
		agent.VolumeMounts = append(agent.VolumeMounts, corev1.VolumeMount{Name: "roots", MountPath: "/roots", ReadOnly: true})
		agent.Args = append(agent.Args, "--source-ca-bundle=/roots/"+rootsKey)
	})
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
		defer cancel()
		changeAgents(ctx, t, func(spec *appsv1.DaemonSetSpec) { *spec = before })
	})
}

func changeAgents(ctx context.Context, t *testing.T, change func(*appsv1.DaemonSetSpec)) {
	t.Helper()
	daemonSets := env.Kube.AppsV1().DaemonSets(install.Namespace)
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		d, err := daemonSets.Get(ctx, install.AgentName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		change(&d.Spec)
		_, err = daemonSets.Update(ctx, d, metav1.UpdateOptions{})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := env.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
}

// bundleSize waits for the stream's next message and counts its roots.
func bundleSize(t *testing.T, stream workload.SpiffeWorkloadAPI_FetchX509BundlesClient) int {
	t.Helper()
	message, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if domains := slices.Collect(maps.Keys(message.GetBundles())); len(domains) != 1 || domains[0] != "spiffe://"+trustDomain {
		t.Fatalf("bundles of %q", domains)
	}
	roots, err := x509.ParseCertificates(message.GetBundles()["spiffe://"+trustDomain])
	if err != nil {
		t.Fatal(err)
	}
	return len(roots)
}

// sameCertificates compares PEM files, whatever their order.
func sameCertificates(got []byte, want ...[]byte) bool {
	ders := func(content []byte) (all []string) {
		for block, rest := pem.Decode(content); block != nil; block, rest = pem.Decode(rest) {
			all = append(all, string(block.Bytes))
		}
		slices.Sort(all)
		return all
	}
	return slices.Equal(ders(got), ders(bytes.Join(want, nil)))
}
