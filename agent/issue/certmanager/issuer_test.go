// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package certmanager

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	cmclient "github.com/cert-manager/cert-manager/pkg/client/clientset/versioned/typed/certmanager/v1"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/signet-spiffe/signet/agent/issue"
	"github.com/signet-spiffe/signet/internal/request"
)

const (
	driver     = "spiffe.csi.cert-manager.io"
	node       = "node-1"
	agentToken = "agent-token"
)

// fixture is a running Issuer against an apiServer, with its watch established
// unless the server is down.
type fixture struct {
	*Issuer
	server *apiServer
	stop   func() // ends Run and waits for it
}

func (s *apiServer) config() *rest.Config {
	return &rest.Config{
		Host: s.URL, BearerToken: agentToken,
		TLSClientConfig: rest.TLSClientConfig{Insecure: true},
	}
}

func start(t *testing.T, s *apiServer, edit func(*Options)) *fixture {
	t.Helper()
	return startWith(t, s, edit, func(*Issuer) {})
}

// startWith calls prepare before the Issuer runs.
func startWith(t *testing.T, s *apiServer, edit func(*Options), prepare func(*Issuer)) *fixture {
	t.Helper()
	client, err := NewClient(s.config())
	if err != nil {
		t.Fatal(err)
	}
	o := Options{
		Client: client, RESTConfig: s.config(), Driver: driver, Node: node,
		IssuerRef: StaticIssuer("spiffe-ca", "ClusterIssuer", "cert-manager.io"),
		Requester: request.RequesterAgent,
	}
	if edit != nil {
		edit(&o)
	}
	i, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	prepare(i)
	var down bool
	s.with(func() { down = s.down })
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { i.Run(ctx) })
	f := &fixture{Issuer: i, server: s, stop: func() { cancel(); running.Wait() }}
	t.Cleanup(f.stop)
	if !down {
		s.awaitWatch(t)
	}
	return f
}

func wish(volume string) issue.IssueRequest {
	return issue.IssueRequest{
		Volume: volume, CSR: []byte("a CSR"), Duration: time.Hour,
		Pod: issue.Pod{Namespace: "shop", Name: "web-0", UID: "pod-uid", ServiceAccount: "web"},
		ID:  spiffeid.RequireFromString("spiffe://example.org/ns/shop/sa/web"),
	}
}

type result struct {
	issue.Issued
	err error
}

// ask issues in the background.
func (f *fixture) ask(ctx context.Context, r issue.IssueRequest) <-chan result {
	out := make(chan result, 1)
	go func() {
		issued, err := f.Issue(ctx, r)
		out <- result{issued, err}
	}()
	return out
}

// created issues in the background and waits until the create has been answered.
func (f *fixture) created(t *testing.T, ctx context.Context) (<-chan result, types.NamespacedName) {
	t.Helper()
	said := make(chan string, 10)
	r := wish("v1")
	r.Progress = func(what string) { said <- what }
	got := f.ask(ctx, r)
	wantSaid(t, said, "creating")
	wantSaid(t, said, "waiting for approval")
	return got, f.server.one(t)
}

func await[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(20 * time.Second):
		t.Fatalf("waited in vain for: %s", what)
		panic("unreachable")
	}
}

func wantError(t *testing.T, err, kind error, words ...string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Fatalf("error %v, want %v", err, kind)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
	if strings.ContainsAny(err.Error(), "\n\r") {
		t.Errorf("error is more than one line: %q", err)
	}
}

