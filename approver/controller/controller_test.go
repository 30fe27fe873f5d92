// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/cache/informertest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllertest"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/signet-spiffe/signet/approver/evaluate"
	"github.com/signet-spiffe/signet/internal/identity"
	"github.com/signet-spiffe/signet/internal/pki"
	"github.com/signet-spiffe/signet/internal/request"
)

const (
	testDriver = "spiffe.csi.cert-manager.io"
	testAgent  = "system:serviceaccount:signet-system:signet-agent"
	testID     = "spiffe://example.org/ns/shop/sa/cart"
)

var (
	testNow    = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	testIssuer = cmmeta.IssuerReference{Name: "spiffe-ca", Kind: "ClusterIssuer", Group: "cert-manager.io"}
	quiet      = slog.New(slog.DiscardHandler)
)

var testCSR = sync.OnceValue(func() []byte {
	key, err := pki.GenerateKey(pki.P256)
	if err != nil {
		panic(err)
	}
	csr, err := pki.NewCSR(key, spiffeid.RequireFromString(testID), "")
	if err != nil {
		panic(err)
	}
	return csr
})

func testPolicy(t *testing.T) evaluate.Policy {
	t.Helper()
	template, err := identity.ParseTemplate(identity.DefaultTemplate)
	if err != nil {
		t.Fatal(err)
	}
	return evaluate.Policy{
		Driver: testDriver, Issuers: []cmmeta.IssuerReference{testIssuer},
		TrustDomain: spiffeid.RequireTrustDomainFromString("example.org"), Template: template,
		Duration: time.Hour, KeyTypes: pki.KeyTypes(), AgentUsername: testAgent,
	}
}

// testRequest is a request as it comes from the API server.
func testRequest() *cmapi.CertificateRequest {
	cr := request.New(request.Spec{
		Driver: testDriver, Node: "node-a", VolumeID: "csi-1", ID: spiffeid.RequireFromString(testID), CSR: testCSR(),
		Issuer: testIssuer, Duration: time.Hour,
		Pod: request.Pod{Namespace: "shop", Name: "cart-0", UID: "pod-uid", ServiceAccount: "cart"},
	})
	cr.UID = types.UID("uid-of-" + cr.Name)
	cr.CreationTimestamp = metav1.NewTime(testNow.Add(-2 * time.Second))
	cr.Spec.Username = testAgent
	cr.Spec.Extra = map[string][]string{request.ExtraNodeName: {"node-a"}}
	return cr
}

func testPod() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "cart-0", UID: "pod-uid"},
		Spec: corev1.PodSpec{NodeName: "node-a", ServiceAccountName: "cart", Volumes: []corev1.Volume{
			{Name: "spiffe", VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: testDriver}}},
		}},
		Status: corev1.PodStatus{Phase: corev1.PodPending},
	}
}

// cluster is a fake API server and a reconciler before it.
type cluster struct {
	client.Client
	reconciler *reconciler
	events     *events.FakeRecorder
	patches    atomic.Int64
	podReads   atomic.Int64
	// podErr and patchErr, when set, are what the API server answers.
	podErr, patchErr error
}

func newCluster(t *testing.T, objects ...client.Object) *cluster {
	t.Helper()
	scheme, err := newScheme()
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{events: events.NewFakeRecorder(10)}
	c.Client = fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(&cmapi.CertificateRequest{}).WithObjects(objects...).
		WithInterceptorFuncs(interceptor.Funcs{
			Get: func(ctx context.Context, w client.WithWatch, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
				if _, ok := obj.(*corev1.Pod); ok {
					c.podReads.Add(1)
					if c.podErr != nil {
						return c.podErr
					}
				}
				return w.Get(ctx, key, obj, opts...)
			},
			SubResourcePatch: func(ctx context.Context, w client.Client, sub string, obj client.Object, patch client.Patch, opts ...client.SubResourcePatchOption) error {
				c.patches.Add(1)
				if c.patchErr != nil {
					return c.patchErr
				}
				return w.SubResource(sub).Patch(ctx, obj, patch, opts...)
			},
		}).Build()
	m, err := newMetrics(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	policy := testPolicy(t)
	c.reconciler = &reconciler{
		requests: c.Client, status: c.Status(), pods: c.Client, policy: policy, recorder: c.events, metrics: m, log: quiet,
		writing: make(chan struct{}, 1),
		issuers: &issuers{static: policy.Issuers, reader: c.Client, log: quiet},
		now:     func() time.Time { return testNow },
	}
	return c
}

func (c *cluster) reconcile(t *testing.T, cr *cmapi.CertificateRequest) (reconcile.Result, error) {
	t.Helper()
	return c.reconciler.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKeyFromObject(cr)})
}

