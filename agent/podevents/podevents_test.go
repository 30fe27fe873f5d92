// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package podevents

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/rest"

	"github.com/signet-spiffe/signet/agent/issue"
	"github.com/signet-spiffe/signet/agent/workload"
)

var (
	cartID  = spiffeid.RequireFromString("spiffe://example.org/ns/shop/sa/cart")
	cartPod = issue.Pod{Namespace: "shop", Name: "cart-0", UID: "u-0", ServiceAccount: "cart"}
	noon    = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)
)

// memory is a Sink that remembers, and blocks or fails if told to.
type memory struct {
	mu    sync.Mutex
	sent  []corev1.Event
	times []time.Time
	err   error
	hang  bool
}

func (m *memory) Send(ctx context.Context, event *corev1.Event) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.hang {
		<-ctx.Done()
		return ctx.Err()
	}
	if m.err != nil {
		return m.err
	}
	m.sent = append(m.sent, *event)
	m.times = append(m.times, time.Now())
	return nil
}

func (m *memory) take() []corev1.Event {
	m.mu.Lock()
	defer m.mu.Unlock()
	sent := m.sent
	m.sent, m.times = nil, nil
	return sent
}

// run plays test in a bubble of fake time with a Recorder that runs.
func run(t *testing.T, test func(t *testing.T, r *Recorder, m *memory)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m := &memory{}
		r, err := New(Options{Sink: m, Node: "node-1", Log: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry()})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); r.Run(ctx) }()
		test(t, r, m)
		cancel()
		<-ended
	})
}

func failure(volume string, err error) workload.Notification {
	return workload.Notification{Notice: workload.NoticeFailed, Volume: volume, Pod: cartPod, ID: cartID, Err: err}
}

func (r *Recorder) count(reason, result string) float64 {
	return testutil.ToFloat64(r.total.WithLabelValues(reason, result))
}