func TestIssue(t *testing.T) {
	for _, streaming := range []bool{false, true} {
		t.Run(fmt.Sprintf("streaming=%t", streaming), func(t *testing.T) {
			s := newAPIServer(t)
			s.streaming = streaming
			registry := prometheus.NewRegistry()
			f := start(t, s, func(o *Options) { o.Registerer = registry; o.Annotations = map[string]string{"team": "a"} })

			said := make(chan string, 10)
			r := wish("v1")
			r.Progress = func(what string) { said <- what }
			got := f.ask(t.Context(), r)
			name := s.one(t)
			wantSaid(t, said, "creating CertificateRequest "+name.String())
			wantSaid(t, said, "waiting for approval of CertificateRequest "+name.String())
			s.with(func() {
				cr := s.objects[name]
				if cr.Labels[request.LabelAgent] != request.Hash(driver, node) || cr.Annotations["team"] != "a" ||
					cr.Annotations[request.AnnotationIdentity] != r.ID.String() || string(cr.Spec.Request) != "a CSR" || cr.Spec.IssuerRef.Name != "spiffe-ca" {
					t.Errorf("request is %+v", cr)
				}
			})
			s.update(name, approve)
			wantSaid(t, said, "waiting for ClusterIssuer spiffe-ca to sign CertificateRequest "+name.String())
			s.update(name, pending)
			wantSaid(t, said, "order 66 is being worked on")
			s.update(name, sign)
			res := await(t, "the result", got)
			if res.err != nil || string(res.Chain) != "chain of "+name.Name || string(res.CA) != "ca" || res.Request != name.String() {
				t.Fatalf("got %q, %q, %q, %v", res.Chain, res.CA, res.Request, res.err)
			}
			if n := s.count(http.MethodDelete); n != 0 {
				t.Errorf("%d deletes before Done", n)
			}
			res.Done(t.Context())
			res.Done(t.Context())
			s.awaitEmpty(t)
			f.stop()
			if posts, deletes := s.count(http.MethodPost), s.count(http.MethodDelete); posts != 1 || deletes != 1 {
				t.Errorf("%d POST and %d DELETE for one issuance, want one each", posts, deletes)
			}
			if len(f.board.waiting)+len(f.board.kept) != 0 {
				t.Errorf("the board is not clean: %d waiting, %d kept", len(f.board.waiting), len(f.board.kept))
			}
			if n := testutil.ToFloat64(f.metrics.results.WithLabelValues("issued")); n != 1 {
				t.Errorf("%v issued counted", n)
			}
			if problems, err := testutil.GatherAndLint(registry); err != nil || len(problems) > 0 {
				t.Errorf("metrics: %v, %v", problems, err)
			}
		})
	}
}

func wantSaid(t *testing.T, said <-chan string, words string) {
	t.Helper()
	if what := await(t, "progress: "+words, said); !strings.Contains(what, words) {
		t.Errorf("progress %q, want %q", what, words)
	}
}

// The watch may show the end before the create has been answered.
func TestIssuedBeforeCreateReturns(t *testing.T) {
	s := newAPIServer(t)
	f := start(t, s, nil)
	answer := make(chan struct{})
	woken := make(chan *waiter, 1)
	s.with(func() {
		s.onCreate = func(cr *cmapi.CertificateRequest) *metav1.Status {
			s.put(cr)
			s.update(nameOf(cr), sign)
			f.board.mu.Lock()
			woken <- f.board.waiting[nameOf(cr)]
			f.board.mu.Unlock()
			<-answer
			return nil
		}
	})
	got := f.ask(t.Context(), wish("v1"))
	w := await(t, "the waiter", woken)
	for f.board.look(w).phase != issued {
		await(t, "the watch event", w.wake)
	}
	// The attempt must not need the tokens that the test has taken.
	close(answer)
	if res := await(t, "the result", got); res.err != nil {
		t.Fatal(res.err)
	}
}

func TestRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		edit  func(*cmapi.CertificateRequest)
		kind  error
		words []string
	}{
		"denied":  {deny, issue.ErrDenied, []string{"policy", "wrong duration: want 1h"}},
		"failed":  {breakIt, issue.ErrFailed, []string{"the HSM is on fire"}},
		"invalid": {invalid, issue.ErrFailed, []string{"BadCSR", "no such key type"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newAPIServer(t)
			f := start(t, s, nil)
			got := f.ask(t.Context(), wish("v1"))
			first := s.one(t)
			s.update(first, tc.edit)
			res := await(t, "the refusal", got)
			wantError(t, res.err, tc.kind, append(tc.words, first.String())...)

			// The refused request stays for the operator, until the next attempt.
			if s.one(t) != first {
				t.Error("the refused request is gone")
			}
			got = f.ask(t.Context(), wish("v1"))
			s.await(t, "the second request alone", func() bool {
				return len(s.objects) == 1 && s.objects[first] == nil
			})
			second := s.one(t)
			s.update(second, tc.edit)
			await(t, "the refusal", got)
			f.Forget("v1")
			f.Forget("v1")
			s.awaitEmpty(t)
		})
	}
}

