// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	cmclient "github.com/cert-manager/cert-manager/pkg/client/clientset/versioned"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/signet-spiffe/signet/integration/install"
	"github.com/signet-spiffe/signet/internal/pki"
	"github.com/signet-spiffe/signet/internal/request"
)

// clientOf is a cert-manager client with a service account's token, bound to a
// pod if one is given: what somebody has who took the token from there.
func clientOf(ctx context.Context, t *testing.T, ns, serviceAccount string, bound *corev1.Pod) cmclient.Interface {
	t.Helper()
	spec := authenticationv1.TokenRequestSpec{ExpirationSeconds: ptr(int64(600))}
	if bound != nil {
		spec.BoundObjectRef = &authenticationv1.BoundObjectReference{
			APIVersion: "v1", Kind: "Pod", Name: bound.Name, UID: bound.UID,
		}
	}
	token, err := env.Kube.CoreV1().ServiceAccounts(ns).CreateToken(ctx, serviceAccount,
		&authenticationv1.TokenRequest{Spec: spec}, metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("make a token: %v", err)
	}
	// A client certificate would win over the token.
	config := rest.AnonymousClientConfig(env.cluster.RESTConfig())
	config.BearerToken = token.Status.Token
	config.QPS = -1
	client, err := cmclient.NewForConfig(config)
	if err != nil {
		t.Fatalf("make a client: %v", err)
	}
	return client
}

// allowRequests lets a service account create CertificateRequests in its
// namespace, as csi-driver-spiffe demands of every workload.
func allowRequests(ctx context.Context, t *testing.T, ns, serviceAccount string) {
	t.Helper()
	allow(ctx, t, ns, serviceAccount, "certificaterequests", "create")
}