func TestWords(t *testing.T) {
	denial := fmt.Errorf("CertificateRequest shop/cart-0-1: %w by the approver: Denied: duration is 1h0m0s, want 30m0s", issue.ErrDenied)
	until := noon.Add(10 * time.Second)
	for _, tt := range []struct {
		n    workload.Notification
		want words
	}{
		{workload.Notification{Notice: workload.NoticeIssued, NotAfter: until},
			words{"Normal", "SVIDIssued", "spiffe://example.org/ns/shop/sa/cart, valid until 2030-01-01T12:00:10Z"}},
		{workload.Notification{Notice: workload.NoticeFailed, Err: denial},
			words{"Warning", "SVIDDenied", "no SVID spiffe://example.org/ns/shop/sa/cart for this pod: CertificateRequest shop/cart-0-1: request denied by the approver: Denied: duration is 1h0m0s, want 30m0s"}},
		{workload.Notification{Notice: workload.NoticeFailed, Err: denial, NotAfter: until},
			words{"Warning", "SVIDDenied", "spiffe://example.org/ns/shop/sa/cart, valid until 2030-01-01T12:00:10Z, could not be renewed: CertificateRequest shop/cart-0-1: request denied by the approver: Denied: duration is 1h0m0s, want 30m0s"}},
		{workload.Notification{Notice: workload.NoticeFailed, Err: denial, NotAfter: noon},
			words{"Warning", "SVIDDenied", "spiffe://example.org/ns/shop/sa/cart, expired at 2030-01-01T12:00:00Z, could not be renewed: CertificateRequest shop/cart-0-1: request denied by the approver: Denied: duration is 1h0m0s, want 30m0s"}},
		{workload.Notification{Notice: workload.NoticeExpired, NotAfter: until},
			words{"Warning", "SVIDExpired", "spiffe://example.org/ns/shop/sa/cart expired at 2030-01-01T12:00:10Z and is not renewed yet"}},
		{workload.Notification{Notice: workload.NoticeFailed, Err: fmt.Errorf("%w: CA is asleep", issue.ErrFailed)},
			words{"Warning", "SVIDIssuanceFailed", "no SVID spiffe://example.org/ns/shop/sa/cart for this pod: request failed: CA is asleep"}},
		{workload.Notification{Notice: workload.NoticeOverdue, NotAfter: until, Status: "waiting for approval"},
			words{"Warning", "SVIDRenewalOverdue", "spiffe://example.org/ns/shop/sa/cart expires at 2030-01-01T12:00:10Z (in 10s) and is not renewed yet: waiting for approval"}},
		{workload.Notification{Notice: workload.NoticeExpired, NotAfter: until, Status: "waiting for approval"},
			words{"Warning", "SVIDExpired", "spiffe://example.org/ns/shop/sa/cart expired at 2030-01-01T12:00:10Z and is not renewed yet: waiting for approval"}},
		{workload.Notification{Notice: 99}, words{}},
	} {
		tt.n.ID = cartID
		if diff := cmp.Diff(tt.want, describe(tt.n, noon), cmp.AllowUnexported(words{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.n.Notice, diff)
		}
	}
}

const (
	keyPEM = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIIrYSSNQFaA2Hwf1duRSxKtLYX5CB04fSeQ6tF1aY/PuoAoGCCqGSM49\n-----END EC PRIVATE KEY-----"
	token  = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJzeXN0ZW0ifQ.c2lnbmF0dXJl"
)

func FuzzWords(f *testing.F) {
	for _, s := range []string{"", "plain", keyPEM, token, "Bearer " + token + " refused", strings.Repeat("ä", 3000), "a\n\x1b[31mb\xff"} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, path, foreign string) {
		id, err := spiffeid.FromPath(spiffeid.RequireTrustDomainFromString("example.org"), path)
		if err != nil {
			id = cartID
		}
		for _, n := range []workload.Notification{
			{Notice: workload.NoticeFailed, Err: fmt.Errorf("%w: %s", issue.ErrDenied, foreign)},
			{Notice: workload.NoticeFailed, Err: fmt.Errorf("%w: %s", issue.ErrFailed, foreign), NotAfter: noon},
			{Notice: workload.NoticeOverdue, Status: foreign, NotAfter: noon},
			{Notice: workload.NoticeExpired, Status: foreign, NotAfter: noon},
			{Notice: workload.NoticeIssued, NotAfter: noon},
		} {
			n.ID = id
			m := describe(n, noon).message
			if len(m) > 1024 || !utf8.ValidString(m) || strings.ContainsFunc(m, func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Errorf("message of %d bytes: %q", len(m), m)
			}
		}
	})
}

// What looks like a key or a token does not get into an Event, wherever the
// issuer or the API server got it from.
func TestSecretsAreRemoved(t *testing.T) {
	for _, s := range []string{keyPEM, strings.ReplaceAll(keyPEM, "\n", " "), "got -----BEGIN PRIVATE KEY-----\nMIIabc", "Authorization: Bearer " + token} {
		for _, n := range []workload.Notification{failure("v", errors.New("no: "+s)), {Notice: workload.NoticeExpired, Status: s}} {
			m := describe(n, noon).message
			for _, part := range []string{"MHcCAQ", "MIIabc", "eyJ", "c2lnbmF0dXJl"} {
				if strings.Contains(m, part) {
					t.Errorf("%q is in %q", part, m)
				}
			}
			if !strings.Contains(m, "[removed]") {
				t.Errorf("%q does not say that something was removed", m)
			}
		}
	}
}

