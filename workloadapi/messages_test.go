// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/protobuf/proto"

	"github.com/signet-spiffe/signet/internal/conformance"
)

// testEndpoint is an endpoint without a server.
func testEndpoint(w Workload, log *syncBuffer) *endpoint {
	return newEndpoint(w, newShare(Limits{}), newMetrics(nil, nil), slog.New(slog.NewTextHandler(log, nil)))
}

func encode(t *testing.T, i Identity, build func(Identity) (proto.Message, error)) []byte {
	t.Helper()
	m, err := testEndpoint(newScripted(i), &syncBuffer{}).marshal(i, build)
	must(t, err)
	return m.bytes
}

func TestX509SVIDResponse(t *testing.T) {
	ca, other := newAuthority(t, trustDomain), newAuthority(t, spiffeid.RequireTrustDomainFromString("example.org"))
	first, second, third := ca.svid(t, "/first"), ca.svid(t, "/second"), ca.svid(t, "/third")
	first.Certificates = append(first.Certificates, other.cert) // an intermediate, as far as encoding is concerned
	first.Hint, second.Hint, third.Hint = "internal", "internal", strings.Repeat("x", 1025)
	i := Identity{
		Status: Entitled, TrustDomain: trustDomain, SVIDs: []*x509svid.SVID{first, second, third},
		Bundles: x509bundle.NewSet(ca.bundle(), other.bundle(), x509bundle.New(spiffeid.RequireTrustDomainFromString("empty.org"))),
	}
	var got workload.X509SVIDResponse
	must(t, proto.Unmarshal(encode(t, i, x509SVIDResponse), &got))
	if len(got.Svids) != 3 {
		t.Fatalf("%d svids", len(got.Svids))
	}
	var ids, hints []string
	for n, svid := range got.Svids {
		ids, hints = append(ids, svid.SpiffeId), append(hints, svid.Hint)
		parsed, err := x509svid.ParseRaw(svid.X509Svid, svid.X509SvidKey)
		if n == 0 { // go-spiffe refuses its chain for the self-signed intermediate; its bytes are compared below
			continue
		}
		must(t, err)
		wantSameSVID(t, parsed, i.SVIDs[n])
	}
	if d := cmp.Diff([]string{"spiffe://cluster.local/first", "spiffe://cluster.local/second", "spiffe://cluster.local/third"}, ids); d != "" {
		t.Errorf("ids (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]string{"internal", "", ""}, hints); d != "" {
		t.Errorf("hints (-want +got):\n%s", d)
	}
	if want := slices.Concat(first.Certificates[0].Raw, other.cert.Raw); !bytes.Equal(got.Svids[0].X509Svid, want) {
		t.Error("chain is not leaf first, concatenated")
	}
	if !bytes.Equal(got.Svids[0].Bundle, ca.cert.Raw) {
		t.Error("bundle is not that of the svid's trust domain")
	}
	if d := cmp.Diff(map[string][]byte{"spiffe://example.org": other.cert.Raw}, got.FederatedBundles); d != "" {
		t.Errorf("federated bundles (-want +got):\n%s", d)
	}
	if len(got.Crl) != 0 {
		t.Error("crl is set")
	}
}

func TestJWTBundlesResponse(t *testing.T) {
	var got workload.JWTBundlesResponse
	must(t, proto.Unmarshal(encode(t, Identity{TrustDomain: trustDomain}, jwtBundlesResponse), &got))
	if d := cmp.Diff(map[string][]byte{"spiffe://cluster.local": []byte(`{"keys":[]}`)}, got.Bundles); d != "" {
		t.Errorf("bundles (-want +got):\n%s", d)
	}
	if _, err := jwtBundlesResponse(Identity{}); err == nil {
		t.Error("an identity without trust domain has JWT bundles")
	}
}

func TestIncompleteIdentitiesMakeNoMessage(t *testing.T) {
	conformance.Proves(t, "W9", "W10", "W17")
	ca := newAuthority(t, trustDomain)
	good := ca.identity(t, "/a")
	change := func(do func(*Identity)) Identity { i := good; do(&i); return i }
	keyless := *good.SVIDs[0]
	keyless.PrivateKey = nil
	bare := *good.SVIDs[0]
	bare.Certificates = nil
	foreign := newAuthority(t, spiffeid.RequireTrustDomainFromString("example.org")).svid(t, "/a")
	for name, i := range map[string]Identity{
		"no svid":           change(func(i *Identity) { i.SVIDs = nil }),
		"nil svid":          change(func(i *Identity) { i.SVIDs = []*x509svid.SVID{nil} }),
		"no key":            change(func(i *Identity) { i.SVIDs = []*x509svid.SVID{&keyless} }),
		"no certificates":   change(func(i *Identity) { i.SVIDs = []*x509svid.SVID{&bare} }),
		"no bundles":        change(func(i *Identity) { i.Bundles = nil }),
		"no bundle for it":  change(func(i *Identity) { i.SVIDs = []*x509svid.SVID{foreign} }),
		"empty bundle only": change(func(i *Identity) { i.Bundles = x509bundle.NewSet(x509bundle.New(trustDomain)) }),
	} {
		if m, err := x509SVIDResponse(i); err == nil {
			t.Errorf("%s: %v", name, m)
		}
	}
	for name, i := range map[string]Identity{
		"no bundles":   change(func(i *Identity) { i.Bundles = nil }),
		"not own ones": change(func(i *Identity) { i.TrustDomain = spiffeid.RequireTrustDomainFromString("example.org") }),
	} {
		if m, err := x509BundlesResponse(i); err == nil {
			t.Errorf("%s: %v", name, m)
		}
	}
}

func TestEqualStatesAreEqualBytes(t *testing.T) {
	conformance.Proves(t, "W5", "W27")
	var authorities []*x509.Certificate
	for range 5 {
		authorities = append(authorities, newAuthority(t, trustDomain).cert)
	}
	ca := newAuthority(t, trustDomain)
	i := ca.identity(t, "/a")
	reversed := slices.Clone(authorities)
	slices.Reverse(reversed)
	var others []*x509bundle.Bundle
	for n := range 12 { // enough for a map's order to show
		others = append(others, newAuthority(t, spiffeid.RequireTrustDomainFromString(fmt.Sprintf("td%d.org", n))).bundle())
	}
	var want [2][]byte
	for n := range 10 {
		order := authorities
		if n%2 == 1 {
			order = append(slices.Clone(reversed), reversed[0])
		}
		i.Bundles = x509bundle.NewSet(append(others, x509bundle.FromX509Authorities(trustDomain, order))...)
		got := [2][]byte{encode(t, i, x509SVIDResponse), encode(t, i, x509BundlesResponse)}
		if n == 0 {
			want = got
		}
		if !bytes.Equal(got[0], want[0]) || !bytes.Equal(got[1], want[1]) {
			t.Fatal("the same state gave other bytes")
		}
	}
}

func TestOneIdentityIsMarshalledOnce(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	w := newScripted(ca.identity(t, "/a"))
	ep := testEndpoint(w, &syncBuffer{})
	first, err := ep.current().x509SVIDs()
	must(t, err)
	var callers sync.WaitGroup
	for range 16 {
		callers.Go(func() {
			if again, err := ep.current().x509SVIDs(); err != nil || again != first {
				t.Errorf("marshalled again: %v", err)
			}
		})
	}
	callers.Wait()
	w.set(ca.identity(t, "/a"))
	if next, err := ep.current().x509SVIDs(); err != nil || next == first {
		t.Errorf("old message for a new identity, %v", err)
	}
}

// TestFinalIdentitiesAreNotConfused: nil channels are equal, the identities they come with need not be.
func TestFinalIdentitiesAreNotConfused(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	w := &final{identity: ca.identity(t, "/a")}
	ep := testEndpoint(w, &syncBuffer{})
	first, err := ep.current().x509SVIDs()
	must(t, err)
	w.identity = ca.identity(t, "/b")
	if next, err := ep.current().x509SVIDs(); err != nil || bytes.Equal(next.bytes, first.bytes) {
		t.Errorf("message of another identity, %v", err)
	}
}

type final struct{ identity Identity }

func (f *final) Identity() (Identity, <-chan struct{}) { return f.identity, nil }

// padded is a bundle of a given size in bytes, as far as encoding is concerned.
func padded(name string, size int) *x509bundle.Bundle {
	return x509bundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString(name), []*x509.Certificate{{Raw: make([]byte, size)}})
}

