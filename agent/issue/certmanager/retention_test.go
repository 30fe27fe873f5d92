// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package certmanager

import (
	"errors"
	"maps"
	"net/http"
	"slices"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/signet-spiffe/signet/agent/issue"
	"github.com/signet-spiffe/signet/internal/request"
)

func retaining(n int) func(*Options) { return func(o *Options) { o.Retention = n } }

// obtain issues for a volume to the end and returns the request's name.
func (f *fixture) obtain(t *testing.T, volume string, end func(*cmapi.CertificateRequest)) types.NamespacedName {
	t.Helper()
	before := f.server.names()
	got := f.ask(t.Context(), wish(volume))
	var name types.NamespacedName
	f.server.await(t, "the request", func() bool {
		for n := range f.server.objects {
			if !slices.Contains(before, n) {
				name = n
				return true
			}
		}
		return false
	})
	f.server.update(name, end)
	if res := await(t, "the result", got); res.err == nil {
		res.Done(t.Context())
	} else if !errors.Is(res.err, issue.ErrDenied) {
		t.Fatal(res.err)
	}
	return name
}

func (s *apiServer) names() []types.NamespacedName {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.objects))
}

// awaitOnly waits until the server has these requests and no others.
func (s *apiServer) awaitOnly(t *testing.T, want ...types.NamespacedName) {
	t.Helper()
	s.await(t, "the requests that are retained", func() bool {
		for _, name := range want {
			if s.objects[name] == nil {
				return false
			}
		}
		return len(s.objects) == len(want)
	})
}

// The newest N of each volume stay, refused ones among them, whatever becomes of
// other volumes; the agent that comes after keeps to it.
func TestRetention(t *testing.T) {
	s := newAPIServer(t)
	f := start(t, s, retaining(2))
	other := f.obtain(t, "v2", sign)
	f.obtain(t, "v1", sign)
	second := f.obtain(t, "v1", sign)
	s.awaitOnly(t, other, second, s.oldestOf(t, "v1"))
	refused := f.obtain(t, "v1", deny)
	third := f.obtain(t, "v1", sign)
	s.awaitOnly(t, other, refused, third)
	f.Forget("v1")
	f.stop()
	s.awaitOnly(t, other, refused, third)

	// Another agent starts, finds them, and goes on counting.
	f = start(t, s, retaining(2))
	fourth := f.obtain(t, "v1", sign)
	s.awaitOnly(t, other, third, fourth)

	// The pod goes, and with it its requests: nothing is remembered of them.
	s.remove(third)
	s.remove(fourth)
	last := f.obtain(t, "v2", sign)
	s.awaitOnly(t, other, last)
	f.board.mu.Lock()
	if n := len(f.board.retained); n != 1 {
		t.Errorf("%d volumes are remembered, want 1", n)
	}
	f.board.mu.Unlock()
	f.stop()

	// One that retains nothing cleans up.
	start(t, s, retaining(0))
	s.awaitEmpty(t)
}

// oldestOf is the first request of a volume.
func (s *apiServer) oldestOf(t *testing.T, volume string) types.NamespacedName {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*cmapi.CertificateRequest
	for _, cr := range s.objects {
		if cr.Labels[request.LabelVolume] == request.Hash(volume) {
			all = append(all, cr)
		}
	}
	if len(all) == 0 {
		t.Fatalf("no request of volume %s", volume)
	}
	return nameOf(slices.MinFunc(all, byAge))
}

// Pending requests of the agent before are never retained: their keys are gone.
func TestPendingLeftoversAreNotRetained(t *testing.T) {
	s := newAPIServer(t)
	f := start(t, s, retaining(5))
	finished := f.obtain(t, "v1", sign)
	f.stop()
	cr := object("left", "")
	cr.Labels = map[string]string{request.LabelAgent: request.Hash(driver, node), request.LabelVolume: request.Hash("v1")}
	s.put(cr)
	start(t, s, retaining(5))
	s.awaitOnly(t, finished)
}

// Refusals without end, by a pod that kubelet tries again and again, do not pile
// up either.
func TestRetentionOfRefusals(t *testing.T) {
	s := newAPIServer(t)
	f := start(t, s, retaining(1))
	var last types.NamespacedName
	for range 5 {
		last = f.obtain(t, "v1", deny)
		f.Forget("v1") // As after each mount that failed.
	}
	s.awaitOnly(t, last)
	if n := s.count(http.MethodDelete); n != 4 {
		t.Errorf("%d deletes, want 4", n)
	}
}

func TestByAge(t *testing.T) {
	at := func(second int, version, name string) *cmapi.CertificateRequest {
		return &cmapi.CertificateRequest{ObjectMeta: metav1.ObjectMeta{
			Name: name, ResourceVersion: version, CreationTimestamp: metav1.NewTime(time.Unix(int64(second), 0)),
		}}
	}
	for _, pair := range [][2]*cmapi.CertificateRequest{
		{at(1, "100", "b"), at(2, "9", "a")},
		{at(1, "9", "b"), at(1, "100", "a")},
		{at(1, "", "a"), at(1, "", "b")},
	} {
		if byAge(pair[0], pair[1]) >= 0 || byAge(pair[1], pair[0]) <= 0 {
			t.Errorf("%s/%s is not older than %s/%s", pair[0].ResourceVersion, pair[0].Name, pair[1].ResourceVersion, pair[1].Name)
		}
	}
}