func (c *cluster) get(t *testing.T, cr *cmapi.CertificateRequest) *cmapi.CertificateRequest {
	t.Helper()
	var got cmapi.CertificateRequest
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(cr), &got); err != nil {
		t.Fatal(err)
	}
	return &got
}

// condition returns the one condition of that type, or nil.
func condition(cr *cmapi.CertificateRequest, kind cmapi.CertificateRequestConditionType) *cmapi.CertificateRequestCondition {
	for _, c := range cr.Status.Conditions {
		if c.Type == kind {
			return &c
		}
	}
	return nil
}

func (c *cluster) event(t *testing.T) string {
	t.Helper()
	select {
	case e := <-c.events.Events:
		return e
	default:
		return ""
	}
}

func TestApprove(t *testing.T) {
	cr := testRequest()
	earlier := cmapi.CertificateRequestCondition{Type: "example.org/Seen", Status: cmmeta.ConditionTrue, Reason: "Mine", Message: "not ours"}
	cr.Status.Conditions = []cmapi.CertificateRequestCondition{earlier}
	c := newCluster(t, cr, testPod())
	before := c.get(t, cr)
	if result, err := c.reconcile(t, cr); err != nil || !result.IsZero() {
		t.Fatalf("result %+v, error %v", result, err)
	}
	after := c.get(t, cr)
	approved := condition(after, cmapi.CertificateRequestConditionApproved)
	if approved == nil || approved.Status != cmmeta.ConditionTrue || approved.Reason != "spiffe.csi.cert-manager.io" ||
		approved.LastTransitionTime == nil || !approved.LastTransitionTime.Time.Equal(testNow) || !strings.HasPrefix(approved.Message, "Approved request") {
		t.Fatalf("conditions %+v", after.Status.Conditions)
	}
	if len(after.Status.Conditions) != 2 || !cmp.Equal(after.Status.Conditions[0], earlier) {
		t.Errorf("conditions %+v, want the earlier one kept", after.Status.Conditions)
	}
	before.Status, after.Status, before.ResourceVersion, after.ResourceVersion = cmapi.CertificateRequestStatus{}, cmapi.CertificateRequestStatus{}, "", ""
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("more than the status has changed:\n%s", diff)
	}
	if c.patches.Load() != 1 || c.podReads.Load() != 1 {
		t.Errorf("%d patches and %d pod reads, want one each", c.patches.Load(), c.podReads.Load())
	}
	if e := c.event(t); e != "" {
		t.Errorf("event %q; approvals are not worth one", e)
	}
	if n := testutil.ToFloat64(c.reconciler.metrics.decisions.WithLabelValues("approved", "")); n != 1 {
		t.Errorf("%v approvals counted", n)
	}
	if n := testutil.ToFloat64(c.reconciler.metrics.podReads.WithLabelValues("found")); n != 1 {
		t.Errorf("%v pod reads counted", n)
	}
}

func TestDeny(t *testing.T) {
	for _, test := range []struct {
		name string
		rule evaluate.Rule
		pods []client.Object
		read int64
		cr   func(cr *cmapi.CertificateRequest)
	}{
		{"before any pod is read", evaluate.RuleDuration, []client.Object{testPod()}, 0, func(cr *cmapi.CertificateRequest) { cr.Spec.Duration = nil }},
		{"pod on another node", evaluate.RulePodNode, []client.Object{testPod()}, 1, func(cr *cmapi.CertificateRequest) { cr.Spec.Extra[request.ExtraNodeName] = []string{"node-b"} }},
		{"no such pod", evaluate.RulePodExists, nil, 1, func(*cmapi.CertificateRequest) {}},
	} {
		t.Run(test.name, func(t *testing.T) {
			cr := testRequest()
			test.cr(cr)
			c := newCluster(t, append(test.pods, cr)...)
			if _, err := c.reconcile(t, cr); err != nil {
				t.Fatal(err)
			}
			got := c.get(t, cr)
			denied := condition(got, cmapi.CertificateRequestConditionDenied)
			if denied == nil || denied.Reason != Reason || !strings.Contains(denied.Message, string(test.rule)) {
				t.Fatalf("conditions %+v", got.Status.Conditions)
			}
			if condition(got, cmapi.CertificateRequestConditionApproved) != nil {
				t.Error("approved as well")
			}
			if c.podReads.Load() != test.read {
				t.Errorf("%d pod reads, want %d", c.podReads.Load(), test.read)
			}
			if test.rule == evaluate.RulePodExists && testutil.ToFloat64(c.reconciler.metrics.podReads.WithLabelValues("missing")) != 1 {
				t.Error("the missing pod is not counted")
			}
			if e := c.event(t); !strings.Contains(e, "Warning Denied") || !strings.Contains(e, string(test.rule)) {
				t.Errorf("event %q", e)
			}
			if n := testutil.ToFloat64(c.reconciler.metrics.decisions.WithLabelValues("denied", string(test.rule))); n != 1 {
				t.Errorf("%v denials counted", n)
			}
		})
	}
}