// An Event is about the pod, in its namespace, from this node's agent, and its
// name is one that the API server takes.
func TestEventIsOnThePod(t *testing.T) {
	run(t, func(t *testing.T, r *Recorder, m *memory) {
		r.Notify(workload.Notification{Notice: workload.NoticeIssued, Volume: "v", Pod: cartPod, ID: cartID, NotAfter: noon})
		synctest.Wait() // Good news and bad take different ways.
		long := failure("v", errors.New("x"))
		long.Pod.Name = strings.Repeat("a", 199) + "-." + strings.Repeat("b", 52)
		r.Notify(long)
		synctest.Wait()
		sent := m.take()
		if len(sent) != 2 {
			t.Fatalf("%d events, want 2", len(sent))
		}
		e := sent[0]
		want := corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: "shop", Name: "cart-0", UID: "u-0"}
		if e.InvolvedObject != want || e.Namespace != "shop" || e.Source.Host != "node-1" || e.Source.Component != "signet-agent" || e.Count != 1 ||
			!e.FirstTimestamp.Time.Equal(time.Now().Truncate(time.Second)) {
			t.Errorf("event %+v", e)
		}
		for _, e := range sent {
			if errs := validation.IsDNS1123Subdomain(e.Name); len(errs) != 0 {
				t.Errorf("name %q: %v", e.Name, errs)
			}
		}
	})
}

// A volume that fails every five seconds for a day has one Event, patched ever
// more rarely, whose count is right; its other reasons and other volumes are not
// held up by it.
func TestOneVolumeIsRateLimited(t *testing.T) {
	run(t, func(t *testing.T, r *Recorder, m *memory) {
		const tries = 24 * 3600 / 5
		for i := range tries {
			r.Notify(failure("v", fmt.Errorf("%w: try %d", issue.ErrFailed, i)))
			time.Sleep(5 * time.Second)
		}
		synctest.Wait()
		sent := m.take()
		// 10 s doubling to 10 min: 6 in the first ten minutes, then 6 an hour.
		if len(sent) > 24*6+8 || len(sent) < 24*6-8 {
			t.Errorf("%d sent in a day", len(sent))
		}
		last := sent[len(sent)-1]
		for _, e := range sent {
			if e.Name != sent[0].Name || e.FirstTimestamp != sent[0].FirstTimestamp {
				t.Fatalf("another event, %s", e.Name)
			}
		}
		if int(last.Count) < tries-120 || !strings.Contains(last.Message, fmt.Sprintf("try %d", last.Count-1)) {
			t.Errorf("last event has count %d and says %q", last.Count, last.Message)
		}
		if held := r.count(ReasonIssuanceFailed, "held"); int(held) != tries-len(sent) {
			t.Errorf("%v held and %d sent of %d", held, len(sent), tries)
		}
		r.Notify(workload.Notification{Notice: workload.NoticeExpired, Volume: "v", Pod: cartPod, ID: cartID})
		r.Notify(failure("w", issue.ErrFailed))
		time.Sleep(time.Second)
		synctest.Wait()
		if got := m.take(); len(got) != 2 || got[0].Reason != ReasonExpired || got[1].Name == last.Name {
			t.Errorf("sent %v, want the expiry and the other volume's failure", got)
		}
	})
}

// What is told once is the same Event for the next life of the agent; a failure,
// or the next SVID's expiry, is not.
func TestNamesOutliveTheAgent(t *testing.T) {
	for _, tt := range []struct {
		notice      workload.Notice
		later, same bool
	}{
		{workload.NoticeIssued, false, true},
		{workload.NoticeExpired, false, true},
		{workload.NoticeExpired, true, false},
		{workload.NoticeOverdue, false, true},
		{workload.NoticeOverdue, true, false},
		{workload.NoticeFailed, false, false},
	} {
		n := workload.Notification{Notice: tt.notice, Volume: "v", Pod: cartPod, ID: cartID, NotAfter: noon}
		k := key{"v", describe(n, noon).reason}
		first := name(n, k, noon)
		if tt.later {
			n.NotAfter = noon.Add(time.Minute)
		}
		if again := name(n, k, noon.Add(time.Minute)); (again == first) != tt.same {
			t.Errorf("%s, next SVID %t: %q, then %q", tt.notice, tt.later, first, again)
		}
		n.Pod.UID = "another pod of that name"
		if name(n, k, noon) == first {
			t.Errorf("%s: pods share %q", tt.notice, first)
		}
	}
}