func TestDeletedWhilePending(t *testing.T) {
	s := newAPIServer(t)
	f := start(t, s, nil)
	got, name := f.created(t, t.Context())
	s.remove(name)
	wantError(t, await(t, "the result", got).err, issue.ErrUnavailable, "deleted while it was pending")
}

// Labels are what the watch goes by: without them the request is out of sight,
// and is deleted rather than left.
func TestRelabelledWhilePending(t *testing.T) {
	s := newAPIServer(t)
	f := start(t, s, nil)
	got, name := f.created(t, t.Context())
	s.update(name, func(cr *cmapi.CertificateRequest) { cr.Labels = nil })
	wantError(t, await(t, "the result", got).err, issue.ErrUnavailable)
	s.awaitEmpty(t)
}

// A request deleted while nobody was watching and nothing can be resumed is
// missing from the next list, and that is enough.
func TestDeletedWhileWatchIsDown(t *testing.T) {
	s := newAPIServer(t)
	f := start(t, s, nil)
	got, name := f.created(t, t.Context())
	s.setDown(true)
	s.remove(name)
	s.compact()
	s.setDown(false)
	wantError(t, await(t, "the result", got).err, issue.ErrUnavailable, name.String())
}

func TestIssuedWhileWatchIsDown(t *testing.T) {
	for _, compacted := range []bool{false, true} {
		t.Run(fmt.Sprintf("compacted=%t", compacted), func(t *testing.T) {
			s := newAPIServer(t)
			f := start(t, s, nil)
			got, name := f.created(t, t.Context())
			s.dropWatches()
			s.update(name, approve)
			s.setDown(true)
			s.update(name, sign)
			if compacted {
				s.compact()
			}
			s.setDown(false)
			res := await(t, "the result", got)
			if res.err != nil {
				t.Fatal(res.err)
			}
			res.Done(t.Context())
			s.awaitEmpty(t)
		})
	}
}

func TestCancelledWhilePending(t *testing.T) {
	s := newAPIServer(t)
	f := start(t, s, nil)
	ctx, cancel := context.WithCancelCause(t.Context())
	got, name := f.created(t, ctx)
	cause := errors.New("volume unpublished")
	cancel(cause)
	wantError(t, await(t, "the result", got).err, cause, "withdrawn", name.String())
	s.awaitEmpty(t)
}

// Unpublish does not wait for a slow API server, and what the API server makes
// of the request later is undone.
func TestCancelledWhileCreating(t *testing.T) {
	s := newAPIServer(t)
	f := start(t, s, nil)
	reached, release := make(chan struct{}), make(chan struct{})
	s.with(func() {
		s.onCreate = func(*cmapi.CertificateRequest) *metav1.Status { close(reached); <-release; return nil }
	})
	ctx, cancel := context.WithCancel(t.Context())
	got := f.ask(ctx, wish("v1"))
	await(t, "the create", reached)
	cancel()
	wantError(t, await(t, "the result", got).err, context.Canceled, "withdrawn while creating")
	close(release)
	s.await(t, "create and delete", func() bool { return s.uids == 1 && len(s.objects) == 0 })
}

// slowCreates holds creates until released and shows the context they run in.
type slowCreates struct {
	cmclient.CertificateRequestInterface
	running chan context.Context
	release chan struct{}
}

func (c slowCreates) CertificateRequests(string) cmclient.CertificateRequestInterface { return c }

func (c slowCreates) Create(ctx context.Context, cr *cmapi.CertificateRequest, _ metav1.CreateOptions) (*cmapi.CertificateRequest, error) {
	c.running <- ctx
	<-c.release
	return cr, ctx.Err()
}

