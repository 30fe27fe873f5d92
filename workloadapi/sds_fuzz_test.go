// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"maps"
	"slices"
	"strconv"
	"testing"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
)

// fuzzNames are what the sequences of FuzzSDSSequence subscribe to.
var fuzzNames = []string{"default", "ROOTCA", "ALL", "spiffe://cluster.local", "spiffe://cluster.local/a", "spiffe://partner.example", "nothing", wildcardName, ""}

// pick returns the names whose bits are set.
func pick(bits uint16) (names []string) {
	for n, name := range fuzzNames {
		if bits&(1<<n) != 0 {
			names = append(names, name)
		}
	}
	return names
}

// fuzzCatalogs are states that an identity may go through: rotated, with and without a partner.
func fuzzCatalogs(f *testing.F) (catalogs []*catalog) {
	ca, other := newAuthority(f, trustDomain), newAuthority(f, partner)
	first, second := ca.svid(f, "/a"), ca.svid(f, "/a")
	for _, i := range []Identity{
		{SVIDs: []*x509svid.SVID{first}, Bundles: x509bundle.NewSet(ca.bundle())},
		{SVIDs: []*x509svid.SVID{second}, Bundles: x509bundle.NewSet(ca.bundle(), other.bundle())},
		{SVIDs: []*x509svid.SVID{second}, Bundles: x509bundle.NewSet(ca.bundle())},
		{SVIDs: []*x509svid.SVID{first, ca.svid(f, "/b")}, Bundles: x509bundle.NewSet(ca.bundle(), newAuthority(f, partner).bundle())},
	} {
		i.Status, i.TrustDomain = Entitled, trustDomain
		c, err := newCatalog(i)
		must(f, err)
		catalogs = append(catalogs, c)
	}
	return catalogs
}

// FuzzSDSSequence runs a client that keeps the rules through any sequence of subscriptions, answers and changes, on both
// variants, and holds what it has been told against what is true: after every step it knows exactly what it subscribed to,
// and it is never told anything twice.
func FuzzSDSSequence(f *testing.F) {
	catalogs := fuzzCatalogs(f)
	f.Add([]byte{0x01, 0x00, 0x00, 0xff, 0x40, 0x01, 0x03, 0x00})
	f.Add([]byte{0x00, 0x00, 0x80, 0x01, 0x81, 0x20, 0xc0, 0x00, 0x43, 0x00, 0x02, 0x80, 0x01, 0x80})
	f.Fuzz(func(t *testing.T, steps []byte) {
		sotw, delta := newModelSotw(t), newModelDelta(t)
		now := catalogs[0]
		for ; len(steps) >= 2; steps = steps[2:] {
			op, bits := steps[0], uint16(steps[1])|uint16(steps[0]&1)<<8
			switch op >> 6 {
			case 0, 1:
				sotw.subscribe(pick(bits), op&2 != 0)
				delta.subscribe(pick(bits), nil, op&2 != 0)
			case 2:
				sotw.subscribe(pick(bits), op&2 != 0)
				delta.subscribe(nil, pick(bits), op&2 != 0)
			case 3:
				now = catalogs[int(bits)%len(catalogs)]
			}
			sotw.check(now)
			delta.check(now)
		}
	})
}

// truth is what a subscription amounts to: version by name.
func truth(c *catalog, s *subscription) map[string]string {
	r := make(map[string]string)
	for _, o := range s.offers(c) {
		if o.secret != nil {
			r[o.name] = o.secret.version
		}
	}
	return r
}

// modelSotw is a state-of-the-world client. wanted and wildcard are kept apart from the session's own.
type modelSotw struct {
	t        *testing.T
	session  *stateOfTheWorld
	wanted   map[string]bool
	named    bool
	wildcard bool
	begun    bool
	version  string
	nonce    string
}

func newModelSotw(t *testing.T) *modelSotw {
	return &modelSotw{t: t, session: newStateOfTheWorld(SDSOptions{}.settings()), wanted: map[string]bool{}}
}