// After an hour of silence the API server has forgotten the Event, and so has
// the ledger.
func TestSeriesEnds(t *testing.T) {
	l := newLedger()
	names := 0
	name := func() string { names++; return fmt.Sprint("e", names) }
	k := key{"v", ReasonExpired}
	first, _ := l.enter(k, noon, name)
	again, send := l.enter(k, noon.Add(time.Hour), name)
	if first.name != "e1" || again.name != "e2" || again.count != 1 || !send {
		t.Errorf("after an hour: %+v, %t", again, send)
	}
	for i := range 3 * maxSeries {
		l.enter(key{fmt.Sprint(i), ReasonIssued}, noon.Add(2*time.Hour), name)
	}
	if len(l.series) > maxSeries {
		t.Errorf("%d series are remembered, want at most %d", len(l.series), maxSeries)
	}
	if _, ok := l.series[k]; ok {
		t.Error("an ended series is remembered while room is needed")
	}
}

// What goes wrong for a node's pods at once is told at once; beyond that the budget
// spreads it.
func TestAllVolumesShareABudget(t *testing.T) {
	run(t, func(t *testing.T, r *Recorder, m *memory) {
		start := time.Now()
		for i := range burst + 50 {
			r.Notify(failure(fmt.Sprint(i), issue.ErrDenied))
		}
		synctest.Wait()
		if got := len(m.take()); got != burst {
			t.Errorf("%d at once, want %d", got, burst)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		m.mu.Lock()
		defer m.mu.Unlock()
		if len(m.sent) != 50 || m.times[49].Sub(start) < 4900*time.Millisecond {
			t.Errorf("%d later, the last after %s; want 50 in 5s", len(m.sent), m.times[len(m.times)-1].Sub(start))
		}
	})
}

// Good news takes its time, and what goes wrong does not wait for it.
func TestGoodNewsWaits(t *testing.T) {
	run(t, func(t *testing.T, r *Recorder, m *memory) {
		const volumes = newsBurst + 20
		for i := range volumes {
			r.Notify(workload.Notification{Notice: workload.NoticeIssued, Volume: fmt.Sprint(i), Pod: cartPod, ID: cartID})
		}
		synctest.Wait()
		if got := len(m.take()); got != newsBurst {
			t.Errorf("%d at once, want %d", got, newsBurst)
		}
		r.Notify(failure("v", issue.ErrDenied))
		synctest.Wait()
		if got := m.take(); len(got) != 1 || got[0].Reason != ReasonDenied {
			t.Errorf("a denial waits behind good news: %v", got)
		}
		time.Sleep(20 / newsPerSecond * time.Second)
		synctest.Wait()
		if got := len(m.take()); got != 20 || r.count(ReasonIssued, "sent") != volumes {
			t.Errorf("%d later, want 20", got)
		}
	})
}

// An API server that hangs holds nobody up: Notify returns, what does not fit is
// counted, and Events flow again afterwards.
func TestHangingAPIServerBlocksNobody(t *testing.T) {
	run(t, func(t *testing.T, r *Recorder, m *memory) {
		m.hang = true
		before := time.Now()
		const n = maxQueued + 100
		for i := range n {
			r.Notify(failure(fmt.Sprint(i), issue.ErrDenied))
		}
		if took := time.Since(before); took != 0 {
			t.Errorf("Notify took %s", took)
		}
		synctest.Wait()
		if dropped := r.count(ReasonDenied, "dropped"); dropped < 99 || dropped > 100 {
			t.Errorf("%v dropped, want 99 or 100", dropped)
		}
		time.Sleep(sendTimeout * n)
		synctest.Wait()
		if failed := r.count(ReasonDenied, "failed"); failed+r.count(ReasonDenied, "dropped") != n {
			t.Errorf("%v failed, %v dropped of %d", failed, r.count(ReasonDenied, "dropped"), n)
		}
		m.hang = false
		r.Notify(failure("v", issue.ErrDenied))
		synctest.Wait()
		if len(m.take()) != 1 || r.count(ReasonDenied, "sent") != 1 {
			t.Error("nothing was sent after the API server was back")
		}
	})
}

// kubernetes plays the API server's part.
type kubernetes struct {
	mu     sync.Mutex
	events map[string]map[string]any
	calls  []string
	refuse int // If not 0, the answer to all.
}

func (k *kubernetes) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls = append(k.calls, req.Method+" "+req.URL.Path)
	var body map[string]any
	b, _ := io.ReadAll(req.Body)
	if k.refuse != 0 || json.Unmarshal(b, &body) != nil {
		k.answer(w, k.refuse, map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden", "code": k.refuse})
		return
	}
	name := req.URL.Path[strings.LastIndex(req.URL.Path, "/")+1:]
	switch {
	case req.Method == http.MethodPost && k.events[body["metadata"].(map[string]any)["name"].(string)] != nil:
		k.answer(w, http.StatusConflict, map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "AlreadyExists", "code": 409})
		return
	case req.Method == http.MethodPost:
		name = body["metadata"].(map[string]any)["name"].(string)
		k.events[name] = body
	case req.Method == http.MethodPatch && req.Header.Get("Content-Type") == "application/merge-patch+json" && k.events[name] != nil:
		for field, value := range body {
			k.events[name][field] = value
		}
	default:
		k.answer(w, http.StatusNotFound, map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404})
		return
	}
	k.answer(w, http.StatusOK, k.events[name])
}

