// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/signet-spiffe/signet/agent/issue"
	"github.com/signet-spiffe/signet/agent/issue/selfca"
	"github.com/signet-spiffe/signet/agent/workload"
	"github.com/signet-spiffe/signet/csi"
	"github.com/signet-spiffe/signet/internal/pki"
)

var (
	td     = spiffeid.RequireTrustDomainFromString("example.org")
	cartID = spiffeid.RequireFromString("spiffe://example.org/ns/shop/sa/cart")
	pod    = issue.Pod{Namespace: "shop", Name: "cart-0", UID: "u-0", ServiceAccount: "cart"}
)

// content is a real SVID by an authority in memory.
func content(t testing.TB) workload.Content { return contentWith(t, "") }

// contentWith is content with DNS names.
func contentWith(t testing.TB, dnsNames pki.DNSNames) workload.Content {
	t.Helper()
	ca, err := selfca.New(selfca.Options{TrustDomain: td})
	if err != nil {
		t.Fatal(err)
	}
	key, err := pki.GenerateKey(pki.P256)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.NewCSR(key, cartID, dnsNames)
	if err != nil {
		t.Fatal(err)
	}
	issued, err := ca.Issue(t.Context(), issue.IssueRequest{Volume: "v", Pod: pod, ID: cartID, CSR: csr, Duration: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	chain, err := pki.ParseCertificates(issued.Chain)
	if err != nil {
		t.Fatal(err)
	}
	basis := workload.Basis{Issuer: "ClusterIssuer.cert-manager.io/spiffe-ca", KeyType: pki.P256, Duration: time.Hour}
	return workload.Content{SVID: &workload.SVID{ID: cartID, Chain: chain, Key: key, Basis: basis}, Bundle: ca.Bundle()}
}

func encoded(t testing.TB, c workload.Content) []byte {
	t.Helper()
	uid, gid := int64(1321), int64(1234)
	key, err := c.SVID.Key.MarshalPEM()
	if err != nil {
		t.Fatal(err)
	}
	b, err := marshalState(workload.Volume{ID: "v", Pod: pod, UID: &uid, GID: &gid, Token: issue.NewToken("s3cret")}, c, key)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestStateSurvives(t *testing.T) {
	c := content(t)
	b := encoded(t, c)
	if strings.Contains(string(b), "s3cret") {
		t.Fatal("the token was stored")
	}
	r, err := unmarshalState(b)
	if err != nil {
		t.Fatal(err)
	}
	if r.volume.ID != "v" || r.volume.Pod != pod || *r.volume.UID != 1321 || *r.volume.GID != 1234 || !r.volume.Token.IsZero() {
		t.Errorf("volume %+v", r.volume)
	}
	if r.svid.ID != cartID || !r.svid.Chain[0].Equal(c.SVID.Chain[0]) || !r.bundle.Equal(c.Bundle) {
		t.Error("SVID or bundle changed")
	}
	if r.svid.Basis != c.SVID.Basis {
		t.Errorf("issued with %+v, want %+v", r.svid.Basis, c.SVID.Basis)
	}
	if err := pki.VerifySVID(r.svid.Chain, pki.Expectation{ID: cartID, Key: r.svid.Key, Now: time.Now(), Bundle: r.bundle}); err != nil {
		t.Error(err)
	}
}

func TestStateIsNotBelieved(t *testing.T) {
	good := encoded(t, content(t))
	other := encoded(t, content(t))
	edit := func(change func(s *state)) []byte {
		var s, o state
		if err := errors.Join(json.Unmarshal(good, &s), json.Unmarshal(other, &o)); err != nil {
			t.Fatal(err)
		}
		change(&s)
		b, err := json.Marshal(struct{ *alias }{(*alias)(&s)})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var otherState state
	if err := json.Unmarshal(other, &otherState); err != nil {
		t.Fatal(err)
	}
	for name, in := range map[string][]byte{
		"empty":            nil,
		"half":             good[:len(good)/2],
		"no version":       edit(func(s *state) { s.Version = 0 }),
		"newer version":    edit(func(s *state) { s.Version = 4 }),
		"another key":      edit(func(s *state) { s.Key = otherState.Key }),
		"no key":           edit(func(s *state) { s.Key = "" }),
		"another identity": edit(func(s *state) { s.SPIFFEID = "spiffe://example.org/ns/shop/sa/admin" }),
		"no identity":      edit(func(s *state) { s.SPIFFEID = "" }),
		"no chain":         edit(func(s *state) { s.Chain = "" }),
		"no duration":      edit(func(s *state) { s.IssuedWith.Duration = "soon" }),
		"no bundle":        edit(func(s *state) { s.Bundle = "junk" }),
	} {
		r, err := unmarshalState(in)
		if err == nil {
			t.Errorf("%s: taken as %+v", name, r.volume)
			continue
		}
		if strings.Contains(err.Error(), "PRIVATE") || strings.Contains(err.Error(), "MIG") {
			t.Errorf("%s: the error quotes the state: %v", name, err)
		}
	}
}

type alias state

func TestStateDoesNotPrint(t *testing.T) {
	var s state
	if err := json.Unmarshal(encoded(t, content(t)), &s); err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if out := fmt.Sprintf(verb, s); strings.Contains(out, "PRIVATE") {
			t.Errorf("%s prints the key", verb)
		}
	}
}

func FuzzUnmarshalState(f *testing.F) {
	f.Add(encoded(f, content(f)))
	v := workload.Volume{ID: "v", Pod: pod, Attributes: everyAttribute}
	c := contentWith(f, everyAttribute.DNSNames)
	key, err := c.SVID.Key.MarshalPEM()
	if err != nil {
		f.Fatal(err)
	}
	withNames, err := marshalState(v, c, key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(withNames)
	f.Add([]byte("{}"))
	f.Add([]byte(`{"version":1}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		r, err := unmarshalState(in)
		if err != nil {
			return
		}
		if unissued := r.svid == nil && r.bundle == nil && r.volume.Attributes.NoWait; !unissued && (r.svid == nil || r.bundle == nil || r.svid.Key.IsZero()) {
			t.Error("half a state was taken")
		}
		names := r.volume.Attributes.DNSNames
		if r.svid != nil && len(r.svid.Chain[0].DNSNames) != len(names.Names()) {
			t.Errorf("taken with DNS names %q and a certificate for %q", names, r.svid.Chain[0].DNSNames)
		}
		if back, err := pki.NewDNSNames(names.Names()...); err != nil || back != names {
			t.Errorf("taken with DNS names %q", names)
		}
	})
}

func TestEdgeErrors(t *testing.T) {
	for inner, edge := range map[error]error{
		workload.ErrPending: csi.ErrPending, workload.ErrUnpublished: csi.ErrAborted, workload.ErrInvalid: csi.ErrInvalid,
		issue.ErrDenied: csi.ErrDenied, issue.ErrUnavailable: csi.ErrUnavailable, issue.ErrNoToken: csi.ErrInvalid,
	} {
		err := edgeError(fmt.Errorf("mount: %w: the approver's words", inner))
		if !errors.Is(err, edge) || !strings.Contains(err.Error(), "the approver's words") {
			t.Errorf("%v became %v", inner, err)
		}
	}
	if edgeError(nil) != nil {
		t.Error("nil became an error")
	}
	plain := errors.New("x")
	if edgeError(plain) != plain {
		t.Error("another error changed")
	}
}
