// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/signet-spiffe/signet/agent/issue"
	"github.com/signet-spiffe/signet/agent/issue/selfca"
	"github.com/signet-spiffe/signet/agent/workload"
	"github.com/signet-spiffe/signet/internal/metricspage"
	"github.com/signet-spiffe/signet/internal/observe"
	"github.com/signet-spiffe/signet/workloadapi"
)

// cluster is an API server with cert-manager and an approver behind it, as far as
// one agent sees them: requests are signed at once, or denied where the pod is
// called so.
type cluster struct {
	*httptest.Server
	ca     *selfca.Issuer
	events chan metav1.WatchEvent // For the one watch.

	mu     sync.Mutex
	names  []string // Of requests and Events.
	serial int
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	ca, err := selfca.New(selfca.Options{TrustDomain: td})
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{ca: ca, events: make(chan metav1.WatchEvent, 100)}
	c.Server = httptest.NewServer(c)
	t.Cleanup(func() { c.CloseClientConnections(); c.Close() })
	return c
}

func (c *cluster) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	switch {
	case r.URL.Query().Get("sendInitialEvents") == "true":
		c.answer(w, http.StatusUnprocessableEntity, metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Reason: metav1.StatusReasonInvalid, Code: 422})
	case r.URL.Query().Get("watch") == "true":
		c.watch(w, r)
	case r.Method == http.MethodGet:
		c.answer(w, http.StatusOK, cmapi.CertificateRequestList{TypeMeta: metav1.TypeMeta{Kind: "CertificateRequestList", APIVersion: "cert-manager.io/v1"}, ListMeta: metav1.ListMeta{ResourceVersion: "1"}})
	case r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/certificaterequests"):
		c.create(w, r)
	case r.Method == http.MethodPost:
		c.event(w, r)
	default:
		c.answer(w, http.StatusOK, metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Success"})
	}
}

func (c *cluster) answer(w http.ResponseWriter, code int, body any) {
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body)
}

func (c *cluster) watch(w http.ResponseWriter, r *http.Request) {
	w.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(w).Flush()
	for {
		select {
		case e := <-c.events:
			_ = json.NewEncoder(w).Encode(e)
			_ = http.NewResponseController(w).Flush()
		case <-r.Context().Done():
			return
		}
	}
}

func (c *cluster) event(w http.ResponseWriter, r *http.Request) {
	var e struct {
		Metadata metav1.ObjectMeta `json:"metadata"`
	}
	_ = json.NewDecoder(r.Body).Decode(&e)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.names = append(c.names, e.Metadata.Name)
	c.answer(w, http.StatusCreated, map[string]any{"kind": "Event", "apiVersion": "v1", "metadata": e.Metadata})
}

func (c *cluster) create(w http.ResponseWriter, r *http.Request) {
	var cr cmapi.CertificateRequest
	_ = json.NewDecoder(r.Body).Decode(&cr)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.names = append(c.names, cr.Name)
	c.serial++
	cr.TypeMeta = metav1.TypeMeta{Kind: "CertificateRequest", APIVersion: "cert-manager.io/v1"}
	cr.UID, cr.ResourceVersion = types.UID(fmt.Sprint("uid-", c.serial)), fmt.Sprint(10*c.serial)
	c.answer(w, http.StatusCreated, cr)
	c.conclude(r.Context(), &cr)
	cr.ResourceVersion += "5"
	raw, _ := json.Marshal(cr)
	e := metav1.WatchEvent{Type: "ADDED"}
	e.Object.Raw = raw
	c.events <- e
}

func (c *cluster) conclude(ctx context.Context, cr *cmapi.CertificateRequest) {
	condition := cmapi.CertificateRequestCondition{Type: cmapi.CertificateRequestConditionReady, Status: cmmeta.ConditionTrue, Reason: "Issued"}
	if strings.Contains(cr.Name, "denied") {
		condition = cmapi.CertificateRequestCondition{Type: cmapi.CertificateRequestConditionDenied, Status: cmmeta.ConditionTrue, Reason: "Denied", Message: "not for " + cr.Name}
	} else if issued, err := c.ca.Issue(ctx, issue.IssueRequest{ID: zebraID(cr), CSR: cr.Spec.Request, Duration: time.Hour}); err == nil {
		cr.Status.Certificate, cr.Status.CA = issued.Chain, issued.CA
	}
	cr.Status.Conditions = append(cr.Status.Conditions, condition)
}

func zebraID(cr *cmapi.CertificateRequest) spiffeid.ID {
	return spiffeid.RequireFromString(cr.Annotations["spiffe.csi.cert-manager.io/identity"])
}

// tmpfs is storage without mounts.
type tmpfs struct{}