func (k *kubernetes) answer(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body)
}

func TestSink(t *testing.T) {
	k := &kubernetes{events: map[string]map[string]any{}}
	server := httptest.NewServer(k)
	defer server.Close()
	sink, err := NewSink(&rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	r := &Recorder{node: "node-1"}
	event := func(count int32, message string) *corev1.Event {
		return r.event(failure("v", nil), words{"Warning", ReasonDenied, message}, series{name: "e", first: noon, last: noon.Add(time.Duration(count) * time.Minute), count: count})
	}
	for _, e := range []*corev1.Event{event(1, "first"), event(5, "fifth")} {
		if err := sink.Send(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	got := k.events["e"]
	if got["count"] != float64(5) || got["message"] != "fifth" || got["lastTimestamp"] != "2030-01-01T12:05:00Z" || got["firstTimestamp"] != "2030-01-01T12:00:00Z" || got["reason"] != "SVIDDenied" {
		t.Errorf("event is %v", got)
	}
	delete(k.events, "e") // Its time to live is over.
	if err := sink.Send(t.Context(), event(6, "sixth")); err != nil || k.events["e"]["message"] != "sixth" {
		t.Errorf("repetition of a forgotten event: %v, %v", err, k.events["e"])
	}
	want := []string{"POST /api/v1/namespaces/shop/events", "PATCH /api/v1/namespaces/shop/events/e", "PATCH /api/v1/namespaces/shop/events/e", "POST /api/v1/namespaces/shop/events"}
	if diff := cmp.Diff(want, k.calls); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	if err := sink.Send(t.Context(), event(1, "another life of the agent")); err != nil || k.events["e"]["message"] != "sixth" {
		t.Errorf("an event that was told before: %v, %v", err, k.events["e"])
	}
	k.refuse = http.StatusForbidden
	for _, e := range []*corev1.Event{event(1, "x"), event(2, "x")} {
		if err := sink.Send(t.Context(), e); err == nil || !strings.Contains(err.Error(), "Event shop/e") {
			t.Errorf("refused: %v, want an error that names the event", err)
		}
	}
	server.Close()
	if err := sink.Send(t.Context(), event(1, "x")); err == nil {
		t.Error("no API server: want an error")
	}
}