func (m *modelSotw) subscribe(names []string, reject bool) {
	r := &discoveryv3.DiscoveryRequest{ResourceNames: names, ResponseNonce: m.nonce, VersionInfo: m.version}
	if reject {
		r.ErrorDetail = &rpcstatus.Status{Message: "no"}
	}
	if _, err := m.session.receive(r); err != nil {
		m.t.Fatal(err)
	}
	m.begun = true
	m.wanted = map[string]bool{}
	star := false
	for _, name := range names {
		if name != "" {
			m.named = true
		}
		if name == wildcardName {
			star = true
		} else if name != "" {
			m.wanted[name] = true
		}
	}
	m.wildcard = star || !m.named
}

func (m *modelSotw) check(c *catalog) {
	if !m.begun {
		if m.session.respond(c) != nil {
			m.t.Fatal("an answer before any request")
		}
		return
	}
	want := expected(c, m.wanted, m.wildcard)
	before := maps.Clone(m.session.told)
	due := m.session.due
	if r := m.session.respond(c); r != nil {
		if got := contents(m.t, r); !maps.Equal(got, want) {
			m.t.Fatalf("told %v, want %v", got, want)
		}
		if !due && maps.Equal(before, m.session.told) {
			m.t.Fatal("told the same again")
		}
		m.nonce, m.version = r.GetNonce(), r.GetVersionInfo()
	}
	if got := truth(c, &m.session.subscription); !maps.Equal(got, want) {
		m.t.Fatalf("subscribed to %v, want %v", got, want)
	}
	if m.session.respond(c) != nil {
		m.t.Fatal("told twice")
	}
}

// expected is worked out from the names alone.
func expected(c *catalog, wanted map[string]bool, wildcard bool) map[string]string {
	r := make(map[string]string)
	p := SDSOptions{}.settings()
	names := slices.Collect(maps.Keys(wanted))
	if wildcard {
		names = append(names, c.names...)
	}
	for _, name := range names {
		if s := c.find(name, p); s != nil {
			r[name] = s.version
		}
	}
	return r
}

// contents decodes a response: the version of each secret is looked up by its bytes.
func contents(t *testing.T, r *discoveryv3.DiscoveryResponse) map[string]string {
	t.Helper()
	got := make(map[string]string)
	for _, a := range r.GetResources() {
		var s tlsv3.Secret
		must(t, a.UnmarshalTo(&s))
		got[s.GetName()] = versionOf(&s)
	}
	return got
}

// versionOf works a version out from a secret that has arrived.
func versionOf(s *tlsv3.Secret) string {
	if c := s.GetTlsCertificate(); c != nil {
		return newSecret(s, []byte("tls_certificate"), c.GetCertificateChain().GetInlineBytes()).version
	}
	v := s.GetValidationContext()
	if v.GetTrustedCa() != nil {
		return newSecret(s, []byte("validation_context"), v.GetTrustedCa().GetInlineBytes()).version
	}
	return newSecret(s, []byte("validation_context"), v.GetCustomValidatorConfig().GetTypedConfig().GetValue()).version
}

// modelDelta is an incremental client that keeps what it is told.
type modelDelta struct {
	t        *testing.T
	session  *incremental
	wanted   map[string]bool
	wildcard bool
	begun    bool
	has      map[string]string
	nonce    string
}

func newModelDelta(t *testing.T) *modelDelta {
	return &modelDelta{t: t, session: newIncremental(SDSOptions{}.settings()), wanted: map[string]bool{}, has: map[string]string{}}
}

func (m *modelDelta) subscribe(names, drop []string, reject bool) {
	r := &discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: names, ResourceNamesUnsubscribe: drop, ResponseNonce: m.nonce}
	if reject {
		r.ErrorDetail = &rpcstatus.Status{Message: "no"}
	}
	if _, err := m.session.receive(r); err != nil {
		m.t.Fatal(err)
	}
	if !m.begun {
		m.begun, m.wildcard = true, len(names) == 0
	}
	for _, name := range names {
		if name == wildcardName {
			m.wildcard = true
		} else if name != "" {
			m.wanted[name] = true
		}
	}
	for _, name := range drop {
		if name == wildcardName {
			m.wildcard = false
		}
		delete(m.wanted, name)
	}
	if !m.wildcard { // forgets what it has no claim to; with the wildcard the server says what stays
		maps.DeleteFunc(m.has, func(name, _ string) bool { return !m.wanted[name] })
	}
}