// A create is not cut off half-way, when nobody can say what came of it.
func TestCreateOutlivesTheAttempt(t *testing.T) {
	f := start(t, newAPIServer(t), nil)
	client := slowCreates{running: make(chan context.Context, 1), release: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	cr, err := f.newRequest(t.Context(), wish("v1"))
	if err != nil {
		t.Fatal(err)
	}
	w, _ := f.board.expect(nameOf(cr), "v1")
	ended := make(chan error, 1)
	go func() { ended <- f.create(ctx, client, w, cr, wish("v1")) }()
	creating := await(t, "the create", client.running)
	cancel()
	wantError(t, await(t, "the end of the attempt", ended), context.Canceled)
	if creating.Err() != nil {
		t.Error("the create was cut off with its attempt")
	}
	if _, bounded := creating.Deadline(); !bounded {
		t.Error("the create may take for ever")
	}
	close(client.release)
}

// A create whose answer is lost has an object that nobody knows of.
func TestLostAnswerIsCleanedUp(t *testing.T) {
	s := newAPIServer(t)
	f := start(t, s, nil)
	s.with(func() { s.loseAnswer = true })
	_, err := f.Issue(t.Context(), wish("v1"))
	wantError(t, err, issue.ErrUnavailable)
	s.await(t, "create and delete", func() bool { return s.uids >= 1 && len(s.objects) == 0 })
}

// At the start, what an earlier life of this agent has left goes; other agents'
// requests, and one that is waited for, stay.
func TestStaleRequestsAreRemoved(t *testing.T) {
	s := newAPIServer(t)
	left := func(name, ofDriver, ofNode string) types.NamespacedName {
		cr := request.New(request.Spec{Driver: ofDriver, Node: ofNode, Pod: request.Pod(wish("v").Pod), ID: wish("v").ID})
		cr.Name = name
		return nameOf(s.put(cr))
	}
	left("mine-1", driver, node)
	left("mine-2", driver, node)
	left("other-node", driver, "node-2")
	left("other-driver", "other.example.org", node)
	// An attempt that began before the API server could be listed is not stale.
	s.with(func() { s.down = true })
	f := start(t, s, nil)
	w, _ := f.board.expect(left("waited-for", driver, node), "v1")
	if f.Synced() {
		t.Error("synced without an API server")
	}
	s.setDown(false)
	s.await(t, "the stale requests to go", func() bool {
		return s.objects[types.NamespacedName{Namespace: "shop", Name: "mine-1"}] == nil &&
			s.objects[types.NamespacedName{Namespace: "shop", Name: "mine-2"}] == nil
	})
	if !f.Synced() {
		t.Error("not synced after a list")
	}
	if err := f.Watching(); err != nil {
		t.Errorf("after a list: %v", err)
	}
	f.board.drop(w)
	f.stop()
	s.with(func() {
		for _, name := range []string{"other-node", "other-driver", "waited-for"} {
			if s.objects[types.NamespacedName{Namespace: "shop", Name: name}] == nil {
				t.Errorf("%s was deleted", name)
			}
		}
	})
}

// The newest call says whether results are heard of at present.
func TestWatching(t *testing.T) {
	s := newAPIServer(t)
	f := start(t, s, nil)
	s.awaitWatch(t)
	if err := f.Watching(); err != nil {
		t.Errorf("while a watch is open: %v", err)
	}
	f.stop()
	f.called("watch", errors.New("connection refused"))
	if err := f.Watching(); err == nil || !strings.Contains(err.Error(), "connection refused") || !f.Synced() {
		t.Errorf("after a call that failed: %v (synced: %t)", err, f.Synced())
	}
	f.called("list", nil)
	if err := f.Watching(); err != nil {
		t.Errorf("after a call that succeeded: %v", err)
	}
}

func TestAPIServerDownAtStart(t *testing.T) {
	s := newAPIServer(t)
	s.setDown(true)
	f := start(t, s, nil)
	_, err := f.Issue(t.Context(), wish("v1"))
	wantError(t, err, issue.ErrUnavailable, "shop/web-0-")
	s.setDown(false)
	got := f.ask(t.Context(), wish("v1"))
	s.update(s.one(t), sign)
	if res := await(t, "the result", got); res.err != nil {
		t.Fatal(res.err)
	}
}

func TestStopWithdrawsWhatIsPending(t *testing.T) {
	s := newAPIServer(t)
	f := start(t, s, nil)
	got, _ := f.created(t, context.Background())
	f.stop()
	wantError(t, await(t, "the result", got).err, issue.ErrUnavailable, "stopping")
	s.with(func() {
		if len(s.objects) != 0 {
			t.Errorf("%d requests left", len(s.objects))
		}
	})
	_, err := f.Issue(t.Context(), wish("v1"))
	wantError(t, err, issue.ErrUnavailable, "stopping")
}

func TestDeleteIsTriedAgain(t *testing.T) {
	s := newAPIServer(t)
	f := start(t, s, nil)
	failures := 3
	s.with(func() {
		s.onDelete = func(types.NamespacedName) *metav1.Status {
			s.mu.Lock()
			defer s.mu.Unlock()
			if failures--; failures >= 0 {
				return status(http.StatusInternalServerError, metav1.StatusReasonInternalError, "etcd is tired")
			}
			return nil
		}
	})
	got := f.ask(t.Context(), wish("v1"))
	s.update(s.one(t), sign)
	res := await(t, "the result", got)
	if res.err != nil {
		t.Fatal(res.err)
	}
	res.Done(t.Context())
	s.awaitEmpty(t)
}

// Another object that has taken the name is neither believed nor deleted.
func TestAnotherObjectOfTheSameName(t *testing.T) {
	s := newAPIServer(t)
	f := start(t, s, nil)
	got, name := f.created(t, t.Context())
	s.with(func() {
		old := s.objects[name].DeepCopy()
		impostor := old.DeepCopy()
		impostor.UID = "impostor"
		sign(impostor)
		s.store("MODIFIED", impostor, old.Labels)
	})
	wantError(t, await(t, "the result", got).err, issue.ErrUnavailable)
	f.stop()
	s.with(func() {
		if s.objects[name] == nil {
			t.Error("the other object was deleted")
		}
	})
}

// A whole node of pods at once: nothing waits for a client-side limiter (at
// client-go's default of 5 per second this takes 20 s), and nothing is left.
func TestWholeNodeAtOnce(t *testing.T) {
	s := newAPIServer(t)
	f := start(t, s, nil)
	s.with(func() {
		s.onCreate = func(cr *cmapi.CertificateRequest) *metav1.Status {
			s.put(cr)
			go s.update(nameOf(cr), sign)
			return nil
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var all sync.WaitGroup
	for n := range 110 {
		all.Go(func() {
			res, err := f.Issue(ctx, wish(fmt.Sprintf("v%d", n)))
			if err != nil {
				t.Error(err)
				return
			}
			if want := "chain of " + strings.TrimPrefix(res.Request, "shop/"); string(res.Chain) != want {
				t.Errorf("request %s got %q", res.Request, res.Chain)
			}
			res.Done(ctx)
		})
	}
	all.Wait()
	s.awaitEmpty(t)
	if posts, deletes := s.count(http.MethodPost), s.count(http.MethodDelete); posts != 110 || deletes != 110 {
		t.Errorf("%d POST and %d DELETE for 110 issuances", posts, deletes)
	}
}

func TestCreateErrors(t *testing.T) {
	terminating := status(http.StatusForbidden, metav1.StatusReasonForbidden, "namespace shop is being terminated")
	terminating.Details = &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: "NamespaceTerminating"}}}
	for name, tc := range map[string]struct {
		status    *metav1.Status
		requester request.Requester
		kind      error
		words     string
	}{
		"agent forbidden":    {status(403, metav1.StatusReasonForbidden, "no\nway"), request.RequesterAgent, issue.ErrDenied, "the agent's service account needs the right"},
		"pod forbidden":      {status(403, metav1.StatusReasonForbidden, "no way"), request.RequesterPod, issue.ErrDenied, "grant service account shop/web"},
		"terminating":        {terminating, request.RequesterAgent, issue.ErrFailed, "being deleted"},
		"agent unauthorized": {status(401, metav1.StatusReasonUnauthorized, "who?"), request.RequesterAgent, issue.ErrUnavailable, "agent's own credentials"},
		"pod unauthorized":   {status(401, metav1.StatusReasonUnauthorized, "who?"), request.RequesterPod, issue.ErrNoToken, "shop/web"},
		"invalid":            {status(422, metav1.StatusReasonInvalid, "spec.request: bad"), request.RequesterAgent, issue.ErrFailed, "spec.request: bad"},
		"webhook down":       {status(500, metav1.StatusReasonInternalError, "failed calling webhook"), request.RequesterAgent, issue.ErrUnavailable, "webhook"},
		"not installed":      {status(404, metav1.StatusReasonNotFound, "could not find the requested resource"), request.RequesterAgent, issue.ErrUnavailable, "is cert-manager installed"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newAPIServer(t)
			f := start(t, s, func(o *Options) { o.Requester = tc.requester })
			s.with(func() { s.onCreate = func(*cmapi.CertificateRequest) *metav1.Status { return tc.status } })
			r := wish("v1")
			r.Token = issue.NewToken("pod-token-secret")
			_, err := f.Issue(t.Context(), r)
			wantError(t, err, tc.kind, "create CertificateRequest shop/web-0-", tc.words)
			if strings.Contains(err.Error(), "pod-token-secret") {
				t.Errorf("error holds the token: %v", err)
			}
			f.stop()
			if len(f.board.waiting) != 0 {
				t.Error("the attempt is still on the board")
			}
		})
	}
}