func TestRequesterPodReadsNoPod(t *testing.T) {
	cr := testRequest()
	cr.Spec.Username = "system:serviceaccount:shop:cart"
	cr.Spec.Extra = nil
	c := newCluster(t, cr)
	c.reconciler.policy.AgentUsername, c.reconciler.policy.AllowPod = "", true
	if _, err := c.reconcile(t, cr); err != nil {
		t.Fatal(err)
	}
	if condition(c.get(t, cr), cmapi.CertificateRequestConditionApproved) == nil || c.podReads.Load() != 0 {
		t.Errorf("conditions %+v after %d pod reads", c.get(t, cr).Status.Conditions, c.podReads.Load())
	}
}

// TestPodReadFails: what cannot be known is not decided.
func TestPodReadFails(t *testing.T) {
	pods := schema.GroupResource{Resource: "pods"}
	for name, podErr := range map[string]error{
		"connection":  errors.New("connection refused"),
		"forbidden":   apierrors.NewForbidden(pods, "cart-0", errors.New("no right")),
		"too many":    apierrors.NewTooManyRequests("later", 1),
		"timeout":     context.DeadlineExceeded,
		"server gone": apierrors.NewServiceUnavailable("gone"),
	} {
		t.Run(name, func(t *testing.T) {
			cr := testRequest()
			c := newCluster(t, cr, testPod())
			c.podErr = podErr
			if _, err := c.reconcile(t, cr); !errors.Is(err, podErr) || !strings.Contains(err.Error(), "shop/cart-0") {
				t.Errorf("error %v, want %v with the pod's name, so that it is tried again", err, podErr)
			}
			if len(c.get(t, cr).Status.Conditions) != 0 || c.patches.Load() != 0 {
				t.Error("decided")
			}
			c.podErr = nil
			if _, err := c.reconcile(t, cr); err != nil || condition(c.get(t, cr), cmapi.CertificateRequestConditionApproved) == nil {
				t.Errorf("after the recovery: error %v, conditions %+v", err, c.get(t, cr).Status.Conditions)
			}
		})
	}
}

// stale answers with the copy it was made with.
type stale struct {
	client.Reader
	cr *cmapi.CertificateRequest
}

func (s stale) Get(_ context.Context, _ client.ObjectKey, obj client.Object, _ ...client.GetOption) error {
	s.cr.DeepCopyInto(obj.(*cmapi.CertificateRequest))
	return nil
}

// TestOldCopyIsNotDecided: the request was valid when it entered the cache, and
// its owner was changed before the verdict was written.
func TestOldCopyIsNotDecided(t *testing.T) {
	cr := testRequest()
	c := newCluster(t, cr, testPod())
	c.reconciler.requests = stale{cr: c.get(t, cr)}
	changed := c.get(t, cr)
	changed.OwnerReferences[0].Name = "cart-1"
	if err := c.Update(t.Context(), changed); err != nil {
		t.Fatal(err)
	}
	if result, err := c.reconcile(t, cr); err != nil || !result.IsZero() {
		t.Errorf("result %+v, error %v: the change itself brings it back", result, err)
	}
	if got := c.get(t, cr); len(got.Status.Conditions) != 0 {
		t.Errorf("decided on an old copy: %+v", got.Status.Conditions)
	}
	if n := testutil.CollectAndCount(c.reconciler.metrics.decisions); n != 0 {
		t.Errorf("%d decisions counted", n)
	}
}