// One partner's bundle that does not fit costs the trust in that partner. The workload's own SVID, and the other partners, are
// not at stake.
func TestMessagesFitWhatClientsAccept(t *testing.T) {
	i := newAuthority(t, trustDomain).identity(t, "/a")
	for _, b := range []*x509bundle.Bundle{padded("small.org", 100), padded("large.org", 3<<20), padded("largest.org", 3<<20+1)} {
		i.Bundles.Add(b)
	}
	log := &syncBuffer{}
	ep := testEndpoint(newScripted(i), log)
	svids, err := ep.current().x509SVIDs()
	must(t, err)
	bundles, err := ep.current().x509Bundles()
	must(t, err)
	var ofSVIDs workload.X509SVIDResponse
	var ofBundles workload.X509BundlesResponse
	must(t, proto.Unmarshal(svids.bytes, &ofSVIDs))
	must(t, proto.Unmarshal(bundles.bytes, &ofBundles))
	if len(svids.bytes) > 4<<20 || len(bundles.bytes) > 4<<20 {
		t.Errorf("messages of %d and %d bytes", len(svids.bytes), len(bundles.bytes))
	}
	if len(ofSVIDs.Svids) != 1 || len(ofSVIDs.Svids[0].Bundle) == 0 {
		t.Error("the own SVID or bundle is not there")
	}
	if got := slices.Sorted(maps.Keys(ofSVIDs.FederatedBundles)); !slices.Equal(got, []string{"spiffe://large.org", "spiffe://small.org"}) {
		t.Errorf("federated bundles of %v", got)
	}
	if got := slices.Sorted(maps.Keys(ofBundles.Bundles)); !slices.Equal(got, []string{"spiffe://cluster.local", "spiffe://large.org", "spiffe://small.org"}) {
		t.Errorf("bundles of %v", got)
	}
	if !strings.Contains(log.String(), "left_out=[spiffe://largest.org]") {
		t.Errorf("log says %q", log)
	}
	if n := testutil.ToFloat64(ep.metrics.leftOut); n != 2 {
		t.Errorf("counted %v bundles that were left out, want one in each message", n)
	}
}