func TestNewValidates(t *testing.T) {
	s := newAPIServer(t)
	client, err := NewClient(s.config())
	if err != nil {
		t.Fatal(err)
	}
	good := Options{Client: client, RESTConfig: s.config(), Driver: driver, Node: node, IssuerRef: StaticIssuer("a", "b", "c"), Requester: request.RequesterPod}
	if _, err := New(good); err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(*Options){
		"client":    func(o *Options) { o.Client = nil },
		"driver":    func(o *Options) { o.Driver = "" },
		"node":      func(o *Options) { o.Node = "" },
		"issuer":    func(o *Options) { o.IssuerRef = nil },
		"requester": func(o *Options) { o.Requester = "nobody" },
		"REST":      func(o *Options) { o.RESTConfig = nil },
	} {
		t.Run(name, func(t *testing.T) {
			o := good
			edit(&o)
			if _, err := New(o); err == nil {
				t.Error("accepted")
			}
		})
	}
}

func TestIssuerUnknown(t *testing.T) {
	s := newAPIServer(t)
	f := start(t, s, func(o *Options) {
		o.IssuerRef = func(context.Context, func(string)) (cmmeta.IssuerReference, error) {
			return cmmeta.IssuerReference{}, errors.New("the ConfigMap names none")
		}
	})
	_, err := f.Issue(t.Context(), wish("v1"))
	wantError(t, err, issue.ErrUnavailable, "the ConfigMap names none")
	if n := s.count(http.MethodPost); n != 0 {
		t.Errorf("%d requests were made", n)
	}
}

