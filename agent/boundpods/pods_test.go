// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package boundpods

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/signet-spiffe/signet/agent/issue"
)

var cart = issue.Pod{Namespace: "shop", Name: "cart-0", UID: "u-0", ServiceAccount: "cart"}

func id(n int64) *int64 { return &n }

// cartPod is the pod of cart with containers that run as the given users.
func cartPod(pod *int64, containers ...*int64) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: cart.Namespace, Name: cart.Name, UID: types.UID(cart.UID)}}
	if pod != nil {
		p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: pod}
	}
	for _, user := range containers {
		p.Spec.Containers = append(p.Spec.Containers, containerOf(user))
	}
	return p
}

func containerOf(user *int64) corev1.Container {
	if user == nil {
		return corev1.Container{Name: "c"}
	}
	return corev1.Container{Name: "c", SecurityContext: &corev1.SecurityContext{RunAsUser: user}}
}

func await(t *testing.T, what string, happens <-chan struct{}) {
	t.Helper()
	select {
	case <-happens:
	case <-time.After(20 * time.Second):
		t.Fatalf("waited in vain for: %s", what)
	}
}

// world is Pods at an API server, not running yet.
type world struct {
	*Pods
	server *apiServer
	t      *testing.T
}

func newWorld(t *testing.T) *world {
	t.Helper()
	s := newAPIServer(t)
	p, err := New(Options{Client: s.client(t), Node: "node-1", Registerer: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	return &world{Pods: p, server: s, t: t}
}

func (w *world) run() {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); w.Run(ctx) }()
	w.t.Cleanup(func() { cancel(); <-ended })
}

// knows waits until the watch has shown the pod, or its end.
func (w *world) knows(pod issue.Pod, want bool) {
	w.t.Helper()
	for {
		_, known, changed := w.look(pod)
		if known == want {
			return
		}
		await(w.t, "the pod to be known or forgotten", changed)
	}
}

func (w *world) want(user *int64, err error, want int64) {
	w.t.Helper()
	if err != nil || user == nil || *user != want {
		w.t.Errorf("user %v, %v, want %d", user, err, want)
	}
}

func (w *world) looked(result string) float64 {
	return testutil.ToFloat64(w.metrics.lookups.WithLabelValues(result))
}

func (w *world) gets() int {
	w.server.mu.Lock()
	defer w.server.mu.Unlock()
	n := 0
	for _, q := range w.server.queries {
		if strings.HasPrefix(q, "get ") {
			n++
		}
	}
	return n
}

func TestSharedUser(t *testing.T) {
	with := func(p *corev1.Pod, init ...*int64) *corev1.Pod {
		for _, user := range init {
			p.Spec.InitContainers = append(p.Spec.InitContainers, containerOf(user))
		}
		return p
	}
	debugged := cartPod(id(1000), nil)
	debugged.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{
		SecurityContext: &corev1.SecurityContext{RunAsUser: id(7)},
	}}}
	for name, c := range map[string]struct {
		pod  *corev1.Pod
		want *int64
	}{
		"nobody says":                        {cartPod(nil, nil), nil},
		"the pod says":                       {cartPod(id(1000), nil, nil), id(1000)},
		"the container says":                 {cartPod(nil, id(1000)), id(1000)},
		"the container goes before the pod":  {cartPod(id(1), id(1000)), id(1000)},
		"both containers say the same":       {cartPod(nil, id(1000), id(1000)), id(1000)},
		"one says what the pod says":         {cartPod(id(1000), id(1000), nil), id(1000)},
		"containers differ":                  {cartPod(nil, id(1000), id(1001)), nil},
		"one container differs from the pod": {cartPod(id(1000), nil, id(1001)), nil},
		"one container does not say":         {cartPod(nil, id(1000), nil), nil},
		"the first does not say":             {cartPod(nil, nil, id(1000)), nil},
		"an init container differs":          {with(cartPod(id(1000), nil), id(1)), nil},
		"an init container does not say":     {with(cartPod(nil, id(1000)), nil), nil},
		"an init container says the same":    {with(cartPod(nil, id(1000)), id(1000)), id(1000)},
		"an ephemeral container differs":     {debugged, id(1000)},
		"everybody is root":                  {cartPod(id(0), nil, nil), nil},
		"one is root":                        {cartPod(id(1000), nil, id(0)), nil},
		"the largest":                        {cartPod(id(1<<31-1), nil), id(1<<31 - 1)},
	} {
		for kind, pod := range map[string]*corev1.Pod{"whole": c.pod, "trimmed": trim(c.pod)} {
			got := sharedUser(pod)
			if (got == nil) != (c.want == nil) || got != nil && *got != *c.want {
				t.Errorf("%s, %s: %v, want %v", name, kind, got, c.want)
			}
		}
	}
}

// Nothing of a pod stays that nobody needs.
func TestTrim(t *testing.T) {
	p := cartPod(id(1000), id(1000))
	p.Annotations = map[string]string{"a": "zebra"}
	p.Labels = map[string]string{"l": "zebra"}
	p.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "zebra"}}
	p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "PASSWORD", Value: "zebra"}}
	p.Spec.Containers[0].Image = "zebra"
	p.Spec.InitContainers = []corev1.Container{{Name: "zebra", Args: []string{"zebra"}}}
	p.Spec.Volumes = []corev1.Volume{{Name: "zebra"}}
	p.Status.PodIP = "zebra"
	b, err := json.Marshal(trim(p))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(b), "zebra") || !strings.Contains(string(b), cart.UID) {
		t.Errorf("%s", b)
	}
}

