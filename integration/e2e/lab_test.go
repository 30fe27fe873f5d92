// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	apiutil "github.com/cert-manager/cert-manager/pkg/api/util"
	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/signet-spiffe/signet/integration/install"
)

// lab is a third driver, whose issuer this process is: it signs what a test wants.
var lab = install.Another{
	Name: "lab",
	Options: install.Options{
		TrustDomain:   "lab.signet.example",
		Duration:      10 * time.Minute,
		AgentFlags:    withLabIssuer(map[string]string{"--log-level": "5", "--publish-timeout": "15s", minFlag: "30s"}),
		ApproverFlags: withLabIssuer(map[string]string{"--log-level": "5", minFlag: "30s"}),
	},
}

const labGroup, labKind = "lab.signet.example", "LabIssuer"

func withLabIssuer(flags map[string]string) map[string]string {
	flags["--issuer-name"], flags["--issuer-kind"], flags["--issuer-group"] = "lab", labKind, labGroup
	return flags
}

// labManifest is what an external issuer brings along: its resource, and the right
// of the approver to approve for it.
const labManifest = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: labissuers.lab.signet.example}
spec:
  group: lab.signet.example
  scope: Cluster
  names: {kind: LabIssuer, listKind: LabIssuerList, plural: labissuers, singular: labissuer}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: lab-signers}
