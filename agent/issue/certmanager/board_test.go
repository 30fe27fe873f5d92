// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package certmanager

import (
	"testing"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func object(name, uid string, edits ...func(*cmapi.CertificateRequest)) *cmapi.CertificateRequest {
	cr := &cmapi.CertificateRequest{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID(uid)}}
	for _, edit := range edits {
		edit(cr)
	}
	return cr
}

func TestJudge(t *testing.T) {
	readyWithout := setCondition(cmapi.CertificateRequestConditionReady, cmmeta.ConditionTrue, "Issued", "")
	deniedFalse := setCondition(cmapi.CertificateRequestConditionDenied, cmmeta.ConditionFalse, "", "")
	readyDenied := setCondition(cmapi.CertificateRequestConditionReady, cmmeta.ConditionFalse, cmapi.CertificateRequestReasonDenied, "")
	onlyBytes := func(cr *cmapi.CertificateRequest) { cr.Status.Certificate = []byte("x") }
	for name, tc := range map[string]struct {
		edits []func(*cmapi.CertificateRequest)
		want  phase
	}{
		"new":                             {nil, undecided},
		"approved":                        {[]func(*cmapi.CertificateRequest){approve}, approved},
		"approved and pending":            {[]func(*cmapi.CertificateRequest){approve, pending}, approved},
		"pending, not approved":           {[]func(*cmapi.CertificateRequest){pending}, undecided},
		"issued":                          {[]func(*cmapi.CertificateRequest){approve, sign}, issued},
		"issued by who needs no leave":    {[]func(*cmapi.CertificateRequest){sign}, issued},
		"ready without a certificate":     {[]func(*cmapi.CertificateRequest){approve, readyWithout}, approved},
		"a certificate but not ready":     {[]func(*cmapi.CertificateRequest){approve, onlyBytes}, approved},
		"denied":                          {[]func(*cmapi.CertificateRequest){deny}, denied},
		"denied=False":                    {[]func(*cmapi.CertificateRequest){deniedFalse}, undecided},
		"denied by the Ready condition":   {[]func(*cmapi.CertificateRequest){readyDenied}, denied},
		"denied, and signed all the same": {[]func(*cmapi.CertificateRequest){sign, deny}, denied},
		"failed":                          {[]func(*cmapi.CertificateRequest){approve, breakIt}, failed},
		"invalid":                         {[]func(*cmapi.CertificateRequest){approve, invalid}, failed},
	} {
		t.Run(name, func(t *testing.T) {
			if got := judge(object("a", "1", tc.edits...)); got.phase != tc.want {
				t.Errorf("phase %d, want %d", got.phase, tc.want)
			}
		})
	}
}

func look(t *testing.T, b *board, w *waiter, want phase) {
	t.Helper()
	if got := b.look(w); got.phase != want {
		t.Errorf("phase %d, want %d", got.phase, want)
	}
}

// Whatever the order of create, events and lists, the attempt learns the end.
func TestBoardOrders(t *testing.T) {
	name := types.NamespacedName{Namespace: "shop", Name: "a"}
	for title, tc := range map[string]struct {
		play func(*board, *waiter)
		want phase
	}{
		"event after create": {func(b *board, w *waiter) {
			b.created(w, "1", "10")
			b.observe(object("a", "1", sign))
		}, issued},
		"event before create": {func(b *board, w *waiter) {
			b.observe(object("a", "1", sign))
			b.created(w, "1", "10")
		}, issued},
		"list before create": {func(b *board, w *waiter) {
			b.replace([]*cmapi.CertificateRequest{object("a", "1", sign)}, "12")
			b.created(w, "1", "10")
		}, issued},
		"older list without it": {func(b *board, w *waiter) {
			b.created(w, "1", "10")
			b.replace(nil, "9")
		}, undecided},
		"older list of fewer digits": {func(b *board, w *waiter) {
			b.created(w, "1", "10")
			b.replace(nil, "9")
			b.observe(object("a", "1", approve))
		}, approved},
		"newer list without it": {func(b *board, w *waiter) {
			b.created(w, "1", "10")
			b.replace(nil, "11")
		}, gone},
		"newer list without it before the create returns": {func(b *board, w *waiter) {
			b.replace(nil, "11")
			b.created(w, "1", "10")
		}, gone},
		"list that cannot be compared": {func(b *board, w *waiter) {
			b.created(w, "1", "10")
			b.replace(nil, "")
		}, undecided},
		"seen, then missing": {func(b *board, w *waiter) {
			b.created(w, "1", "10")
			b.observe(object("a", "1", approve))
			b.replace(nil, "")
		}, gone},
		"deleted": {func(b *board, w *waiter) {
			b.created(w, "1", "10")
			b.removed(object("a", "1", approve))
		}, gone},
		"deleted before the create returns": {func(b *board, w *waiter) {
			b.removed(object("a", "1"))
			b.created(w, "1", "10")
		}, gone},
		"issued, then deleted": {func(b *board, w *waiter) {
			b.created(w, "1", "10")
			b.observe(object("a", "1", sign))
			b.removed(object("a", "1", sign))
		}, issued},
		"issued and deleted in one": {func(b *board, w *waiter) {
			b.created(w, "1", "10")
			b.removed(object("a", "1", sign))
		}, issued},
		"another object of that name": {func(b *board, w *waiter) {
			b.created(w, "1", "10")
			b.observe(object("a", "2", sign))
		}, gone},
		"another request": {func(b *board, w *waiter) {
			b.created(w, "1", "10")
			b.observe(object("b", "2", sign))
			b.removed(object("b", "2", sign))
		}, undecided},
	} {
		t.Run(title, func(t *testing.T) {
			b := newBoard(0)
			w, _ := b.expect(name, "v")
			tc.play(b, w)
			look(t, b, w, tc.want)
		})
	}
}

func TestBoardKeepsOnePerVolume(t *testing.T) {
	b := newBoard(0)
	at := func(name string) *waiter {
		w, left := b.expect(types.NamespacedName{Namespace: "shop", Name: name}, "v")
		if len(left) != 0 {
			t.Errorf("%s finds %v left", name, left)
		}
		b.created(w, types.UID("uid-"+name), "10")
		return w
	}
	one, two := at("one"), at("two")
	if displaced := b.keep(one); len(displaced) != 0 {
		t.Errorf("the first displaces %v", displaced)
	}
	if displaced := b.keep(two); len(displaced) != 1 || displaced[0].Name != "one" {
		t.Errorf("the second displaces %v, want the first", displaced)
	}
	// What is kept is not stale, what is no longer kept is.
	stale := b.replace([]*cmapi.CertificateRequest{object("one", "uid-one"), object("two", "uid-two")}, "20")
	if len(stale) != 1 || stale[0].Name != "one" {
		t.Errorf("stale: %v, want the first", stale)
	}
	_, left := b.expect(types.NamespacedName{Namespace: "shop", Name: "three"}, "v")
	if len(left) != 1 || left[0].Name != "two" {
		t.Errorf("the next attempt finds %v, want the second", left)
	}
	if left := b.forget("v"); len(left) != 0 {
		t.Errorf("forget finds %v", left)
	}
}
