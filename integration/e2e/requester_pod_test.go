// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"crypto/x509"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"

	"github.com/signet-spiffe/signet/integration/install"
	"github.com/signet-spiffe/signet/internal/request"
)

// reinstallForRequesterPod changes the installation as a user would who cannot
// use requester "agent". The approver is cert-manager's general one as well.
func reinstallForRequesterPod(t *testing.T) {
	t.Helper()
	ctx := needCluster(t, testTimeout)
	options := standardOptions()
	options.Requester = install.RequesterPod
	options.ApproveOthers = true
	if err := env.Signet(ctx, options); err != nil {
		t.Fatal(err)
	}
}

// A pod whose service account may create CertificateRequests starts with its
// identity; one whose service account may not is told so by an Event.
func testAPodAsksForItself(t *testing.T) {
	ctx := needCluster(t, testTimeout)
	ns := newNamespace(ctx, t)
	newServiceAccount(ctx, t, ns, "entitled")
	newServiceAccount(ctx, t, ns, "other")
	allowRequests(ctx, t, ns, "entitled")

	pod := runPod(ctx, t, ns, podSpec{Name: "entitled", ServiceAccount: "entitled"})
	got := fetch(ctx, t, pod)
	checkFiles(ctx, t, pod, spiffeID(ns, "entitled"), got.Serial)

	// The DNS names that it may have are those of its token's service account.
	named := runPod(ctx, t, ns, podSpec{
		Name: "named", ServiceAccount: "entitled", Attributes: chosen(map[string]string{"dns-names": "web." + ns + ".svc.cluster.local"}),
	})
	checkDNSNames(ctx, t, named, spiffeID(ns, "entitled"), "web."+ns+".svc.cluster.local")
	thief := createPod(ctx, t, ns, podSpec{
		Name: "thief", ServiceAccount: "entitled", Attributes: chosen(map[string]string{"dns-names": "web.kube-system.svc.cluster.local"}),
	})
	waitEvent(ctx, t, thief, `rule "csr-dns-names"`, "web.kube-system.svc.cluster.local")

	other := createPod(ctx, t, ns, podSpec{Name: "other", ServiceAccount: "other"})
	waitEvent(ctx, t, other, "certificaterequests", "forbidden")
}

// Requester pod: denied unless the ID is that of spec.username. The agent, too,
// is a service account like any other now.
func testNobodyAsksForAnother(t *testing.T) {
	t.Parallel()
	ctx := needCluster(t, testTimeout)
	ns := newNamespace(ctx, t)
	for _, name := range []string{"a", "b"} {
		newServiceAccount(ctx, t, ns, name)
		allowRequests(ctx, t, ns, name)
	}
	a := runPod(ctx, t, ns, podSpec{Name: "a", ServiceAccount: "a", Node: nodeOne})
	b := runPod(ctx, t, ns, podSpec{Name: "b", ServiceAccount: "b", Node: nodeOne})
	asA := clientOf(ctx, t, ns, "a", a)

	if got := decide(ctx, t, asA, ask(t, a, nil)); !got.approved {
		t.Errorf("a's request for a was %s", got)
	}
	for name, change := range map[string]func(*asked){
		"the ID of b":                   func(x *asked) { x.id = spiffeID(ns, "b") },
		"an ID of another namespace":    func(x *asked) { x.id = spiffeID("default", "a") },
		"an ID of another trust domain": func(x *asked) { x.id = strings.Replace(x.id, trustDomain, "example.org", 1) },
	} {
		if got := decide(ctx, t, asA, ask(t, a, change)); got.approved {
			t.Errorf("a's request for %s was %s", name, got)
		}
	}
	if got := decide(ctx, t, asA, ask(t, b, nil)); got.approved {
		t.Errorf("a's request as pod b was %s", got)
	}
	// With rights on every issuer, the approver can say no to the wrong one.
	got := decide(ctx, t, asA, ask(t, a, func(x *asked) {
		x.object = func(cr *cmapi.CertificateRequest) { cr.Spec.IssuerRef.Name = "letsencrypt" }
	}))
	if got.approved || !strings.Contains(got.message, `rule "issuer"`) {
		t.Errorf("a's request to another issuer was %s, want it denied by rule issuer", got)
	}
}