// TestRecreatedRequestIsNotDecided: another object took the name meanwhile.
func TestRecreatedRequestIsNotDecided(t *testing.T) {
	cr := testRequest()
	c := newCluster(t, cr, testPod())
	old := c.get(t, cr)
	old.UID, old.ResourceVersion = "an-earlier-one", "1"
	c.reconciler.requests = stale{cr: old}
	if _, err := c.reconcile(t, cr); err != nil {
		t.Error(err)
	}
	if got := c.get(t, cr); len(got.Status.Conditions) != 0 {
		t.Errorf("decided: %+v", got.Status.Conditions)
	}
	patch, err := statusPatch(old, evaluate.Verdict{Decision: evaluate.Approve}, testNow)
	if err != nil {
		t.Fatal(err)
	}
	var sent struct{ Metadata map[string]string }
	if err := json.Unmarshal(patch, &sent); err != nil {
		t.Fatal(err)
	}
	if want := map[string]string{"uid": "an-earlier-one", "resourceVersion": old.ResourceVersion}; !cmp.Equal(sent.Metadata, want) {
		t.Errorf("preconditions %v, want %v", sent.Metadata, want)
	}
	if _, err := statusPatch(&cmapi.CertificateRequest{}, evaluate.Verdict{}, testNow); err == nil {
		t.Error("a patch without preconditions was made")
	}
}

// TestTwoReplicasDecideOnce: both hold the same undecided copy, as after a leader
// that lost its lease without noticing.
func TestTwoReplicasDecideOnce(t *testing.T) {
	const requests = 50
	objects := []client.Object{testPod()}
	var crs []*cmapi.CertificateRequest
	for range requests {
		crs = append(crs, testRequest())
		objects = append(objects, crs[len(crs)-1])
	}
	c := newCluster(t, objects...)
	var all sync.WaitGroup
	for _, cr := range crs {
		copied := c.get(t, cr)
		for range 2 {
			replica := *c.reconciler
			replica.requests = stale{cr: copied}
			all.Go(func() {
				if _, err := replica.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKeyFromObject(copied)}); err != nil {
					t.Error(err)
				}
			})
		}
	}
	all.Wait()
	for _, cr := range crs {
		if got := c.get(t, cr); len(got.Status.Conditions) != 1 {
			t.Errorf("conditions %+v, want one", got.Status.Conditions)
		}
	}
	if n := testutil.ToFloat64(c.reconciler.metrics.decisions.WithLabelValues("approved", "")); n != requests {
		t.Errorf("%v decisions counted, want %d", n, requests)
	}
}

func TestDecidedGoneAndForeignAreLeftAlone(t *testing.T) {
	decided := testRequest()
	decided.Status.Conditions = []cmapi.CertificateRequestCondition{{Type: cmapi.CertificateRequestConditionDenied, Status: cmmeta.ConditionTrue}}
	foreign := testRequest()
	foreign.Annotations[request.AnnotationDriver] = "other.csi"
	plain := testRequest()
	delete(plain.Annotations, request.AnnotationIdentity)
	c := newCluster(t, decided, foreign, plain, testPod())
	for _, cr := range []*cmapi.CertificateRequest{decided, foreign, plain, testRequest() /* not there */} {
		if result, err := c.reconcile(t, cr); err != nil || !result.IsZero() {
			t.Errorf("result %+v, error %v", result, err)
		}
	}
	if c.patches.Load() != 0 || c.podReads.Load() != 0 {
		t.Errorf("%d patches, %d pod reads, want none", c.patches.Load(), c.podReads.Load())
	}
}

func TestApproveNonSPIFFE(t *testing.T) {
	cr := testRequest()
	cr.Annotations = nil
	c := newCluster(t, cr)
	c.reconciler.policy.ApproveNonSPIFFE = true
	if _, err := c.reconcile(t, cr); err != nil {
		t.Fatal(err)
	}
	if condition(c.get(t, cr), cmapi.CertificateRequestConditionDenied) == nil {
		t.Errorf("conditions %+v: it names our issuer", c.get(t, cr).Status.Conditions)
	}
}