func (tmpfs) Prepare(workload.Volume) error                 { return nil }
func (tmpfs) Store(workload.Volume, workload.Content) error { return nil }
func (tmpfs) Push(workload.Volume, workload.Content)        {}
func (tmpfs) Remove(string) error                           { return nil }

// observed is an agent, but for kubelet and mounts, with all that it registers.
type observed struct {
	listing  *metricspage.Listing
	registry *workload.Registry
}

// observeAgent joins the parts as run does.
func observeAgent(t *testing.T, c *cluster) observed {
	t.Helper()
	o, err := parse(t, "--node-id=zebra-node", "--trust-domain="+td.Name(), "--kubeconfig="+writeKubeconfig(t), "--admin-socket-path="+filepath.Join(t.TempDir(), "admin", "admin.sock"))
	if err != nil {
		t.Fatal(err)
	}
	o.restConfig = &rest.Config{Host: c.URL}
	log := slog.New(slog.DiscardHandler)
	listing := metricspage.NewListing(observe.NewRegistry())
	source, err := openTrust(o, listing, log)
	must(t, err)
	requests, err := countAPIRequests(o, listing)
	must(t, err)
	// With a ConfigMap, for its metrics; no part here runs the source.
	o.runtimeIssuer.name, o.runtimeIssuer.namespace = "issuer", "signet-system"
	_, err = openIssuerConfig(o, listing, log)
	must(t, err)
	o.runtimeIssuer.name = ""
	signers, err := openIssuerConfig(o, listing, log)
	must(t, err)
	issuer, err := newIssuer(o, signers, requests, listing, log)
	must(t, err)
	events, err := newEvents(o, listing, log)
	must(t, err)
	o.watchPods = true // For its metrics; it is not run.
	_, err = openPods(o, listing, log)
	must(t, err)
	workloadapi.NewServer(workloadapi.Options{Log: log, Registerer: listing})
	registry := workload.New(workload.Options{
		Issuer: issuer, Trust: source, Volumes: tmpfs{}, ID: identify(o.trustDomain, o.template), KeyType: o.keyType,
		Duration: o.duration, PublishTimeout: 20 * time.Second, Notifier: events, Log: log, Registerer: listing,
	})
	administration := openAdmin(o, registry, issuer, observe.NewLevel(slog.LevelInfo), listing, log)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, part := range []func(context.Context){issuer.Run, registry.Run, events.Run, administration.run} {
		running.Go(func() { part(ctx) })
	}
	t.Cleanup(func() { cancel(); running.Wait() })
	return observed{listing, registry}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// use has one volume issued and another denied, and gives every name that was in
// play.
func (o observed) use(t *testing.T, c *cluster) []string {
	t.Helper()
	good := workload.Volume{ID: "zebra-volume", Pod: issue.Pod{Namespace: "zebra-namespace", Name: "zebra-pod", UID: "zebra-uid", ServiceAccount: "zebra-account"}}
	bad := good
	bad.ID, bad.Pod.Name = "zebra-volume-2", "denied-pod"
	must(t, o.registry.Publish(t.Context(), good))
	if err := o.registry.Publish(t.Context(), bad); !errors.Is(err, issue.ErrDenied) {
		t.Fatalf("publish of the pod to be denied: %v", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.names) < 2 {
		t.Fatalf("requests %v, want two at least", c.names)
	}
	return append(slices.Clone(c.names), "zebra", "denied-pod")
}

// No label value names a volume, a pod, a namespace, an account or a request,
// nor anything else that the cluster's users choose.
func TestLabelsNameNobody(t *testing.T) {
	c := newCluster(t)
	o := observeAgent(t, c)
	names := o.use(t, c)
	families, err := o.listing.Gather()
	must(t, err)
	seen := 0
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			for _, label := range metric.GetLabel() {
				seen++
				for _, name := range names {
					if strings.Contains(label.GetValue(), name) {
						t.Errorf("%s{%s=%q} contains %q", family.GetName(), label.GetName(), label.GetValue(), name)
					}
				}
			}
		}
		if n := len(family.GetMetric()); n > 100 {
			t.Errorf("%s has %d series", family.GetName(), n)
		}
	}
	if seen < 50 {
		t.Errorf("%d labels were looked at: the test proves nothing", seen)
	}
}

func TestMetricsPageIsTrue(t *testing.T) {
	page, err := metricspage.Read(filepath.Join("..", "docs", "metrics.md"), "signet-agent")
	must(t, err)
	c := newCluster(t)
	o := observeAgent(t, c)
	o.use(t, c)
	all, err := o.listing.Metrics()
	must(t, err)
	// The handler of /metrics registers its own in production (observe.Server).
	for _, wrong := range page.Compare(all) {
		t.Error(wrong)
	}
}
