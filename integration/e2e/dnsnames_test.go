// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// checkDNSNames checks that the certificate, on the socket and in the files, has
// the identity and the DNS names, which are in order, and no other name. It
// returns the serial number.
func checkDNSNames(ctx context.Context, t *testing.T, pod *corev1.Pod, id string, want ...string) (serial string) {
	t.Helper()
	got, inFiles := fetch(ctx, t, pod), certificateIn(ctx, t, pod)
	if got.ID != id || !slices.Equal(got.DNSNames, want) {
		t.Errorf("on the socket: %s with DNS names %q, want %s with %q", got.ID, got.DNSNames, id, want)
	}
	if len(inFiles.URIs) != 1 || inFiles.URIs[0].String() != id || !slices.Equal(inFiles.DNSNames, want) ||
		len(inFiles.IPAddresses)+len(inFiles.EmailAddresses) != 0 || inFiles.Subject.String() != "" {
		t.Errorf("in the files: subject %q, %v with DNS names %q, IP %v, e-mail %q, want %s with %q and nothing else",
			inFiles.Subject, inFiles.URIs, inFiles.DNSNames, inFiles.IPAddresses, inFiles.EmailAddresses, id, want)
	}
	return got.Serial
}

// dns-names: they are in the first SVID and in the next one.
func testTheSVIDHasTheDNSNamesThatItsPodChose(t *testing.T) {
	t.Parallel()
	ctx := needCluster(t, testTimeout)
	ns := newNamespace(ctx, t)
	web, short := fmt.Sprintf("web.%s.svc.cluster.local", ns), fmt.Sprintf("%s.svc.cluster.local", ns)
	pod := runPod(ctx, t, ns, podSpec{
		Name: "web", Args: []string{"hold"},
		Attributes: chosen(map[string]string{"dns-names": web + ", " + short, "duration": "4m", "renew-before": "215s"}),
	})
	want := []string{web, short}
	slices.Sort(want)
	first := checkDNSNames(ctx, t, pod, spiffeID(ns, "default"), want...)
	follow(ctx, t, pod, func(line said) bool { return line.OwnSerial != "" && line.OwnSerial != first })
	if second := checkDNSNames(ctx, t, pod, spiffeID(ns, "default"), want...); second == first {
		t.Errorf("the serial is still %s", first)
	}
	plain := runPod(ctx, t, ns, podSpec{Name: "plain"})
	checkDNSNames(ctx, t, plain, spiffeID(ns, "default"))
}

// The approver allows the names of the pod's own namespace, and says so to who
// asks for others.
func testDNSNamesOfAnotherNamespaceAreDenied(t *testing.T) {
	t.Parallel()
	ctx := needCluster(t, testTimeout)
	ns := newNamespace(ctx, t)
	pod := createPod(ctx, t, ns, podSpec{
		Name: "web", Attributes: chosen(map[string]string{"dns-names": fmt.Sprintf("web.%s.svc.cluster.local,web.kube-system.svc.cluster.local", ns)}),
	})
	waitTold(ctx, t, pod, "SVIDDenied", fmt.Sprintf(
		`rule "csr-dns-names": asked for DNS name "web.kube-system.svc.cluster.local", allowed for service account "%s/default" is "%s.svc.cluster.local", or a name below`, ns, ns))
}