// Nothing secret is logged at the finest level.
func TestLogHoldsNoToken(t *testing.T) {
	s := newAPIServer(t)
	var mu sync.Mutex
	var out bytes.Buffer
	f := start(t, s, func(o *Options) {
		o.Requester = request.RequesterPod
		o.Log = slog.New(slog.NewTextHandler(writer(func(b []byte) { mu.Lock(); defer mu.Unlock(); out.Write(b) }), &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	r := wish("v1")
	r.Token = issue.NewToken("pod-token-secret")
	got := f.ask(t.Context(), r)
	s.update(s.one(t), deny)
	await(t, "the result", got)
	f.stop()
	mu.Lock()
	defer mu.Unlock()
	if out.Len() == 0 {
		t.Error("nothing was logged: the test proves nothing")
	}
	for _, secret := range []string{"pod-token-secret", agentToken} {
		if strings.Contains(out.String(), secret) {
			t.Errorf("log holds %s", secret)
		}
	}
}

type writer func([]byte)

func (w writer) Write(b []byte) (int, error) { w(b); return len(b), nil }

// While the API server is heard that is now; when it is lost, the moment of that stays.
func TestHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		counted, err := newMetrics(prometheus.NewRegistry(), func() bool { return true })
		if err != nil {
			t.Fatal(err)
		}
		i := &Issuer{metrics: counted}
		refused := errors.New("connection refused")
		i.called("list", refused)
		if got := i.Heard(); !got.IsZero() {
			t.Errorf("never heard, it says %s", got)
		}
		i.called("list", nil)
		time.Sleep(time.Hour)
		if got := i.Heard(); !got.Equal(time.Now()) {
			t.Errorf("heard for an hour, it says %s ago", time.Since(got))
		}
		for range 3 {
			i.called("watch", refused)
			time.Sleep(time.Minute)
		}
		if got := i.Heard(); !got.Equal(time.Now().Add(-3 * time.Minute)) {
			t.Errorf("lost three minutes ago, it says %s ago", time.Since(got))
		}
	})
}