// With --auto-approve-non-spiffe requests that are not ours are approved unless
// they carry a SPIFFE URI or name our issuer.
func testPlainRequestsAreApproved(t *testing.T) {
	t.Parallel()
	ctx := needCluster(t, testTimeout)
	ns := newNamespace(ctx, t)
	allowRequests(ctx, t, ns, "default")
	pod := runPod(ctx, t, ns, podSpec{Name: "app", NoVolume: true})
	client := clientOf(ctx, t, ns, "default", pod)
	plain := func(change func(*asked)) *cmapi.CertificateRequest {
		return ask(t, pod, func(a *asked) {
			a.csr = func(r *x509.CertificateRequest) {
				r.ExtraExtensions = nil
				r.DNSNames = []string{"web.example.org"}
			}
			a.object = func(cr *cmapi.CertificateRequest) {
				delete(cr.Annotations, request.AnnotationIdentity)
				cr.Spec.IssuerRef.Name = "another"
			}
			if change != nil {
				change(a)
			}
		})
	}
	makeIssuer(ctx, t, "another")
	if got := decide(ctx, t, client, plain(nil)); !got.approved {
		t.Errorf("a plain request was %s", got)
	}
	if got := decide(ctx, t, client, plain(func(a *asked) { a.csr = nil })); got.approved || !strings.Contains(got.message, "plain-spiffe-uri") {
		t.Errorf("a plain request with a SPIFFE URI was %s, want it denied by rule plain-spiffe-uri", got)
	}
	got := decide(ctx, t, client, plain(func(a *asked) {
		a.object = func(cr *cmapi.CertificateRequest) { delete(cr.Annotations, request.AnnotationIdentity) }
	}))
	if got.approved || !strings.Contains(got.message, "plain-issuer") {
		t.Errorf("a plain request to the SPIFFE issuer was %s, want it denied by rule plain-issuer", got)
	}
}

// A republish that cannot succeed leaves mount, files and rotation alone, and
// returns OK.
func testARepublishNeverHurts(t *testing.T) {
	t.Parallel()
	ctx := needCluster(t, rotationTimeout)
	ns := newNamespace(ctx, t)
	n := node(ctx, t, nodeOne)
	allowRequests(ctx, t, ns, "default")
	pod := runPod(ctx, t, ns, podSpec{Name: "app", Node: nodeOne})
	before := fetch(ctx, t, pod)
	handle, target := n.volumeHandle(t, pod), filepath.Join(volumeDir(pod), "mount")
	for _, token := range []string{"", `{"":{"token":"","expirationTimestamp":"2020-01-01T00:00:00Z"}}`} {
		again := publishRequest(pod, handle, target)
		if token != "" {
			again.VolumeContext["csi.storage.k8s.io/serviceAccount.tokens"] = token
		}
		if _, err := n.driver(t).NodePublishVolume(ctx, again); err != nil {
			t.Errorf("republish with tokens %q: %v", token, err)
		}
	}
	if got := n.mountsWith(t, target); len(got) != 1 {
		t.Errorf("the target is mounted %d times, want once", len(got))
	}
	if after := fetch(ctx, t, pod); after.Serial != before.Serial {
		t.Errorf("the serial was %s and is %s: a republish issued anew", before.Serial, after.Serial)
	}
	checkRotatesOn(ctx, t, pod, before.Serial)
}

// testTokensInSecrets installs the overlay in which kubelet hands over tokens
// apart from the volume's attributes.
func testTokensInSecrets(t *testing.T) {
	ctx := needCluster(t, testTimeout)
	version, err := env.Kube.Discovery().ServerVersion()
	if err != nil {
		t.Fatal(err)
	}
	if minor, err := strconv.Atoi(version.Minor); err == nil && minor < 35 {
		t.Skipf("serviceAccountTokenInSecrets came with Kubernetes 1.35, this is %s", version)
	}
	options := standardOptions()
	options.Requester = install.RequesterPodSecrets
	if err := env.Signet(ctx, options); err != nil {
		t.Fatal(err)
	}
	testAPodAsksForItself(t)
}