// TestRefusedWrites: the approver may lack the right to decide for that signer.
func TestRefusedWrites(t *testing.T) {
	resource := schema.GroupResource{Group: "cert-manager.io", Resource: "certificaterequests"}
	forbidden := apierrors.NewForbidden(resource, "x", errors.New("user has no permission to set approved/denied conditions"))
	notAcceptable := &apierrors.StatusError{ErrStatus: metav1.Status{Reason: metav1.StatusReasonNotAcceptable, Code: http.StatusNotAcceptable}}
	for name, patchErr := range map[string]error{"forbidden": forbidden, "not acceptable": notAcceptable} {
		t.Run(name, func(t *testing.T) {
			cr := testRequest()
			cr.Spec.IssuerRef.Name = "letsencrypt-prod"
			c := newCluster(t, cr, testPod())
			c.patchErr = patchErr
			result, err := c.reconcile(t, cr)
			if err != nil || result.RequeueAfter != refusedRetry {
				t.Errorf("denial: result %+v, error %v", result, err)
			}
			if e := c.event(t); !strings.Contains(e, "letsencrypt-prod") {
				t.Errorf("event %q, want the reason: the condition cannot carry it", e)
			}
			if n := testutil.ToFloat64(c.reconciler.metrics.decisions.WithLabelValues("refused", string(evaluate.RuleIssuer))); n != 1 {
				t.Errorf("%v refusals counted", n)
			}

			good := testRequest()
			c = newCluster(t, good, testPod())
			c.patchErr = patchErr
			if _, err := c.reconcile(t, good); !errors.Is(err, patchErr) {
				t.Errorf("approval: error %v, want %v: somebody waits for it", err, patchErr)
			}
		})
	}
	cr := testRequest()
	cr.Spec.Duration = nil
	c := newCluster(t, cr)
	c.patchErr = apierrors.NewInternalError(errors.New("webhook is down"))
	if _, err := c.reconcile(t, cr); !errors.Is(err, c.patchErr) {
		t.Errorf("denial while the webhook is down: %v, want an error, so that it is tried again", err)
	}
}

func TestRuntimeIssuer(t *testing.T) {
	other := cmmeta.IssuerReference{Name: "new-ca", Kind: "ClusterIssuer", Group: "cert-manager.io"}
	ref := types.NamespacedName{Namespace: "signet-system", Name: "issuer"}
	full := map[string]string{"issuer-name": other.Name, "issuer-kind": other.Kind, "issuer-group": other.Group}
	without := func(key string) map[string]string {
		m := map[string]string{}
		for k, v := range full {
			if k != key {
				m[k] = v
			}
		}
		return m
	}
	for _, test := range []struct {
		name string
		data map[string]string // nil: no ConfigMap
		want []cmmeta.IssuerReference
	}{
		{"no ConfigMap", nil, []cmmeta.IssuerReference{testIssuer}},
		{"complete", full, []cmmeta.IssuerReference{other, testIssuer}},
		{"no name", without("issuer-name"), []cmmeta.IssuerReference{testIssuer}},
		{"no kind", without("issuer-kind"), []cmmeta.IssuerReference{testIssuer}},
		{"no group", without("issuer-group"), []cmmeta.IssuerReference{testIssuer}},
		{"empty", map[string]string{}, []cmmeta.IssuerReference{testIssuer}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newCluster(t)
			if test.data != nil {
				cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: ref.Namespace, Name: ref.Name}, Data: test.data}
				if err := c.Create(t.Context(), cm); err != nil {
					t.Fatal(err)
				}
			}
			i := &issuers{static: []cmmeta.IssuerReference{testIssuer}, ref: ref, reader: c.Client, log: quiet}
			got, err := i.allowed(t.Context())
			if err != nil || !cmp.Equal(got, test.want) {
				t.Errorf("issuers %v, %v, want %v", got, err, test.want)
			}
		})
	}
	t.Run("not valid any more, then deleted", func(t *testing.T) {
		cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: ref.Namespace, Name: ref.Name}, Data: full}
		c := newCluster(t, cm)
		i := &issuers{static: []cmmeta.IssuerReference{testIssuer}, ref: ref, reader: c.Client, log: quiet}
		want := func(when string, want ...cmmeta.IssuerReference) {
			t.Helper()
			if got, err := i.allowed(t.Context()); err != nil || !cmp.Equal(got, want) {
				t.Errorf("%s: issuers %v, %v, want %v", when, got, err, want)
			}
		}
		want("valid", other, testIssuer)
		cm.Data = without("issuer-kind")
		if err := c.Update(t.Context(), cm); err != nil {
			t.Fatal(err)
		}
		want("not valid", other, testIssuer)
		if err := c.Delete(t.Context(), cm); err != nil {
			t.Fatal(err)
		}
		want("deleted", testIssuer)
	})
	t.Run("learned by a standby", func(t *testing.T) {
		scheme, err := newScheme()
		if err != nil {
			t.Fatal(err)
		}
		informer := controllertest.NewFakeInformer(controllertest.Synced)
		fake := &informertest.FakeInformers{Scheme: scheme, InformersByGVK: map[schema.GroupVersionKind]toolscache.SharedIndexInformer{
			corev1.SchemeGroupVersion.WithKind("ConfigMap"): informer,
		}}
		cm := func(version string, data map[string]string) *corev1.ConfigMap {
			return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: ref.Namespace, Name: ref.Name, ResourceVersion: version}, Data: data}
		}
		i := &issuers{static: []cmmeta.IssuerReference{testIssuer}, ref: ref, log: quiet}
		i.reader = newCluster(t, cm("", without("issuer-name"))).Client // By now it is not valid.
		f := follower{i, fake}
		if f.NeedLeaderElection() {
			t.Error("a standby would not follow")
		}
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- f.Start(ctx) }()
			synctest.Wait()
			want := func(when string, want ...cmmeta.IssuerReference) {
				t.Helper()
				if got, err := i.allowed(t.Context()); err != nil || !cmp.Equal(got, want) {
					t.Errorf("%s: issuers %v, %v, want %v", when, got, err, want)
				}
			}
			informer.Add(cm("1", full))
			informer.Update(cm("1", full), cm("2", without("issuer-name")))
			want("valid, then not valid", other, testIssuer)
			informer.Delete(cm("2", nil))
			want("deleted", testIssuer)
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("unreadable", func(t *testing.T) {
		cr := testRequest()
		c := newCluster(t, cr, testPod())
		broken := errors.New("cache is not synced")
		c.reconciler.issuers.ref = ref
		c.reconciler.issuers.reader = failing{err: broken}
		if _, err := c.reconcile(t, cr); !errors.Is(err, broken) || c.patches.Load() != 0 {
			t.Errorf("error %v after %d patches, want %v and none", err, c.patches.Load(), broken)
		}
	})
	t.Run("no ConfigMap is configured, none is read", func(t *testing.T) {
		i := &issuers{static: []cmmeta.IssuerReference{testIssuer}, reader: failing{err: errors.New("read")}, log: quiet}
		if got, err := i.allowed(t.Context()); err != nil || !cmp.Equal(got, i.static) {
			t.Errorf("issuers %v, %v", got, err)
		}
	})
	t.Run("used", func(t *testing.T) {
		cr := testRequest()
		cr.Spec.IssuerRef = other
		c := newCluster(t, cr, testPod(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: ref.Namespace, Name: ref.Name}, Data: full})
		c.reconciler.issuers.ref = ref
		if _, err := c.reconcile(t, cr); err != nil || condition(c.get(t, cr), cmapi.CertificateRequestConditionApproved) == nil {
			t.Errorf("error %v, conditions %+v", err, c.get(t, cr).Status.Conditions)
		}
	})
	t.Run("logged once for a version", func(t *testing.T) {
		c := newCluster(t, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: ref.Namespace, Name: ref.Name}, Data: full})
		var out bytes.Buffer
		i := &issuers{ref: ref, reader: c.Client, log: slog.New(slog.NewTextHandler(&out, nil))}
		for range 3 {
			if _, err := i.allowed(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if n := strings.Count(out.String(), "\n"); n != 1 {
			t.Errorf("%d lines:\n%s", n, out.String())
		}
	})
}