func (m *modelDelta) check(c *catalog) {
	if !m.begun {
		if m.session.respond(c) != nil {
			m.t.Fatal("an answer before any request")
		}
		return
	}
	if r := m.session.respond(c); r != nil {
		for _, resource := range r.GetResources() {
			var s tlsv3.Secret
			must(m.t, resource.GetResource().UnmarshalTo(&s))
			if s.GetName() != resource.GetName() || versionOf(&s) != resource.GetVersion() {
				m.t.Fatalf("resource %q holds %q", resource.GetName(), s.GetName())
			}
			m.has[s.GetName()] = resource.GetVersion()
		}
		for _, name := range r.GetRemovedResources() {
			delete(m.has, name)
		}
		m.nonce = r.GetNonce()
	}
	if want := expected(c, m.wanted, m.wildcard); !maps.Equal(m.has, want) {
		m.t.Fatalf("has %v, want %v", m.has, want)
	}
	if m.session.respond(c) != nil {
		m.t.Fatal("told twice")
	}
}

// FuzzSDSRequests feeds any requests, two of each variant, to sessions. Nothing may panic or grow beyond its bounds, nonces
// must count, and what comes out must decode.
func FuzzSDSRequests(f *testing.F) {
	catalogs := fuzzCatalogs(f)
	add := func(a, b proto.Message) {
		x, err := proto.Marshal(a)
		must(f, err)
		y, err := proto.Marshal(b)
		must(f, err)
		f.Add(x, y, byte(1))
	}
	add(&discoveryv3.DiscoveryRequest{ResourceNames: fuzzNames, Node: envoyNode(f, 17, map[string]any{"default_svid_name": "x"})},
		&discoveryv3.DiscoveryRequest{ResponseNonce: "1", VersionInfo: "x", ErrorDetail: &rpcstatus.Status{Message: "private_key"}})
	add(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: fuzzNames, InitialResourceVersions: map[string]string{"default": "-"}},
		&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: "1", ResourceNamesUnsubscribe: fuzzNames})
	f.Fuzz(func(t *testing.T, first, second []byte, at byte) {
		now := []*catalog{catalogs[int(at)%len(catalogs)], catalogs[int(at>>2)%len(catalogs)]}
		sotw, delta := newStateOfTheWorld(SDSOptions{}.settings()), newIncremental(SDSOptions{}.settings())
		for n, b := range [][]byte{first, second} {
			var r discoveryv3.DiscoveryRequest
			if proto.Unmarshal(b, &r) == nil {
				if a, err := sotw.receive(&r); err == nil {
					checkResponse(t, a, &sotw.subscription, sotw.respond(now[n]))
				}
			}
			var d discoveryv3.DeltaDiscoveryRequest
			if proto.Unmarshal(b, &d) == nil {
				if a, err := delta.receive(&d); err == nil {
					checkResponse(t, a, &delta.subscription, delta.respond(now[n]))
				}
			}
		}
	})
}

func checkResponse(t *testing.T, a answer, s *subscription, r interface {
	proto.Message
	GetNonce() string
}) {
	t.Helper()
	if len(a.reason) > maxLogged || len(s.names) > maxSecretNames || s.bytes > maxSecretNameBytes {
		t.Fatalf("reason of %d bytes, %d names of %d bytes", len(a.reason), len(s.names), s.bytes)
	}
	if !r.ProtoReflect().IsValid() { // nil
		return
	}
	if r.GetNonce() != strconv.FormatUint(s.sent, 10) {
		t.Fatalf("nonce %q after %d responses", r.GetNonce(), s.sent)
	}
	if _, err := proto.Marshal(r); err != nil {
		t.Fatal(err)
	}
}
