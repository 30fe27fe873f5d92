// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package issuerconfig

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/signet-spiffe/signet/internal/request"
)

var (
	static = cmmeta.IssuerReference{Name: "static", Kind: "ClusterIssuer", Group: "cert-manager.io"}
	named  = cmmeta.IssuerReference{Name: "runtime", Kind: "Issuer", Group: "example.org"}
	good   = map[string]string{"issuer-name": "runtime", "issuer-kind": "Issuer", "issuer-group": "example.org"}
	bad    = map[string]string{"issuer-name": "other", "issuer-kind": "", "issuer-group": "example.org"}
)

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

func silent(string) {}

// start follows the server's ConfigMap until the test ends.
func start(t *testing.T, s *apiServer, edit func(*Options)) *Source {
	t.Helper()
	o := Options{Client: s.client(t), ConfigMap: name, Default: static, Reporter: "node-1"}
	if edit != nil {
		edit(&o)
	}
	source, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { source.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	return source
}

// becomes waits for an issuer.
func becomes(t *testing.T, s *Source, want cmmeta.IssuerReference) {
	t.Helper()
	for {
		name, superseded := s.Issuer()
		if name == request.IssuerName(want) {
			break
		}
		await(t, "issuer "+request.IssuerName(want)+", it is "+name, superseded)
	}
	if got, err := s.IssuerRef(t.Context(), silent); err != nil || got != want {
		t.Errorf("asks %v, %v, want %v", got, err, want)
	}
}

func TestFollowsTheConfigMap(t *testing.T) {
	s := newAPIServer(t)
	registry := prometheus.NewRegistry()
	source := start(t, s, func(o *Options) { o.Registerer = registry })
	becomes(t, source, static)
	s.put(good)
	becomes(t, source, named)
	s.put(nil)
	becomes(t, source, static)
	if n := testutil.ToFloat64(source.metrics.changes); n != 2 {
		t.Errorf("%v changes counted, want 2", n)
	}
	s.mu.Lock()
	for _, q := range s.queries {
		if q != "/api/v1/namespaces/signet-system/configmaps?metadata.name=issuer" {
			t.Errorf("asked for %s: RBAC allows the one ConfigMap only", q)
		}
	}
	s.mu.Unlock()
	if problems, err := testutil.GatherAndLint(registry); err != nil || len(problems) > 0 {
		t.Errorf("metrics: %v, %v", problems, err)
	}
}

func TestIssuerAtStart(t *testing.T) {
	s := newAPIServer(t)
	s.put(good)
	becomes(t, start(t, s, nil), named)
}

// The ConfigMap is deleted while nobody watches, and the versions in between are
// forgotten: only a list can tell.
func TestDeletionInAWatchGapIsNoticed(t *testing.T) {
	s := newAPIServer(t)
	s.put(good)
	source := start(t, s, nil)
	becomes(t, source, named)
	s.cut(true)
	s.put(nil)
	s.mu.Lock()
	s.history, s.oldest = nil, s.version+1
	s.version++
	s.mu.Unlock()
	if got, err := source.IssuerRef(t.Context(), silent); err != nil || got != named {
		t.Errorf("with the API server down: %v, %v, want the one known last", got, err)
	}
	s.cut(false)
	becomes(t, source, static)
}

// Content that is not valid is refused, with one Event however many agents see
// it, and the issuer before stays.
func TestInvalidContentIsRefused(t *testing.T) {
	s := newAPIServer(t)
	s.put(good)
	first, second := start(t, s, nil), start(t, s, nil)
	becomes(t, first, named)
	becomes(t, second, named)
	s.put(bad)
	s.until(t, "an Event by each agent", func() bool { return s.posts == 2 })
	becomes(t, first, named)
	if n, valid := testutil.ToFloat64(first.metrics.refusals), testutil.ToFloat64(first.metrics.valid); n != 1 || valid != 0 {
		t.Errorf("%v refusals counted, valid is %v; want 1 and 0", n, valid)
	}
	s.mu.Lock()
	if len(s.events) != 1 {
		t.Errorf("%d Events, want one for all agents", len(s.events))
	}
	for _, e := range s.events {
		if e.Namespace != name.Namespace || e.InvolvedObject.Kind != "ConfigMap" || e.InvolvedObject.Name != name.Name || e.InvolvedObject.UID != "uid" ||
			e.Type != corev1.EventTypeWarning || e.Reason != EventReason || !strings.Contains(e.Message, `"issuer-kind" is missing or empty`) || e.Source.Host != "node-1" {
			t.Errorf("Event %+v", e)
		}
	}
	s.mu.Unlock()

	s.cut(false) // The same version again is no news.
	s.put(map[string]string{"issuer-name": "static", "issuer-kind": "ClusterIssuer", "issuer-group": "cert-manager.io"})
	becomes(t, first, static)
	if n, valid := testutil.ToFloat64(first.metrics.refusals), testutil.ToFloat64(first.metrics.valid); n != 1 || valid != 1 {
		t.Errorf("%v refusals counted, valid is %v; want 1 and 1", n, valid)
	}
}

// A ConfigMap that is not valid when it is first read leaves nobody to ask: the
// issuer of the flags is perhaps no longer meant, and asking it would have every
// SVID of this node replaced by one of its own.
func TestInvalidAtStart(t *testing.T) {
	s := newAPIServer(t)
	s.put(bad)
	for _, byFlags := range []cmmeta.IssuerReference{static, {}} {
		source := start(t, s, func(o *Options) { o.Default = byFlags })
		_, err := source.IssuerRef(t.Context(), silent)
		if err == nil || !strings.Contains(err.Error(), "signet-system/issuer is not valid") || !strings.Contains(err.Error(), "issuer-kind") {
			t.Errorf("%v, want what is wrong with the ConfigMap", err)
		}
		if name, _ := source.Issuer(); name != "" {
			t.Errorf("the issuer is %q, want none: it would be a reason to issue again", name)
		}
	}
}

func TestNoIssuerAtAll(t *testing.T) {
	source := start(t, newAPIServer(t), func(o *Options) { o.Default = cmmeta.IssuerReference{} })
	if _, err := source.IssuerRef(t.Context(), silent); err == nil || !strings.Contains(err.Error(), "there is no ConfigMap signet-system/issuer") {
		t.Errorf("%v, want what to do", err)
	}
}

// Without the right to write Events the refusal is in the log.
func TestEventsForbidden(t *testing.T) {
	s := newAPIServer(t)
	s.forbid = "events"
	lines := make(chan string, 100)
	start(t, s, func(o *Options) { o.Log = slog.New(slog.NewTextHandler(lineWriter(lines), nil)) })
	s.put(bad)
	for _, what := range []string{"was refused", "may not create Events"} {
		for !strings.Contains(await(t, "a line that says "+what, lines), what) {
			continue
		}
	}
}

type lineWriter chan<- string

func (w lineWriter) Write(p []byte) (int, error) { w <- string(bytes.TrimSpace(p)); return len(p), nil }

// Before the first list nothing is issued: the attempt waits, says for what, and
// goes on when the list is there.
func TestFirstSyncIsWaitedFor(t *testing.T) {
	s := newAPIServer(t)
	s.put(good)
	s.cut(true)
	source := start(t, s, nil)
	if name, _ := source.Issuer(); name != "" || source.Synced() {
		t.Errorf("issuer %q before anything was read", name)
	}
	said, got := make(chan string, 1), make(chan cmmeta.IssuerReference, 1)
	go func() {
		ref, err := source.IssuerRef(t.Context(), func(what string) { said <- what })
		if err != nil {
			t.Error(err)
		}
		got <- ref
	}()
	if what := await(t, "what is waited for", said); !strings.Contains(what, "waiting for ConfigMap signet-system/issuer") {
		t.Errorf("said %q", what)
	}
	s.cut(false)
	if ref := await(t, "the issuer", got); ref != named {
		t.Errorf("asks %v, want %v: the issuer of the flags must not be asked meanwhile", ref, named)
	}
}

func TestFirstSyncIsNotWaitedForForEver(t *testing.T) {
	s := newAPIServer(t)
	s.forbid = "configmaps"
	source := start(t, s, func(o *Options) { o.SyncTimeout = 500 * time.Millisecond })
	_, err := source.IssuerRef(t.Context(), silent)
	if err == nil || !strings.Contains(err.Error(), "configmaps is forbidden") || !strings.Contains(err.Error(), "list and watch") {
		t.Errorf("%v, want the API server's words and what to do", err)
	}
	synctest.Test(t, func(t *testing.T) {
		source, err := New(Options{Client: s.client(t), ConfigMap: name})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if _, err := source.IssuerRef(t.Context(), silent); err == nil || time.Since(start) != DefaultSyncTimeout {
			t.Errorf("%v after %s, want an error after %s", err, time.Since(start), DefaultSyncTimeout)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		gone := errors.New("unpublished")
		cancel(gone)
		if _, err := source.IssuerRef(ctx, silent); !errors.Is(err, gone) {
			t.Errorf("%v, want the cause of ctx", err)
		}
	})
}

func TestFixed(t *testing.T) {
	source := Fixed(static)
	source.Run(t.Context()) // Returns.
	becomes(t, source, static)
}

func TestEventName(t *testing.T) {
	cm := func(name, version string) *corev1.ConfigMap {
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, UID: "u", ResourceVersion: version}}
	}
	long := strings.Repeat("a.", 126) + "b"
	if n := eventName(cm(long, "1")); len(n) > 253 || strings.Contains(n, "..") {
		t.Errorf("%q is no object name", n)
	}
	first, again := eventName(cm("a", "1")), eventName(cm("a", "1"))
	if first != again || first == eventName(cm("a", "2")) {
		t.Error("the name does not follow from the version")
	}
}