type failing struct {
	client.Reader
	err error
}

func (f failing) Get(context.Context, client.ObjectKey, client.Object, ...client.GetOption) error {
	return f.err
}

// variants are requests in every state that matters to the cache.
func variants() map[string]*cmapi.CertificateRequest {
	make := func(change func(cr *cmapi.CertificateRequest)) *cmapi.CertificateRequest {
		cr := testRequest()
		cr.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "x"}}
		cr.Annotations["example.org/note"] = "long text"
		cr.Spec.Groups = []string{"system:serviceaccounts"}
		change(cr)
		return cr
	}
	decided := func(kind cmapi.CertificateRequestConditionType) func(cr *cmapi.CertificateRequest) {
		return func(cr *cmapi.CertificateRequest) {
			cr.Status.Conditions = []cmapi.CertificateRequestCondition{
				{Type: cmapi.CertificateRequestConditionReady, Status: cmmeta.ConditionTrue, Message: "long text"},
				{Type: kind, Status: cmmeta.ConditionTrue, Message: "long text"},
			}
			cr.Status.Certificate, cr.Status.CA = []byte("certificate"), []byte("ca")
		}
	}
	return map[string]*cmapi.CertificateRequest{
		"undecided": make(func(*cmapi.CertificateRequest) {}),
		"undecided with conditions": make(func(cr *cmapi.CertificateRequest) {
			cr.Status.Conditions = []cmapi.CertificateRequestCondition{{Type: "example.org/Seen", Status: cmmeta.ConditionTrue, Message: "text"}}
		}),
		"wrong":    make(func(cr *cmapi.CertificateRequest) { cr.Spec.Duration = nil }),
		"approved": make(decided(cmapi.CertificateRequestConditionApproved)),
		"denied":   make(decided(cmapi.CertificateRequestConditionDenied)),
		"foreign":  make(func(cr *cmapi.CertificateRequest) { cr.Annotations[request.AnnotationDriver] = "other.csi" }),
		"plain":    make(func(cr *cmapi.CertificateRequest) { delete(cr.Annotations, request.AnnotationIdentity) }),
		"deleted":  make(func(cr *cmapi.CertificateRequest) { cr.DeletionTimestamp = &metav1.Time{Time: testNow} }),
	}
}