rules:
- {apiGroups: [cert-manager.io], resources: [signers], resourceNames: [labissuers.lab.signet.example/*], verbs: [approve]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: lab-signers}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: lab-signers}
subjects:
- {kind: ServiceAccount, namespace: signet-lab, name: signet-approver}
`

// theLab is the one of the run, with its driver installed.
var theLab = sync.OnceValues(func() (*labIssuer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	if err := env.cluster.Apply(ctx, []byte(labManifest)); err != nil {
		return nil, err
	}
	l, err := newLabIssuer(ctx)
	if err != nil {
		return nil, err
	}
	return l, env.Another(ctx, lab)
})

func needLab(t *testing.T) *labIssuer {
	t.Helper()
	l, err := theLab()
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func labID(ns string) string { return "spiffe://" + lab.TrustDomain + "/ns/" + ns + "/sa/default" }

// labAttributes have an SVID renewed every three seconds.
func labAttributes() map[string]string {
	return map[string]string{lab.DriverName() + "/duration": "30s", lab.DriverName() + "/renew-before": "27s"}
}

// authority is a CA of the lab.
type authority struct {
	certificate *x509.Certificate
	key         crypto.Signer
}

func newAuthority(name string) (authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return authority{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return authority{}, err
	}
	certificate, err := x509.ParseCertificate(der)
	return authority{certificate, key}, err
}

func pemOf(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// malice is one way in which an issuer can be wrong.
type malice struct {
	name string
	// rule is the agent's that refuses it; empty where there is nothing to refuse.
	rule string
	// change, if set, changes what is signed and for which key.
	change func(*x509.Certificate, *crypto.PublicKey)
	// answer, if set, takes the place of the certificate.
	answer func(certificate []byte) []byte
	// stranger signs with a CA that nobody trusts.
	stranger bool
}

var malices = []malice{
	{name: "another-key", rule: "key-match", change: func(_ *x509.Certificate, key *crypto.PublicKey) {
		other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			panic(err) // crypto/rand never fails.
		}
		*key = other.Public()
	}},
	{name: "another-uri", rule: "spiffe-id-match", change: func(c *x509.Certificate, _ *crypto.PublicKey) {
		c.URIs = []*url.URL{{Scheme: "spiffe", Host: lab.TrustDomain, Path: "/ns/kube-system/sa/admin"}}
	}},
	{name: "one-more-name", rule: "no-other-san", change: func(c *x509.Certificate, _ *crypto.PublicKey) {
		c.DNSNames = []string{"kubernetes.default.svc"}
	}},
	{name: "a-ca", rule: "leaf-not-ca", change: func(c *x509.Certificate, _ *crypto.PublicKey) {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature
	}},
	{name: "expired", rule: "validity", change: func(c *x509.Certificate, _ *crypto.PublicKey) {
		c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Minute), time.Now().Add(-time.Minute)
	}},
	{name: "not-yet-valid", rule: "validity", change: func(c *x509.Certificate, _ *crypto.PublicKey) {
		c.NotBefore, c.NotAfter = time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)
	}},
	{name: "garbage", rule: "chain-present", answer: func([]byte) []byte { return pemOf([]byte("no certificate at all")) }},
	{name: "half-of-it", rule: "chain-present", answer: func(c []byte) []byte { return c[:len(c)/2] }},
	{name: "blank", rule: "chain-present", answer: func([]byte) []byte { return []byte("\n") }},
	{name: "a-stranger", rule: "chain-to-bundle", stranger: true},
	{name: "nothing", answer: func([]byte) []byte { return nil }},
}

// labIssuer is an external issuer of cert-manager's kind: it answers approved
// requests of its group. A pod that is named as a malice gets that, as long as the
// lab is told to be bad to it.
type labIssuer struct {
	root, stranger authority

	mu  sync.Mutex // Guards the rest.
	bad map[string]bool
	// answers counts bad answers by pod; told is closed at each.
	answers map[string]int
	told    chan struct{}
	// owed are requests that got nothing, by pod.
	owed map[string]types.NamespacedName
	errs []error
}

// newLabIssuer begins to answer. It goes on as long as the process.
func newLabIssuer(ctx context.Context) (*labIssuer, error) {
	l := &labIssuer{bad: map[string]bool{}, answers: map[string]int{}, told: make(chan struct{}), owed: map[string]types.NamespacedName{}}
	var err error
	if l.root, err = newAuthority("the lab's root"); err != nil {
		return nil, err
	}
	if l.stranger, err = newAuthority("a stranger"); err != nil {
		return nil, err
	}
	// An informer, which goes on also after an API server that was away for long.
	requests := env.CertManager.CertmanagerV1().CertificateRequests(metav1.NamespaceAll)
	life := context.WithoutCancel(ctx)
	informer := cache.NewSharedInformer(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return requests.List(ctx, o) },
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return requests.Watch(ctx, o)
		},
	}, &cmapi.CertificateRequest{}, 0)
	look := func(object any) {
		if cr, ok := object.(*cmapi.CertificateRequest); ok && l.isMine(cr) {
			go l.handle(life, cr)
		}
	}
	_, err = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: look, UpdateFunc: func(_, now any) { look(now) }})
	if err != nil {
		return nil, err
	}
	go informer.RunWithContext(life)
	return l, nil
}

func (l *labIssuer) isMine(cr *cmapi.CertificateRequest) bool {
	return cr.Spec.IssuerRef.Group == labGroup && apiutil.CertificateRequestIsApproved(cr) &&
		apiutil.GetCertificateRequestCondition(cr, cmapi.CertificateRequestConditionReady) == nil
}

func (l *labIssuer) handle(ctx context.Context, cr *cmapi.CertificateRequest) {
	pod := cr.OwnerReferences[0].Name
	at := slices.IndexFunc(malices, func(m malice) bool { return m.name == pod })
	l.mu.Lock()
	var how malice
	if at >= 0 && l.bad[pod] {
		how = malices[at]
	}
	l.mu.Unlock()
	err := l.answer(ctx, cr, how)
	l.mu.Lock()
	defer l.mu.Unlock()
	// A request may be withdrawn while it is signed.
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		l.errs = append(l.errs, fmt.Errorf("answer the request of pod %s: %w", pod, err))
	}
	if how.name == "" || err != nil {
		return
	}
	l.answers[pod]++
	if how.rule == "" {
		l.owed[pod] = types.NamespacedName{Namespace: cr.Namespace, Name: cr.Name}
	}
	close(l.told)
	l.told = make(chan struct{})
}

func (l *labIssuer) answer(ctx context.Context, cr *cmapi.CertificateRequest, how malice) error {
	certificate, err := l.sign(cr, how)
	if err != nil {
		return err
	}
	if how.answer != nil {
		certificate = how.answer(certificate)
	}
	cr = cr.DeepCopy()
	apiutil.SetCertificateRequestCondition(cr, cmapi.CertificateRequestConditionReady, cmmeta.ConditionTrue, cmapi.CertificateRequestReasonIssued, "signed by the lab")
	cr.Status.Certificate, cr.Status.CA = certificate, pemOf(l.root.certificate.Raw)
	_, err = env.CertManager.CertmanagerV1().CertificateRequests(cr.Namespace).UpdateStatus(ctx, cr, metav1.UpdateOptions{})
	return err
}

func (l *labIssuer) sign(cr *cmapi.CertificateRequest, how malice) ([]byte, error) {
	block, _ := pem.Decode(cr.Spec.Request)
	if block == nil {
		return nil, errors.New("the CSR is not PEM")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial, NotBefore: now, NotAfter: now.Add(cr.Spec.Duration.Duration), URIs: csr.URIs, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	key, signer := crypto.PublicKey(csr.PublicKey), l.root
	if how.change != nil {
		how.change(template, &key)
	}
	if how.stranger {
		signer = l.stranger
	}
	der, err := x509.CreateCertificate(rand.Reader, template, signer.certificate, key, signer.key)
	if err != nil {
		return nil, err
	}
	return pemOf(der), nil
}

// beBad says whether the lab is to be bad to a pod from now on. A request that got
// nothing gets its certificate when that ends.
func (l *labIssuer) beBad(ctx context.Context, t *testing.T, pod string, bad bool) {
	t.Helper()
	l.mu.Lock()
	l.bad[pod] = bad
	owed, owes := l.owed[pod]
	if !bad {
		delete(l.owed, pod)
	}
	l.mu.Unlock()
	if bad || !owes {
		return
	}
	cr, err := env.CertManager.CertmanagerV1().CertificateRequests(owed.Namespace).Get(ctx, owed.Name, metav1.GetOptions{})
	if err == nil {
		err = l.answer(ctx, cr, malice{})
	}
	if err != nil {
		t.Error(err)
	}
}

// badAnswers is how many a pod has got.
func (l *labIssuer) badAnswers(pod string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.answers[pod]
}

// waitBadAnswers waits until a pod has got so many.
func (l *labIssuer) waitBadAnswers(ctx context.Context, t *testing.T, pod string, n int) {
	t.Helper()
	for {
		l.mu.Lock()
		have, told := l.answers[pod], l.told
		l.mu.Unlock()
		if have >= n {
			return
		}
		select {
		case <-told:
		case <-ctx.Done():
			t.Fatalf("the lab gave pod %s %d bad answers, want %d: %v", pod, have, n, context.Cause(ctx))
		}
	}
}

const (
	refusedRenewals = `signet_agent_issuances_total{purpose="renewal",result="refused"}`
	refusedMounts   = `signet_agent_issuances_total{purpose="mount",result="refused"}`
)

// An issuer that returns anything but what was asked for: at mount the pod waits
// and its Event names the rule, at renewal the SVID before is kept and served. The
// agent counts it, lives, and takes the first good answer.
func testAMaliciousIssuerIsRefused(t *testing.T) {
	t.Parallel()
	ctx := needCluster(t, 2*testTimeout)
	l := needLab(t)
	ns := newNamespace(ctx, t)
	for i, m := range malices {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			testMalice(ctx, t, l, ns, m, []string{nodeOne, nodeTwo}[i%2])
		})
	}
	t.Cleanup(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, err := range l.errs {
			t.Error(err)
		}
	})
}

func testMalice(ctx context.Context, t *testing.T, l *labIssuer, ns string, m malice, name string) {
	n := node(ctx, t, name)
	agent, err := agentIn(ctx, lab.Namespace(), name)
	if err != nil {
		t.Fatal(err)
	}
	before := n.metrics(ctx, t, agent)
	l.beBad(ctx, t, m.name, true)
	pod := createPod(ctx, t, ns, podSpec{Name: m.name, Node: name, Driver: lab.DriverName(), Attributes: labAttributes()})
	l.waitBadAnswers(ctx, t, m.name, 1)
	if m.rule != "" {
		waitTold(ctx, t, pod, "SVIDIssuanceFailed", "no SVID "+labID(ns), "refused by rule "+m.rule)
		if now := n.metrics(ctx, t, agent); now[refusedMounts] <= before[refusedMounts] {
			t.Errorf("%s was %g and is %g", refusedMounts, before[refusedMounts], now[refusedMounts])
		}
	}
	l.beBad(ctx, t, m.name, false)
	pod = waitPod(ctx, t, ns, m.name, "to be ready when the issuer signs well", readyOrNot)

	k := newKeeper(ctx, t)
	v := k.keep(t, n, pod, volumeName, labID(ns))
	k.waitNext(ctx, t, keptOnes(v))

	before = n.metrics(ctx, t, agent)
	l.beBad(ctx, t, m.name, true)
	had := l.badAnswers(m.name)
	wanted := had + 2 // That there is a second request says that the first answer was dealt with.
	if m.rule == "" {
		wanted = had + 1
	}
	l.waitBadAnswers(ctx, t, m.name, wanted)
	k.mu.Lock()
	serial, seen := v.present().serial, len(v.svids)
	k.mu.Unlock()
	if got := waitSocket(ctx, t, n, pod); got != serial {
		t.Errorf("while renewals are refused the socket serves %s, the files have %s", got, serial)
	}
	if now := n.metrics(ctx, t, agent); m.rule != "" && now[refusedRenewals] <= before[refusedRenewals] {
		t.Errorf("%s was %g and is %g", refusedRenewals, before[refusedRenewals], now[refusedRenewals])
	}
	if m.rule != "" {
		waitTold(ctx, t, pod, "SVIDIssuanceFailed", "could not be renewed", "refused by rule "+m.rule)
	}
	k.mu.Lock()
	if after := v.present().serial; after != serial || len(v.svids) != seen {
		t.Errorf("a bad answer changed the SVID from %s to %s", serial, after)
	}
	k.mu.Unlock()
	l.beBad(ctx, t, m.name, false)
	k.waitNext(ctx, t, keptOnes(v))
	k.check(t, keptOnes(v))
	if v.broken != 0 {
		t.Errorf("the stream broke %d times", v.broken)
	}
	if after := mustAgentIn(ctx, t, lab.Namespace(), name); after.UID != agent.UID || after.Status.ContainerStatuses[0].RestartCount != agent.Status.ContainerStatuses[0].RestartCount {
		t.Error("the agent was restarted")
	}
}

// mustWriteFile writes into a node's file system.
func mustWriteFile(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}