// What the watch has shown is not asked for again; the watch is of this node.
func TestWatchedPodIsNotRead(t *testing.T) {
	w := newWorld(t)
	w.server.put(cartPod(id(1000), nil))
	w.run()
	w.knows(cart, true)
	later := cart
	later.Name, later.UID = "cart-1", "u-1"
	pod := cartPod(id(1001), nil)
	pod.Name, pod.UID = later.Name, types.UID(later.UID)
	w.server.put(pod)
	w.knows(later, true)
	user, err := w.SharedUser(t.Context(), cart)
	w.want(user, err, 1000)
	user, err = w.SharedUser(t.Context(), later)
	w.want(user, err, 1001)
	if n := w.gets(); n != 0 || w.looked(lookupWatched) != 2 {
		t.Errorf("%d reads, %v found in the cache", n, w.looked(lookupWatched))
	}
	w.server.mu.Lock()
	defer w.server.mu.Unlock()
	for _, q := range w.server.queries {
		if _, selector, _ := strings.Cut(q, " "); selector != "spec.nodeName=node-1" {
			t.Errorf("asked for more than this node's pods: %s", q)
		}
	}
}

func TestPodBeforeTheWatchIsReadOnce(t *testing.T) {
	w := newWorld(t)
	w.server.put(cartPod(nil, id(1000)))
	user, err := w.SharedUser(t.Context(), cart)
	w.want(user, err, 1000)
	if n := w.gets(); n != 1 || w.looked(lookupRead) != 1 {
		t.Errorf("%d reads, %v counted, want 1", n, w.looked(lookupRead))
	}
}

// What says for certain that there is nothing to learn is not waited for.
func TestCertainRefusals(t *testing.T) {
	other := cartPod(id(1000), nil)
	other.UID = "u-9"
	for name, c := range map[string]struct {
		prepare func(s *apiServer)
		says    string
	}{
		"another pod of that name": {func(s *apiServer) { s.put(other) }, "u-9"},
		"no pod":                   {func(*apiServer) {}, "no such pod"},
		"no right":                 {func(s *apiServer) { s.set(func() { s.forbid = "get" }) }, "deploy/watch-pods"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			c.prepare(w.server)
			user, err := w.SharedUser(t.Context(), cart)
			if user != nil || !errors.Is(err, issue.ErrUnavailable) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "shop/cart-0") {
				t.Errorf("user %v, %v, want unavailable with %q", user, err, c.says)
			}
			if w.looked(lookupFailed) != 1 {
				t.Error("the failure was not counted")
			}
		})
	}
}

// A read that fails is not the last word: the watch brings the pod when the API
// server is back.
func TestWatchBringsWhatCouldNotBeRead(t *testing.T) {
	w := newWorld(t)
	w.server.put(cartPod(id(1000), nil))
	w.server.cut(true)
	type answer struct {
		user *int64
		err  error
	}
	answers := make(chan answer, 1)
	go func() {
		user, err := w.SharedUser(t.Context(), cart)
		answers <- answer{user, err}
	}()
	w.server.asked(t, "get shop/cart-0")
	w.server.cut(false)
	w.run()
	a := <-answers
	w.want(a.user, a.err, 1000)
}

// The end of the caller's time is an outage, not a request that goes on.
func TestTimeRunsOut(t *testing.T) {
	w := newWorld(t)
	w.server.set(func() { w.server.hang = true })
	ctx, cancel := context.WithCancelCause(t.Context())
	errs := make(chan error, 1)
	go func() { _, err := w.SharedUser(ctx, cart); errs <- err }()
	w.server.asked(t, "get shop/cart-0")
	pending := errors.New("pending")
	cancel(pending)
	if err := <-errs; !errors.Is(err, issue.ErrUnavailable) || errors.Is(err, pending) {
		t.Errorf("%v, want unavailable", err)
	}
}

// Deleted pods are forgotten, those that went while the watch was down included.
func TestDeletedPodsAreForgotten(t *testing.T) {
	w := newWorld(t)
	first, second := cartPod(id(1000), nil), cartPod(id(1000), nil)
	second.Name, second.UID = "cart-1", "u-1"
	secondPod := cart
	secondPod.Name, secondPod.UID = "cart-1", "u-1"
	w.server.put(first)
	w.server.put(second)
	w.run()
	w.knows(cart, true)
	w.knows(secondPod, true)
	w.server.delete(first)
	w.knows(cart, false)

	w.server.cut(true)
	w.server.delete(second)
	w.server.set(func() { w.server.oldest = w.server.version + 1 })
	w.server.cut(false)
	w.knows(secondPod, false)
	if len(w.users) != 0 {
		t.Errorf("%d pods are still known", len(w.users))
	}
}

// Readiness hears why pods are not seen, and that they are.
func TestWatching(t *testing.T) {
	w := newWorld(t)
	if err := w.Watching(); err == nil || !strings.Contains(err.Error(), "not listed") {
		t.Errorf("before the first list: %v", err)
	}
	w.server.set(func() { w.server.forbid = "list" })
	w.run()
	w.server.asked(t, "list spec.nodeName=node-1")
	for { // The answer comes a moment after the question.
		if err := w.Watching(); err != nil && strings.Contains(err.Error(), "no RBAC") {
			break
		}
		w.mu.Lock()
		changed := w.changed
		w.mu.Unlock()
		await(t, "the refusal to be known", changed)
	}
	w.server.put(cartPod(id(1000), nil))
	w.server.set(func() { w.server.forbid = "" })
	w.knows(cart, true)
	if err := w.Watching(); err != nil {
		t.Errorf("with a list: %v", err)
	}
}

func TestNewNeedsClientAndNode(t *testing.T) {
	for _, o := range []Options{{}, {Node: "n"}, {Client: newAPIServer(t).client(t)}} {
		if _, err := New(o); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
}