// TestTrimKeepsTheVerdict: the verdict on a trimmed request is the verdict on the
// whole one, trimmed once or twice, and only undecided requests wake the controller.
func TestTrimKeepsTheVerdict(t *testing.T) {
	for _, approveNonSPIFFE := range []bool{false, true} {
		policy := testPolicy(t)
		policy.ApproveNonSPIFFE = approveNonSPIFFE
		transform := trim(testDriver, approveNonSPIFFE)
		wakes := candidates(testDriver, approveNonSPIFFE)
		pod, err := evaluate.PodFrom(testPod(), nil)
		if err != nil {
			t.Fatal(err)
		}
		facts := evaluate.Facts{Now: testNow, Pod: pod}
		for name, cr := range variants() {
			t.Run(fmt.Sprintf("%s, approve non-SPIFFE %t", name, approveNonSPIFFE), func(t *testing.T) {
				want := evaluate.Evaluate(evaluate.Request{CertificateRequest: cr.DeepCopy()}, facts, policy)
				trimmed := cr.DeepCopy()
				for range 2 {
					out, err := transform(trimmed)
					if err != nil {
						t.Fatal(err)
					}
					trimmed = out.(*cmapi.CertificateRequest)
					if got := evaluate.Evaluate(evaluate.Request{CertificateRequest: trimmed}, facts, policy); got != want {
						t.Errorf("verdict %+v, want %+v", got, want)
					}
				}
				undecided := want.Decision != evaluate.Ignore
				if wakes.Create(event.CreateEvent{Object: trimmed}) != undecided || wakes.Update(event.UpdateEvent{ObjectOld: cr, ObjectNew: trimmed}) != undecided {
					t.Errorf("verdict %s, but waking is not %t", want.Decision, undecided)
				}
				if wakes.Delete(event.DeleteEvent{Object: trimmed}) || wakes.Generic(event.GenericEvent{Object: trimmed}) {
					t.Error("a deletion wakes the controller")
				}
				if undecided && !cmp.Equal(trimmed.Status.Conditions, cr.Status.Conditions) {
					t.Errorf("conditions %+v, the patch would lose some of %+v", trimmed.Status.Conditions, cr.Status.Conditions)
				}
				if trimmed.ManagedFields != nil || trimmed.Labels != nil || trimmed.Status.Certificate != nil || trimmed.Status.CA != nil ||
					trimmed.Annotations["example.org/note"] != "" || trimmed.Spec.Groups != nil {
					t.Errorf("not trimmed: %+v", trimmed)
				}
				if !undecided {
					if trimmed.Spec.Request != nil {
						t.Error("the CSR of a decided request is kept")
					}
					for _, c := range trimmed.Status.Conditions {
						if c.Message != "" || c.Type == cmapi.CertificateRequestConditionReady {
							t.Errorf("condition %+v is kept", c)
						}
					}
				}
				if trimmed.UID != cr.UID || trimmed.Name != cr.Name || trimmed.Namespace != cr.Namespace {
					t.Error("the object's own name is gone")
				}
			})
		}
		pods := testPod()
		if out, err := transform(pods); err != nil || out != any(pods) {
			t.Errorf("another type: %v, %v", out, err)
		}
	}
}

func TestNoSharedLimits(t *testing.T) {
	config := &rest.Config{QPS: 5, Burst: 10}
	if got := unlimited(config); got.QPS != -1 || got.RateLimiter != nil {
		t.Errorf("QPS %v, limiter %v: client-go would hold requests back", got.QPS, got.RateLimiter)
	}
	if config.QPS != 5 {
		t.Error("the caller's config was changed")
	}
	limiter := workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](retryBase, retryMax)
	for n := range 1000 {
		key := reconcile.Request{NamespacedName: types.NamespacedName{Name: fmt.Sprint(n)}}
		if wait := limiter.When(key); wait > retryBase {
			t.Fatalf("request %d waits %s for the others", n, wait)
		}
	}
}