// allow gives a service account one right on a resource of cert-manager's in
// its namespace.
func allow(ctx context.Context, t *testing.T, ns, serviceAccount, resource, verb string) {
	t.Helper()
	name := "requests-of-" + serviceAccount
	_, err := env.Kube.RbacV1().Roles(ns).Create(ctx, &rbacv1.Role{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Rules:      []rbacv1.PolicyRule{{APIGroups: []string{"cert-manager.io"}, Resources: []string{resource}, Verbs: []string{verb}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("create role: %v", err)
	}
	_, err = env.Kube.RbacV1().RoleBindings(ns).Create(ctx, &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: ns, Name: serviceAccount}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("create role binding: %v", err)
	}
}

// decision is what the approver said of a request.
type decision struct {
	approved bool
	message  string
}

func (d decision) String() string {
	if d.approved {
		return "approved: " + d.message
	}
	return "denied: " + d.message
}

var errUndecided = errors.New("it is not decided")

func decisionOf(cr *cmapi.CertificateRequest) (decision, error) {
	for _, c := range cr.Status.Conditions {
		switch c.Type {
		case cmapi.CertificateRequestConditionApproved:
			return decision{true, c.Message}, nil
		case cmapi.CertificateRequestConditionDenied:
			return decision{false, c.Message}, nil
		}
	}
	return decision{}, errUndecided
}

// decide creates a request and waits for the approver's word. A request whose
// owner does not exist is soon collected, perhaps before it was decided: then
// another is made.
func decide(ctx context.Context, t *testing.T, client cmclient.Interface, cr *cmapi.CertificateRequest) decision {
	t.Helper()
	for i := range 100 {
		fresh := cr.DeepCopy()
		fresh.Name = fmt.Sprintf("%s-%d", cr.Name, i)
		created, err := client.CertmanagerV1().CertificateRequests(cr.Namespace).Create(ctx, fresh, metav1.CreateOptions{})
		if err != nil {
			t.Fatalf("create CertificateRequest: %v", err)
		}
		d, err := waitDecision(ctx, created)
		if errors.Is(err, errCollected) {
			continue
		}
		if err != nil {
			t.Fatalf("%v\n%s", err, approverLogs(ctx))
		}
		return d
	}
	t.Fatal("every request was collected before it was decided")
	return decision{}
}

var errCollected = errors.New("it was deleted undecided")

func waitDecision(ctx context.Context, cr *cmapi.CertificateRequest) (d decision, err error) {
	_, err = install.Await(ctx, install.Selection{
		Client: env.CertManager.CertmanagerV1().RESTClient(), Resource: "certificaterequests", Namespace: cr.Namespace, Name: cr.Name,
		From: cr.ResourceVersion,
		What: fmt.Sprintf("CertificateRequest %s/%s to be decided", cr.Namespace, cr.Name),
	}, func(cr *cmapi.CertificateRequest, deleted bool) (err error) {
		if d, err = decisionOf(cr); err != nil && deleted {
			return install.Never(errCollected)
		}
		return err
	})
	return d, err
}

// approverLogs is the end of each approver's log.
func approverLogs(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
	defer cancel()
	pods, err := env.Kube.CoreV1().Pods(install.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err.Error()
	}
	var out []string
	for i := range pods.Items {
		if strings.HasPrefix(pods.Items[i].Name, install.ApproverName) {
			out = append(out, env.Describe(ctx, &pods.Items[i]))
		}
	}
	return strings.Join(out, "\n")
}

// asked is one request in the making: the parts that a test changes.
type asked struct {
	pod *corev1.Pod
	// id is in the annotation and, unless uris is set, in the CSR.
	id   string
	uris []string
	// csr changes the certificate signing request, key is who signs it.
	csr func(*x509.CertificateRequest)
	key crypto.Signer
	// object is the last to change the CertificateRequest.
	object func(*cmapi.CertificateRequest)
}

// ask makes the request that the agent would make for pod, changed.
func ask(t *testing.T, pod *corev1.Pod, change func(*asked)) *cmapi.CertificateRequest {
	t.Helper()
	key, err := pki.GenerateKey(pki.P256)
	if err != nil {
		t.Fatal(err)
	}
	a := asked{pod: pod, id: spiffeID(pod.Namespace, pod.Spec.ServiceAccountName), key: key.Signer()}
	if change != nil {
		change(&a)
	}
	// Another node's label: the agent removes requests with its own that it did
	// not make.
	cr := request.New(request.Spec{
		Driver: install.DriverName, Node: "none", VolumeID: "csi-test",
		Pod:      request.Pod{Namespace: pod.Namespace, Name: pod.Name, UID: string(pod.UID), ServiceAccount: pod.Spec.ServiceAccountName},
		ID:       spiffeid.RequireFromString(spiffeID(pod.Namespace, pod.Spec.ServiceAccountName)),
		CSR:      a.sign(t),
		Issuer:   cmmeta.IssuerReference{Name: install.IssuerName, Kind: "ClusterIssuer", Group: "cert-manager.io"},
		Duration: svidLife,
	})
	cr.Annotations[request.AnnotationIdentity] = a.id
	if a.object != nil {
		a.object(cr)
	}
	return cr
}

// sign makes the CSR byte by byte, so that it can hold what no library makes.
func (a asked) sign(t *testing.T) []byte {
	t.Helper()
	uris := a.uris
	if uris == nil {
		uris = []string{a.id}
	}
	var names []asn1.RawValue
	for _, uri := range uris {
		names = append(names, generalName(6, []byte(uri)))
	}
	template := &x509.CertificateRequest{ExtraExtensions: []pkix.Extension{sanOf(t, names...)}}
	if a.csr != nil {
		a.csr(template)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, a.key)
	if err != nil {
		t.Fatalf("make CSR: %v", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

// generalName is one name of a SAN (RFC 5280 4.2.1.6).
func generalName(tag int, value []byte) asn1.RawValue {
	return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tag, Bytes: value}
}

func sanOf(t *testing.T, names ...asn1.RawValue) pkix.Extension {
	t.Helper()
	return extension(t, true, names, 2, 5, 29, 17)
}

func extension(t *testing.T, critical bool, value any, oid ...int) pkix.Extension {
	t.Helper()
	der, err := asn1.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return pkix.Extension{Id: oid, Critical: critical, Value: der}
}

// deviation is the smallest step off the one request that is approved.
type deviation struct {
	name   string
	change func(*asked)
	// rule is the one that must be named.
	rule string
	// refused, if set, is what cert-manager's own webhook says first: such a
	// request never reaches the approver.
	refused string
	// undeniable requests are for issuers that cert-manager knows nothing of, or
	// that the approver has no rights on: its webhook lets nobody approve or deny
	// those. They stay undecided and so unsigned, and an Event says why.
	undeniable bool
}

// Denied, with a reason that names the rule: everything but the one request
// that an agent may make for a pod.
func testEveryDeviationIsDeniedByName(t *testing.T) {
	t.Parallel()
	ctx := needCluster(t, testTimeout)
	ns := newNamespace(ctx, t)
	newServiceAccount(ctx, t, ns, "web")
	pod := runPod(ctx, t, ns, podSpec{Name: "web", ServiceAccount: "web", Node: nodeOne})
	agent := clientOf(ctx, t, install.Namespace, install.AgentName, mustAgentOn(ctx, t, nodeOne))

	if got := decide(ctx, t, agent, ask(t, pod, nil)); !got.approved {
		t.Fatalf("the request without a deviation was %s", got)
	}
	for _, d := range deviations(t, ns, ownerServiceAccount(ctx, t, ns, "web")) {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			ctx := needCluster(t, testTimeout)
			cr := ask(t, pod, d.change)
			if d.refused != "" {
				_, err := agent.CertmanagerV1().CertificateRequests(ns).Create(ctx, cr, metav1.CreateOptions{})
				if err == nil || !strings.Contains(err.Error(), d.refused) {
					t.Errorf("got %v, want cert-manager's webhook to refuse with %q", err, d.refused)
				}
				return
			}
			if d.undeniable {
				checkUndeniable(ctx, t, agent, cr, d.rule)
				return
			}
			got := decide(ctx, t, agent, cr)
			if got.approved || !strings.Contains(got.message, fmt.Sprintf("rule %q", d.rule)) {
				t.Errorf("%s; want it denied by rule %q", got, d.rule)
			}
		})
	}
}

// checkUndeniable creates a request and waits for the Event with the rule; the
// request itself must have stayed undecided.
func checkUndeniable(ctx context.Context, t *testing.T, client cmclient.Interface, cr *cmapi.CertificateRequest, rule string) {
	t.Helper()
	requests := client.CertmanagerV1().CertificateRequests(cr.Namespace)
	created, err := requests.Create(ctx, cr, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	event := waitEventOf(ctx, t, cr.Namespace, created.UID, fmt.Sprintf("rule %q", rule))
	if event.Type != corev1.EventTypeWarning {
		t.Errorf("the Event is of type %s, want %s", event.Type, corev1.EventTypeWarning)
	}
	now, err := env.CertManager.CertmanagerV1().CertificateRequests(cr.Namespace).Get(ctx, created.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if d, err := decisionOf(now); err == nil {
		t.Errorf("the request was %s", d)
	}
}

// ownerServiceAccount refers to something that exists: Kubernetes takes away
// references that lead nowhere, perhaps before the approver has seen them.
func ownerServiceAccount(ctx context.Context, t *testing.T, ns, name string) metav1.OwnerReference {
	t.Helper()
	account, err := env.Kube.CoreV1().ServiceAccounts(ns).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return metav1.OwnerReference{APIVersion: "v1", Kind: "ServiceAccount", Name: name, UID: account.UID}
}

func deviations(t *testing.T, ns string, second metav1.OwnerReference) []deviation {
	t.Helper()
	object := func(f func(*cmapi.CertificateRequest)) func(*asked) {
		return func(a *asked) { a.object = f }
	}
	csr := func(f func(*x509.CertificateRequest)) func(*asked) {
		return func(a *asked) { a.csr = f }
	}
	also := func(e pkix.Extension) func(*asked) {
		return csr(func(r *x509.CertificateRequest) { r.ExtraExtensions = append(r.ExtraExtensions, e) })
	}
	key := func(k crypto.Signer, err error) func(*asked) {
		if err != nil {
			t.Fatal(err)
		}
		return func(a *asked) { a.key = k }
	}
	uri := func(f func(id string) string) func(*asked) {
		return func(a *asked) { a.id = f(a.id) }
	}
	name := func(tag int, value []byte) func(*asked) {
		return csr(func(r *x509.CertificateRequest) {
			r.ExtraExtensions[0] = sanOf(t, generalName(6, []byte(spiffeID(ns, "web"))), generalName(tag, value))
		})
	}
	replace := func(old, replacement string) func(*asked) {
		return uri(func(id string) string { return strings.Replace(id, old, replacement, 1) })
	}
	return []deviation{
		{name: "another issuer", rule: "issuer", change: object(func(cr *cmapi.CertificateRequest) { cr.Spec.IssuerRef.Name = "letsencrypt" })},
		{name: "another kind of issuer", rule: "issuer", change: object(func(cr *cmapi.CertificateRequest) { cr.Spec.IssuerRef.Kind = "Issuer" })},
		{name: "another group of issuer", rule: "issuer", undeniable: true, change: object(func(cr *cmapi.CertificateRequest) { cr.Spec.IssuerRef.Group = "example.org" })},
		{name: "an organization in the subject", rule: "csr-subject", change: csr(func(r *x509.CertificateRequest) { r.Subject.Organization = []string{"system:masters"} })},
		{name: "a common name", rule: "csr-subject", change: csr(func(r *x509.CertificateRequest) { r.Subject.CommonName = "web" })},
		{name: "a serial number in the subject", rule: "csr-subject", change: csr(func(r *x509.CertificateRequest) { r.Subject.SerialNumber = "1" })},
		{name: "an RSA key that is too small", rule: "key-type", change: key(rsa.GenerateKey(rand.Reader, 1024))},
		{name: "a P-521 key", rule: "key-type", change: key(ecdsa.GenerateKey(elliptic.P521(), rand.Reader))},
		{name: "a second more of life", rule: "duration", change: object(func(cr *cmapi.CertificateRequest) { cr.Spec.Duration.Duration += time.Second })},
		{name: "no duration", rule: "duration", change: object(func(cr *cmapi.CertificateRequest) { cr.Spec.Duration = nil })},
		{name: "a usage more", rule: "usages", change: object(func(cr *cmapi.CertificateRequest) { cr.Spec.Usages = append(cr.Spec.Usages, cmapi.UsageCodeSigning) })},
		{name: "a usage less", rule: "usages", change: object(func(cr *cmapi.CertificateRequest) { cr.Spec.Usages = slices.Clone(cr.Spec.Usages[1:]) })},
		{name: "a CA", rule: "ca", change: object(func(cr *cmapi.CertificateRequest) { cr.Spec.IsCA = true })},
		// cert-manager compares what the CSR says of these with the spec.
		{name: "certificate signing in the CSR", refused: "do not match", change: also(extension(t, true, asn1.BitString{Bytes: []byte{0x04}, BitLength: 6}, 2, 5, 29, 15))},
		{name: "code signing in the CSR", refused: "do not match", change: also(extension(t, false, []asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 3}}, 2, 5, 29, 37))},
		{name: "a CA in the CSR", refused: "IsCA true does not match", change: also(extension(t, true, struct{ CA bool }{true}, 2, 5, 29, 19))},
		{name: "basic constraints in the CSR", rule: "csr-extensions", change: also(extension(t, true, struct{}{}, 2, 5, 29, 19))},
		{name: "a DNS name", rule: "csr-dns-names", change: name(2, []byte("web.example.org"))},
		{name: "another namespace's DNS name", rule: "csr-dns-names", change: name(2, []byte("web.kube-system.svc.cluster.local"))},
		{name: "a DNS name without a dot before the namespace", rule: "csr-dns-names", change: name(2, []byte("x"+ns+".svc.cluster.local"))},
		{name: "a DNS name in upper case", rule: "csr-san", change: name(2, []byte("Web."+ns+".svc.cluster.local"))},
		{name: "a wildcard", rule: "csr-san", change: name(2, []byte("*."+ns+".svc.cluster.local"))},
		{name: "a DNS name that is an IP address", rule: "csr-san", change: name(2, []byte("10.0.0.1"))},
		{name: "an e-mail address", rule: "csr-san", change: name(1, []byte("web@example.org"))},
		{name: "an IP address", rule: "csr-san", change: name(7, net.IPv4(10, 0, 0, 1).To4())},
		{name: "two URIs", rule: "csr-san", change: func(a *asked) { a.uris = []string{a.id, a.id + "2"} }},
		{name: "one URI twice", rule: "csr-san", change: func(a *asked) { a.uris = []string{a.id, a.id} }},
		{name: "no URI", rule: "csr-san", change: csr(func(r *x509.CertificateRequest) { r.ExtraExtensions = nil })},
		{name: "another namespace's identity", rule: "identity", change: replace("/ns/"+ns+"/", "/ns/default/")},
		{name: "another service account's identity", rule: "identity", change: replace("/sa/web", "/sa/default")},
		{name: "another path altogether", rule: "identity", change: uri(func(string) string { return "spiffe://" + trustDomain + "/web" })},
		{name: "an annotation that differs", rule: "identity-annotation", change: object(func(cr *cmapi.CertificateRequest) {
			cr.Annotations[request.AnnotationIdentity] += "2"
		})},
		{name: "another trust domain", rule: "trust-domain", change: replace(trustDomain, "example.org")},
		{name: "the trust domain's own ID", rule: "spiffe-id", change: uri(func(string) string { return "spiffe://" + trustDomain })},
		{name: "another scheme", rule: "spiffe-id", change: replace("spiffe:", "https:")},
		{name: "an upper-case scheme", rule: "spiffe-id", change: replace("spiffe:", "SPIFFE:")},
		{name: "an upper-case trust domain", rule: "spiffe-id", change: replace(trustDomain, strings.ToUpper(trustDomain))},
		{name: "a query", rule: "spiffe-id", change: uri(func(id string) string { return id + "?a=b" })},
		{name: "an empty query", rule: "spiffe-id", change: uri(func(id string) string { return id + "?" })},
		{name: "a fragment", rule: "spiffe-id", change: uri(func(id string) string { return id + "#a" })},
		{name: "user information", rule: "spiffe-id", change: replace("spiffe://", "spiffe://root@")},
		{name: "a port", rule: "spiffe-id", change: replace(trustDomain, trustDomain+":443")},
		{name: "percent-encoding", rule: "spiffe-id", change: replace("/sa/web", "/sa/we%62")},
		{name: "an empty segment", rule: "spiffe-id", change: replace("/sa/web", "//sa/web")},
		{name: "a dot segment", rule: "spiffe-id", change: replace("/sa/web", "/./sa/web")},
		{name: "a dot-dot segment", rule: "spiffe-id", change: replace("/sa/web", "/../sa/web")},
		{name: "a slash at the end", rule: "spiffe-id", change: uri(func(id string) string { return id + "/" })},
		{name: "no owner", rule: "owner-reference", change: object(func(cr *cmapi.CertificateRequest) { cr.OwnerReferences = nil })},
		{name: "a second owner", rule: "owner-reference", change: object(func(cr *cmapi.CertificateRequest) {
			cr.OwnerReferences = append(cr.OwnerReferences, second)
		})},
		{name: "data after the CSR", rule: "csr-encoding", change: object(func(cr *cmapi.CertificateRequest) {
			cr.Spec.Request = append(slices.Clone(cr.Spec.Request), "trailing"...)
		})},
	}
}

// Requester agent: denied for a pod on another node, a pod that does not exist,
// a wrong UID, a wrong service account, a pod that does not mount the driver, a
// finished pod, a token without a node name, another service account than the
// agent's.
func testAnAgentSpeaksForItsOwnPodsOnly(t *testing.T) {
	t.Parallel()
	ctx := needCluster(t, testTimeout)
	ns := newNamespace(ctx, t)
	agentPod := mustAgentOn(ctx, t, nodeOne)
	agent := clientOf(ctx, t, install.Namespace, install.AgentName, agentPod)
	newServiceAccount(ctx, t, ns, "other")
	allowRequests(ctx, t, ns, "default")

	here := runPod(ctx, t, ns, podSpec{Name: "here", Node: nodeOne})
	elsewhere := runPod(ctx, t, ns, podSpec{Name: "elsewhere", Node: nodeTwo})
	plain := runPod(ctx, t, ns, podSpec{Name: "plain", Node: nodeOne, NoVolume: true})
	createPod(ctx, t, ns, podSpec{Name: "finished", Node: nodeOne, Args: []string{"fetch"}})
	finished := waitPod(ctx, t, ns, "finished", "to finish", func(pod *corev1.Pod) error {
		if pod.Status.Phase == corev1.PodSucceeded {
			return nil
		}
		return fmt.Errorf("it is %s", pod.Status.Phase)
	})
	missing := here.DeepCopy()
	missing.Name = "missing"
	reborn := here.DeepCopy()
	reborn.UID = "00000000-0000-4000-8000-000000000000"

	tests := []struct {
		name   string
		client cmclient.Interface
		pod    *corev1.Pod
		change func(*asked)
		rule   string
	}{
		{"a pod of its node", agent, here, nil, ""},
		{"a pod on another node", agent, elsewhere, nil, "pod-node"},
		{"a pod that does not exist", agent, missing, nil, "pod-exists"},
		{"a wrong UID", agent, reborn, nil, "pod-uid"},
		{"a wrong service account", agent, here, func(a *asked) { a.id = spiffeID(ns, "other") }, "identity"},
		{"a pod that does not mount the driver", agent, plain, nil, "pod-driver"},
		{"a finished pod", agent, finished, nil, "pod-running"},
		{"a token without a node name", clientOf(ctx, t, install.Namespace, install.AgentName, nil), here, nil, "requester-token"},
		{"another service account than the agent's", clientOf(ctx, t, ns, "default", here), here, nil, "requester"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ctx := needCluster(t, testTimeout)
			got := decide(ctx, t, test.client, ask(t, test.pod, test.change))
			if test.rule == "" {
				if !got.approved {
					t.Errorf("%s; want it approved", got)
				}
				return
			}
			if got.approved || !strings.Contains(got.message, fmt.Sprintf("rule %q", test.rule)) {
				t.Errorf("%s; want it denied by rule %q", got, test.rule)
			}
		})
	}
}

// Requests that are not ours are left alone.
func testOthersRequestsAreLeftAlone(t *testing.T) {
	t.Parallel()
	ctx := needCluster(t, testTimeout)
	ns := newNamespace(ctx, t)
	pod := runPod(ctx, t, ns, podSpec{Name: "app", Node: nodeOne})
	agent := clientOf(ctx, t, install.Namespace, install.AgentName, mustAgentOn(ctx, t, nodeOne))

	var left []*cmapi.CertificateRequest
	for _, change := range []func(*cmapi.CertificateRequest){
		func(cr *cmapi.CertificateRequest) { delete(cr.Annotations, request.AnnotationIdentity) },
		func(cr *cmapi.CertificateRequest) { cr.Annotations[request.AnnotationDriver] = "other.example.org" },
	} {
		cr := ask(t, pod, func(a *asked) { a.object = change })
		created, err := agent.CertmanagerV1().CertificateRequests(ns).Create(ctx, cr, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, created)
	}
	// One of ours, made later, is the witness: once it is decided the approver
	// has had the others before its eyes.
	if got := decide(ctx, t, agent, ask(t, pod, nil)); !got.approved {
		t.Fatalf("the witness was %s", got)
	}
	for _, cr := range left {
		now, err := env.CertManager.CertmanagerV1().CertificateRequests(ns).Get(ctx, cr.Name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if d, err := decisionOf(now); err == nil {
			t.Errorf("a request with annotations %v was %s", cr.Annotations, d)
		}
	}
}

// cert-manager's webhook lets nobody approve who lacks the right on the signer,
// and the agent has not even the right to write conditions.
func testOnlyTheApproverApproves(t *testing.T) {
	t.Parallel()
	ctx := needCluster(t, testTimeout)
	ns := newNamespace(ctx, t)
	newServiceAccount(ctx, t, ns, "meddler")
	allow(ctx, t, ns, "meddler", "certificaterequests/status", "patch")
	pod := runPod(ctx, t, ns, podSpec{Name: "app", Node: nodeOne})
	agent := clientOf(ctx, t, install.Namespace, install.AgentName, mustAgentOn(ctx, t, nodeOne))
	// Not ours, so that nobody decides it meanwhile.
	cr, err := agent.CertmanagerV1().CertificateRequests(ns).Create(ctx, ask(t, pod, func(a *asked) {
		a.object = func(cr *cmapi.CertificateRequest) { delete(cr.Annotations, request.AnnotationIdentity) }
	}), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	patch := []byte(`{"status":{"conditions":[{"type":"Approved","status":"True","reason":"test","message":"test"}]}}`)
	approve := func(client cmclient.Interface) error {
		_, err := client.CertmanagerV1().CertificateRequests(ns).Patch(ctx, cr.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
		return err
	}
	if err := approve(agent); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "certificaterequests/status") {
		t.Errorf("the agent's approval: %v; want it forbidden to write conditions", err)
	}
	meddler := clientOf(ctx, t, ns, "meddler", nil)
	if err := approve(meddler); err == nil || !strings.Contains(err.Error(), "does not have permissions to") {
		t.Errorf("approval without the right on the signer: %v; want cert-manager's webhook to refuse it", err)
	}
	// The same, with the right, goes through: it is the right that counts.
	if err := approve(env.CertManager); err != nil {
		t.Errorf("approval by an administrator: %v", err)
	}
}

// makeIssuer makes a self-signed ClusterIssuer.
func makeIssuer(ctx context.Context, t *testing.T, name string) {
	t.Helper()
	issuers := env.CertManager.CertmanagerV1().ClusterIssuers()
	_, err := issuers.Create(ctx, &cmapi.ClusterIssuer{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       cmapi.IssuerSpec{IssuerConfig: cmapi.IssuerConfig{SelfSigned: &cmapi.SelfSignedIssuer{}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("create ClusterIssuer: %v", err)
	}
}
