// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/signet-spiffe/signet/agent/issue"
	"github.com/signet-spiffe/signet/agent/workload"
	"github.com/signet-spiffe/signet/internal/pki"
)

func encodedAttempt(t testing.TB, volume workload.Volume) []byte {
	t.Helper()
	key, err := pki.GenerateKey(pki.P256)
	if err != nil {
		t.Fatal(err)
	}
	b, err := marshalAttempt(volume, workload.Attempt{
		Request: "shop/cart-0-1", ID: cartID, Key: key,
		Basis: workload.Basis{Issuer: "ClusterIssuer.cert-manager.io/spiffe-ca", KeyType: pki.P256, Duration: time.Hour},
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAttemptSurvives(t *testing.T) {
	gid := int64(1234)
	volume := workload.Volume{ID: "v", Pod: pod, GID: &gid, Token: issue.NewToken("s3cret"), Attributes: workload.Attributes{Duration: time.Hour}}
	b := encodedAttempt(t, volume)
	if strings.Contains(string(b), "s3cret") {
		t.Fatal("the token was stored")
	}
	got, a, err := unmarshalAttempt(b)
	if err != nil {
		t.Fatal(err)
	}
	if got.ID != "v" || got.Pod != pod || *got.GID != 1234 || got.Attributes != volume.Attributes || !got.Token.IsZero() {
		t.Errorf("volume %+v", got)
	}
	want := workload.Basis{Issuer: "ClusterIssuer.cert-manager.io/spiffe-ca", KeyType: pki.P256, Duration: time.Hour}
	if a.Request != "shop/cart-0-1" || a.ID != cartID || a.Basis != want || a.Key.IsZero() {
		t.Errorf("attempt %+v", a)
	}
}

func TestAttemptIsNotBelieved(t *testing.T) {
	good := encodedAttempt(t, workload.Volume{ID: "v", Pod: pod})
	type alias attempt
	edit := func(change func(*attempt)) []byte {
		var a attempt
		if err := json.Unmarshal(good, &a); err != nil {
			t.Fatal(err)
		}
		change(&a)
		b, err := json.Marshal((*alias)(&a))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for name, in := range map[string][]byte{
		"empty":         nil,
		"half":          good[:len(good)/2],
		"nothing":       []byte("{}"),
		"newer version": edit(func(a *attempt) { a.Volume.Version = 4 }),
		"no identity":   edit(func(a *attempt) { a.SPIFFEID = "" }),
		"no key":        edit(func(a *attempt) { a.Key = "" }),
		"two keys":      edit(func(a *attempt) { a.Key += a.Key }),
		"no request":    edit(func(a *attempt) { a.Request = "" }),
		"no duration":   edit(func(a *attempt) { a.AskedWith.Duration = "soon" }),
		"no attributes": edit(func(a *attempt) { a.Volume.Attributes = &attributes{KeyType: "P-521"} }),
	} {
		volume, _, err := unmarshalAttempt(in)
		if err == nil {
			t.Errorf("%s: taken as %+v", name, volume)
			continue
		}
		if strings.Contains(err.Error(), "PRIVATE") || strings.Contains(err.Error(), "MIG") {
			t.Errorf("%s: the error quotes the attempt: %v", name, err)
		}
	}
}

func TestStoredAttemptDoesNotPrint(t *testing.T) {
	var a attempt
	if err := json.Unmarshal(encodedAttempt(t, workload.Volume{ID: "v", Pod: pod}), &a); err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if out := fmt.Sprintf(verb, a); strings.Contains(out, "PRIVATE") {
			t.Errorf("%s prints the key", verb)
		}
	}
}

func FuzzUnmarshalAttempt(f *testing.F) {
	f.Add(encodedAttempt(f, workload.Volume{ID: "v", Pod: pod}))
	f.Add([]byte("{}"))
	f.Add([]byte(`{"volume":{"version":1}}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		_, a, err := unmarshalAttempt(in)
		if err == nil && (a == nil || a.Key.IsZero() || a.Request == "" || a.ID.IsZero()) {
			t.Error("half an attempt was taken")
		}
	})
}

// signatory is an issuer whose requests outlive agents: each is signed when its
// approver has spoken.
type signatory struct {
	issue.Issuer

	mu       sync.Mutex
	requests map[string]issue.IssueRequest
	expected map[string]bool
	pending  chan string   // Names, as they come to be waited for.
	approved chan struct{} // Closed: all may be signed.
}

func newSignatory(signer issue.Issuer) *signatory {
	return &signatory{
		Issuer: signer, requests: map[string]issue.IssueRequest{}, expected: map[string]bool{},
		pending: make(chan string, 10), approved: make(chan struct{}),
	}
}

func (s *signatory) Issue(ctx context.Context, r issue.IssueRequest) (issue.Issued, error) {
	name := r.Resume
	s.mu.Lock()
	if name == "" {
		name = fmt.Sprintf("shop/r-%d", len(s.requests))
	} else if _, ok := s.requests[name]; !ok {
		s.mu.Unlock()
		return issue.Issued{}, issue.ErrGone
	}
	s.mu.Unlock()
	if r.Resume == "" {
		r.Sending(issue.Sent{Request: name})
		s.mu.Lock()
		s.requests[name] = r
		s.mu.Unlock()
	}
	s.pending <- name
	select {
	case <-s.approved:
	case <-ctx.Done():
		return issue.Issued{}, context.Cause(ctx)
	}
	s.mu.Lock()
	asked := s.requests[name]
	s.mu.Unlock()
	asked.Resume = ""
	return s.Issuer.Issue(ctx, asked)
}

func (s *signatory) Expect(volume, name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expected[volume+" "+name] = true
	return true
}

func (s *signatory) Abandon(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.requests, name)
}

func (s *signatory) wait(t *testing.T) string {
	t.Helper()
	select {
	case name := <-s.pending:
		return name
	case <-time.After(20 * time.Second):
		t.Fatal("nobody asks")
		return ""
	}
}

func (s *signatory) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.requests)
}

// A mount that waits, over three lives of the agent: one request, whose key is the
// pod's in the end. Nothing is kept of the attempt.
func TestMountOutlivesAgents(t *testing.T) {
	n := newNode(t)
	s := newSignatory(n.issuer)
	n.issuer = s
	a := n.start()
	for range 3 {
		ctx, leave := context.WithCancel(t.Context())
		published := make(chan error, 1)
		go func() {
			_, err := a.NodePublishVolume(ctx, n.publishRequest())
			published <- err
		}()
		if name := s.wait(t); name != "shop/r-0" {
			t.Fatalf("request %s, want the first", name)
		}
		a.kill()
		leave()
		if err := <-published; err == nil {
			t.Fatal("the publish succeeded without an approval")
		}
		a = n.start()
	}
	s.wait(t)
	close(s.approved)
	if _, err := a.NodePublishVolume(t.Context(), n.publishRequest()); err != nil {
		t.Fatal(err)
	}
	serial := n.serial()
	if _, got := n.fromSocket(); got != serial {
		t.Errorf("socket: %s, files: %s", got, serial)
	}
	if got := s.count(); got != 1 {
		t.Errorf("%d requests, want 1", got)
	}
	if !s.expected["v shop/r-0"] {
		t.Error("the issuer was not told what to expect")
	}
	// The attempt is dropped after kubelet was answered, and before it is again.
	if _, err := a.NodePublishVolume(t.Context(), n.publishRequest()); err != nil {
		t.Fatal(err)
	}
	dir, _ := a.storage.store.Get("v")
	if _, err := dir.ReadAttempt(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the attempt is still kept: %v", err)
	}
	unpublish(t, n, a)
	a.kill()
	n.wantNothingLeft()
}

func unpublish(t *testing.T, n *node, a *agent) {
	t.Helper()
	if _, err := a.NodeUnpublishVolume(t.Context(), &csipb.NodeUnpublishVolumeRequest{VolumeId: "v", TargetPath: n.target("v", "mount")}); err != nil {
		t.Fatal(err)
	}
}

// pendingMount is a node on which an agent died while a mount waited.
func pendingMount(t *testing.T) (*node, *signatory) {
	t.Helper()
	n := newNode(t)
	s := newSignatory(n.issuer)
	n.issuer = s
	a := n.start()
	ctx, leave := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = a.NodePublishVolume(ctx, n.publishRequest())
	}()
	s.wait(t)
	a.kill()
	leave()
	<-ended
	if n.volumesInStore() != 1 {
		t.Fatal("the agent took the volume with it")
	}
	return n, s
}

// A mount whose pod is gone, whose attempt is junk, or whose attributes are no longer
// allowed is not taken up, and nothing stays.
func TestMountThatIsNotTakenUp(t *testing.T) {
	attemptPath := func(n *node) string {
		return filepath.Join(n.root, "plugins/test.driver/volumes/v/private/attempt")
	}
	rewrite := func(n *node, edit func(*workload.Volume)) {
		volume := workload.Volume{ID: "v", Pod: pod}
		edit(&volume)
		if err := os.WriteFile(attemptPath(n), encodedAttempt(n.t, volume), 0o600); err != nil {
			n.t.Fatal(err)
		}
	}
	for name, change := range map[string]func(*node){
		"pod gone":       (*node).removePod,
		"junk":           func(n *node) { _ = os.WriteFile(attemptPath(n), []byte("junk"), 0o600) },
		"another volume": func(n *node) { rewrite(n, func(v *workload.Volume) { v.ID = "w" }) },
		"does not wait":  func(n *node) { rewrite(n, func(v *workload.Volume) { v.Attributes.NoWait = true }) },
		"not allowed":    func(n *node) { rewrite(n, func(v *workload.Volume) { v.Attributes.Duration = time.Second }) },
		"names collide": func(n *node) {
			rewrite(n, func(v *workload.Volume) { v.Attributes.Delivery.Key = "tls.crt" })
		},
	} {
		t.Run(name, func(t *testing.T) {
			n, _ := pendingMount(t)
			change(n)
			a := n.start()
			if n.volumesInStore() != 0 {
				t.Error("the volume was taken up")
			}
			a.kill()
		})
	}
}

// An attempt that does not belong to its volume's state, or whose SVID the state
// already holds, is dropped and the volume served.
func TestAttemptThatIsNotTakenUp(t *testing.T) {
	for name, edit := range map[string]func(t *testing.T, r recovered) []byte{
		"junk": func(*testing.T, recovered) []byte { return []byte("junk") },
		"another pod": func(t *testing.T, r recovered) []byte {
			r.volume.Pod.UID = "u-1"
			return encodedAttempt(t, r.volume)
		},
		"stored already": func(t *testing.T, r recovered) []byte {
			b, err := marshalAttempt(r.volume, workload.Attempt{Request: "shop/x", ID: r.svid.ID, Key: r.svid.Key, Basis: r.svid.Basis})
			if err != nil {
				t.Fatal(err)
			}
			return b
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			a := n.start()
			if _, err := a.NodePublishVolume(t.Context(), n.publishRequest()); err != nil {
				t.Fatal(err)
			}
			serial := n.serial()
			dir, _ := a.storage.store.Get("v")
			state, err := dir.ReadState()
			if err != nil {
				t.Fatal(err)
			}
			r, err := unmarshalState(state)
			if err != nil {
				t.Fatal(err)
			}
			if err := dir.WriteAttempt(edit(t, r)); err != nil {
				t.Fatal(err)
			}
			a.kill()
			s := newSignatory(n.issuer)
			n.issuer = s
			a = n.start()
			dir, _ = a.storage.store.Get("v")
			if _, err := dir.ReadAttempt(); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the attempt is still there: %v", err)
			}
			if len(s.expected) != 0 || n.serial() != serial {
				t.Errorf("expected %v, serial %s after %s", s.expected, n.serial(), serial)
			}
			unpublish(t, n, a)
			a.kill()
		})
	}
}