// TestCacheOptions: the approver may read one ConfigMap, and so must not list them.
func TestCacheOptions(t *testing.T) {
	o := Options{Policy: testPolicy(t)}
	if got := cacheOptions(o).ByObject; len(got) != 1 {
		t.Errorf("%d types are cached, want CertificateRequests alone", len(got))
	}
	o.RuntimeIssuer = types.NamespacedName{Namespace: "signet-system", Name: "issuer"}
	found := false
	for obj, by := range cacheOptions(o).ByObject {
		if _, ok := obj.(*corev1.ConfigMap); !ok {
			continue
		}
		found = true
		in, ok := by.Namespaces["signet-system"]
		if !ok || len(by.Namespaces) != 1 || in.FieldSelector == nil || in.FieldSelector.String() != "metadata.name=issuer" {
			t.Errorf("ConfigMaps are read from %+v, want the one", by.Namespaces)
		}
	}
	if !found {
		t.Error("the ConfigMap is not cached")
	}
}

func TestReadyOnceRequestsAreListed(t *testing.T) {
	scheme, err := newScheme()
	if err != nil {
		t.Fatal(err)
	}
	gvk := cmapi.SchemeGroupVersion.WithKind("CertificateRequest")
	for informer, ready := range map[*controllertest.FakeInformer]bool{
		controllertest.NewFakeInformer():                      false,
		controllertest.NewFakeInformer(controllertest.Synced): true,
	} {
		c := &informertest.FakeInformers{Scheme: scheme, InformersByGVK: map[schema.GroupVersionKind]toolscache.SharedIndexInformer{gvk: informer}}
		if err := requestsSynced(c)(httptest.NewRequest(http.MethodGet, "/readyz", nil)); (err == nil) != ready {
			t.Errorf("listed %t: readiness error %v", ready, err)
		}
	}
	broken := &informertest.FakeInformers{Scheme: scheme, Error: errors.New("no such resource")}
	if err := requestsSynced(broken)(httptest.NewRequest(http.MethodGet, "/readyz", nil)); !errors.Is(err, broken.Error) {
		t.Errorf("readiness error %v, want %v", err, broken.Error)
	}
}

func TestNote(t *testing.T) {
	if got := note("short"); got != "short" {
		t.Errorf("%q", got)
	}
	for pad := range 4 {
		got := note(strings.Repeat("x", pad) + strings.Repeat("…", 1000))
		if len(got) > 1024 || !utf8.ValidString(got) {
			t.Errorf("note of %d bytes, valid %t", len(got), utf8.ValidString(got))
		}
	}
}

func TestNewRefusesIncompletePolicy(t *testing.T) {
	if _, err := New(&rest.Config{}, Options{Log: quiet}); err == nil || !strings.Contains(err.Error(), "policy") {
		t.Errorf("error %v", err)
	}
}

// An approver that starts while the API server is away waits for it: making it
// reaches for no server.
func TestNewNeedsNoAPIServer(t *testing.T) {
	_, err := New(&rest.Config{Host: "https://127.0.0.1:1"}, Options{
		Policy: testPolicy(t), ConcurrentReconciles: 1, LeaderElectionNamespace: "x", ProbeAddress: "0", MetricsAddress: "0",
		RuntimeIssuer: types.NamespacedName{Namespace: "x", Name: "issuer"}, Registerer: prometheus.NewRegistry(), Log: quiet,
	})
	if err != nil {
		t.Error(err)
	}
}

// The mapper knows every object that is read or written.
func TestMapperKnowsWhatIsUsed(t *testing.T) {
	mapper := newMapper()
	for gvk, resource := range map[schema.GroupVersionKind]string{
		cmapi.SchemeGroupVersion.WithKind("CertificateRequest"): "certificaterequests",
		corev1.SchemeGroupVersion.WithKind("Pod"):               "pods",
		corev1.SchemeGroupVersion.WithKind("ConfigMap"):         "configmaps",
	} {
		got, err := mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
		if err != nil || got.Resource.Resource != resource || got.Scope.Name() != meta.RESTScopeNameNamespace {
			t.Errorf("%s is %v, %v; want %s in namespaces", gvk, got, err, resource)
		}
	}
}