// What belongs to the own trust domain is never left out: without it there is nothing to serve.
func TestTooLargeMessagesAreReported(t *testing.T) {
	i := newAuthority(t, trustDomain).identity(t, "/a")
	i.Bundles = x509bundle.NewSet(padded("cluster.local", 4<<20), padded("example.org", 10))
	log := &syncBuffer{}
	m, err := testEndpoint(newScripted(i), log).current().x509Bundles()
	must(t, err)
	var got workload.X509BundlesResponse
	must(t, proto.Unmarshal(m.bytes, &got))
	if len(got.Bundles) != 1 || len(got.Bundles["spiffe://cluster.local"]) != 4<<20 {
		t.Errorf("bundles of %v", slices.Sorted(maps.Keys(got.Bundles)))
	}
	if !strings.Contains(log.String(), "larger than clients accept") {
		t.Errorf("log says %q", log)
	}
}

func TestNothingPrintsKeys(t *testing.T) {
	i := newAuthority(t, trustDomain).identity(t, "/a")
	key := i.SVIDs[0].PrivateKey.(*ecdsa.PrivateKey)
	secret, err := key.Bytes()
	must(t, err)
	m, err := testEndpoint(newScripted(i), &syncBuffer{}).current().x509SVIDs()
	must(t, err)
	needles := []string{
		hex.EncodeToString(secret)[:32], strings.ToUpper(hex.EncodeToString(secret)[:32]), new(big.Int).SetBytes(secret).String()[:20],
		base64.StdEncoding.EncodeToString(secret)[:20], strings.Trim(fmt.Sprint(secret[:8]), "[]"), string(secret),
		base64.StdEncoding.EncodeToString(m.bytes)[:20], strings.Trim(fmt.Sprint(m.bytes[:8]), "[]"),
	}
	var outputs []string
	wrapped := struct{ I *Identity }{&i}
	for _, v := range []any{i, &i, wrapped, m, []any{i, m}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x", "%X"} {
			outputs = append(outputs, fmt.Sprintf(verb, v))
		}
		j, err := json.Marshal(v)
		must(t, err)
		var b bytes.Buffer
		slog.New(slog.NewTextHandler(&b, nil)).Info("x", "v", v)
		slog.New(slog.NewJSONHandler(&b, nil)).Info("x", "v", v)
		outputs = append(outputs, string(j), b.String())
	}
	for _, out := range outputs {
		for _, needle := range needles {
			if strings.Contains(out, needle) {
				t.Errorf("key material in %.120q", out)
			}
		}
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x"} {
		if got := fmt.Sprintf(verb, i); got != i.String() {
			t.Errorf("%s prints %.120q", verb, got)
		}
	}
	if got := i.String(); !strings.Contains(got, "spiffe://cluster.local/a") || !strings.Contains(got, "entitled") {
		t.Errorf("identity prints as %q", got)
	}
}
