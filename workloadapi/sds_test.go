// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/prototext"
)

// TestSDSNames asks for every kind of name in every variant of the service.
func TestSDSNames(t *testing.T) {
	ca, other := newAuthority(t, trustDomain), newAuthority(t, partner)
	const id, second = "spiffe://cluster.local/ns/shop/sa/web", "spiffe://cluster.local/ns/shop/sa/db"
	i := federated(t, ca, other, "/ns/shop/sa/web")
	i.SVIDs = append(i.SVIDs, ca.svid(t, "/ns/shop/sa/db"))
	certificate := func(n int) func(testing.TB, *tlsv3.Secret) {
		return func(t testing.TB, s *tlsv3.Secret) { t.Helper(); wantCertificate(t, s, i.SVIDs[n]) }
	}
	domains := func(a ...*authority) func(testing.TB, *tlsv3.Secret) {
		return func(t testing.TB, s *tlsv3.Secret) { t.Helper(); wantDomains(t, s, a...) }
	}
	plain := func(a *authority) func(testing.TB, *tlsv3.Secret) {
		return func(t testing.TB, s *tlsv3.Secret) { t.Helper(); wantPlain(t, s, a) }
	}
	type want map[string]func(testing.TB, *tlsv3.Secret)
	modern := func(m map[string]any) *corev3.Node { return envoyNode(t, 34, m) }
	off := map[string]any{"disable_spiffe_cert_validation": true}
	for _, tt := range []struct {
		name  string
		sds   SDSOptions
		node  *corev3.Node
		names []string
		want  want
	}{
		{"default SVID", SDSOptions{}, modern(nil), []string{"default"}, want{"default": certificate(0)}},
		{"SPIFFE ID", SDSOptions{}, modern(nil), []string{id}, want{id: certificate(0)}},
		{"second SPIFFE ID", SDSOptions{}, modern(nil), []string{second}, want{second: certificate(1)}},
		{"own bundle", SDSOptions{}, modern(nil), []string{"ROOTCA"}, want{"ROOTCA": domains(ca)}},
		{"own trust domain", SDSOptions{}, modern(nil), []string{"spiffe://cluster.local"}, want{"spiffe://cluster.local": domains(ca)}},
		{"another trust domain", SDSOptions{}, modern(nil), []string{"spiffe://partner.example"}, want{"spiffe://partner.example": domains(other)}},
		{"all bundles", SDSOptions{}, modern(nil), []string{"ALL"}, want{"ALL": domains(ca, other)}},
		{"one secret under all its names", SDSOptions{}, modern(nil), []string{"default", id, "ROOTCA", "ALL", "spiffe://cluster.local"},
			want{"default": certificate(0), id: certificate(0), "ROOTCA": domains(ca), "ALL": domains(ca, other), "spiffe://cluster.local": domains(ca)}},
		{"a name twice and an empty one", SDSOptions{}, modern(nil), []string{"default", "", "default"}, want{"default": certificate(0)}},
		{"no names", SDSOptions{}, modern(nil), nil, want{id: certificate(0), second: certificate(1),
			"spiffe://cluster.local": domains(ca), "spiffe://partner.example": domains(other)}},
		{"an empty name alone", SDSOptions{}, modern(off), []string{""}, want{id: certificate(0), second: certificate(1),
			"spiffe://cluster.local": plain(ca), "spiffe://partner.example": plain(other)}},
		{"wildcard and a name", SDSOptions{}, modern(nil), []string{"*", "default"}, want{id: certificate(0), second: certificate(1), "default": certificate(0),
			"spiffe://cluster.local": domains(ca), "spiffe://partner.example": domains(other)}},

		{"no node", SDSOptions{}, nil, []string{"ROOTCA"}, want{"ROOTCA": domains(ca)}},
		{"node without version", SDSOptions{}, &corev3.Node{Id: "x"}, []string{"ROOTCA"}, want{"ROOTCA": domains(ca)}},
		{"Envoy 1.18", SDSOptions{}, envoyNode(t, 18, nil), []string{"ROOTCA"}, want{"ROOTCA": domains(ca)}},
		{"Envoy 1.17 has no validator", SDSOptions{}, envoyNode(t, 17, nil), []string{"ROOTCA", "spiffe://partner.example", "ALL"},
			want{"ROOTCA": plain(ca), "spiffe://partner.example": plain(other)}},
		{"Envoy 1.17, all secrets", SDSOptions{}, envoyNode(t, 17, nil), nil, want{id: certificate(0), second: certificate(1),
			"spiffe://cluster.local": plain(ca), "spiffe://partner.example": plain(other)}},

		{"validator off", SDSOptions{DisableSPIFFEValidator: true}, modern(nil), []string{"ROOTCA", "spiffe://cluster.local", "spiffe://partner.example", "default"},
			want{"ROOTCA": plain(ca), "spiffe://cluster.local": plain(ca), "spiffe://partner.example": plain(other), "default": certificate(0)}},
		{"validator off: no secret of all bundles", SDSOptions{DisableSPIFFEValidator: true}, modern(nil), []string{"ALL", "default"}, want{"default": certificate(0)}},
		{"validator off, the own bundle is called ALL", SDSOptions{DisableSPIFFEValidator: true, BundleName: "ALL"}, modern(nil), []string{"ALL"}, want{"ALL": plain(ca)}},
		{"validator off for one proxy", SDSOptions{}, modern(off), []string{"ROOTCA"}, want{"ROOTCA": plain(ca)}},
		{"the same as a string", SDSOptions{}, modern(map[string]any{"disable_spiffe_cert_validation": "true"}), []string{"ROOTCA"}, want{"ROOTCA": plain(ca)}},
		{"explicitly on for one proxy", SDSOptions{}, modern(map[string]any{"disable_spiffe_cert_validation": false}), []string{"ROOTCA"}, want{"ROOTCA": domains(ca)}},
		{"off for all, on for one proxy", SDSOptions{DisableSPIFFEValidator: true}, modern(map[string]any{"disable_spiffe_cert_validation": "false"}), []string{"ROOTCA"}, want{"ROOTCA": domains(ca)}},
		{"metadata that is no boolean", SDSOptions{}, modern(map[string]any{"disable_spiffe_cert_validation": "maybe"}), []string{"ROOTCA"}, want{"ROOTCA": domains(ca)}},
		{"the same where it is off", SDSOptions{DisableSPIFFEValidator: true}, modern(map[string]any{"disable_spiffe_cert_validation": "maybe"}), []string{"ROOTCA"}, want{"ROOTCA": plain(ca)}},
		{"a number where it is off", SDSOptions{DisableSPIFFEValidator: true}, modern(map[string]any{"disable_spiffe_cert_validation": 7}), []string{"ROOTCA"}, want{"ROOTCA": plain(ca)}},

		{"names of the operator", SDSOptions{SVIDName: "me", BundleName: "mine", AllBundlesName: "everybody"}, modern(nil), []string{"me", "mine", "everybody", "default", "ROOTCA", "ALL"},
			want{"me": certificate(0), "mine": domains(ca), "everybody": domains(ca, other)}},
		{"all bundles as ROOTCA, as Istio's guide has it", SDSOptions{BundleName: "null", AllBundlesName: "ROOTCA"}, modern(nil), []string{"ROOTCA"}, want{"ROOTCA": domains(ca, other)}},
		{"names of the proxy", SDSOptions{SVIDName: "me"}, modern(map[string]any{"default_svid_name": "I", "default_bundle_name": "B", "default_all_bundles_name": "A"}),
			[]string{"me", "I", "B", "A", "ROOTCA"}, want{"I": certificate(0), "B": domains(ca), "A": domains(ca, other)}},
		{"names of the proxy that are none", SDSOptions{}, modern(map[string]any{"default_svid_name": "", "default_bundle_name": 3, "default_all_bundles_name": "*"}),
			[]string{"default", "ROOTCA", "ALL"}, want{"default": certificate(0), "ROOTCA": domains(ca), "ALL": domains(ca, other)}},
		{"a proxy cannot hide a SPIFFE ID behind a name", SDSOptions{}, modern(map[string]any{"default_svid_name": second}), []string{second}, want{second: certificate(1)}},

		{"another workload's ID", SDSOptions{}, modern(nil), []string{"spiffe://cluster.local/ns/shop/sa/other"}, want{}},
		{"the others beside an unknown one", SDSOptions{}, modern(nil), []string{"file-root:system", "default", "spiffe://nowhere", "ROOTCA"},
			want{"default": certificate(0), "ROOTCA": domains(ca)}},
		{"names are exact", SDSOptions{}, modern(nil), []string{"Default", "rootca", "SPIFFE://cluster.local", id + "/", "cluster.local"}, want{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newTestServer(t, Options{SDS: tt.sds})
			addr := s.start("a", newScripted(i))
			check := func(t *testing.T, secrets map[string]*tlsv3.Secret) {
				t.Helper()
				var names []string
				for name := range tt.want {
					names = append(names, name)
				}
				wantNames(t, secrets, names...)
				for name, check := range tt.want {
					check(t, secrets[name])
				}
			}
			t.Run("stream", func(t *testing.T) {
				e := newEnvoy(t, addr, tt.node)
				e.subscribe(tt.names...)
				check(t, e.recv())
			})
			t.Run("fetch", func(t *testing.T) {
				r, err := fetchSecrets(t, addr, tt.node, tt.names...)
				must(t, err)
				if r.GetNonce() != "" || r.GetVersionInfo() == "" {
					t.Errorf("nonce %q, version %q", r.GetNonce(), r.GetVersionInfo())
				}
				check(t, secretsOf(t, r.GetResources()))
			})
			t.Run("delta", func(t *testing.T) {
				e := newDeltaEnvoy(t, addr, tt.node)
				e.subscribe(slices.DeleteFunc(slices.Clone(tt.names), func(name string) bool { return name == "" })...)
				secrets, removed := e.recv("1")
				check(t, secrets)
				for _, name := range tt.names {
					if known := tt.want[name] != nil || name == "*" || name == ""; known == slices.Contains(removed, name) {
						t.Errorf("removed %q with %q known: %t", removed, name, known)
					}
				}
			})
		})
	}
}

// verifyLikeEnvoy is a SPIFFE validator in Go: the bundle is chosen by the trust domain of the peer's SPIFFE ID.
func verifyLikeEnvoy(config *tlsv3.SPIFFECertValidatorConfig) func([][]byte, [][]*x509.Certificate) error {
	return func(raw [][]byte, _ [][]*x509.Certificate) error {
		set := x509bundle.NewSet()
		for _, d := range config.GetTrustDomains() {
			td, err := spiffeid.TrustDomainFromString(d.GetName())
			if err != nil {
				return err
			}
			b, err := x509bundle.Parse(td, d.GetTrustBundle().GetInlineBytes())
			if err != nil {
				return err
			}
			set.Add(b)
		}
		_, _, err := x509svid.ParseAndVerify(raw, set)
		return err
	}
}

func proxyTLS(t *testing.T, addr, validation string) *tls.Config {
	t.Helper()
	e := newEnvoy(t, addr, envoyNode(t, 34, nil))
	e.subscribe("default", validation)
	secrets := e.recv()
	c := secrets["default"].GetTlsCertificate()
	pair, err := tls.X509KeyPair(c.GetCertificateChain().GetInlineBytes(), c.GetPrivateKey().GetInlineBytes())
	must(t, err)
	return &tls.Config{
		Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAnyClientCert, InsecureSkipVerify: true,
		VerifyPeerCertificate: verifyLikeEnvoy(validatorOf(t, secrets[validation])),
	}
}

// TestSDSProxiesSpeakMutualTLS has two proxies use what they are given, and nothing else. Partners are let in by ALL only.
func TestSDSProxiesSpeakMutualTLS(t *testing.T) {
	ca, other := newAuthority(t, trustDomain), newAuthority(t, partner)
	s := newTestServer(t, Options{})
	server := s.start("server", newScripted(federated(t, ca, other, "/server")))
	client := s.start("client", newScripted(federated(t, ca, other, "/client")))
	stranger := s.start("stranger", newScripted(federated(t, other, ca, "/stranger")))
	for _, tt := range []struct {
		name, client, validation string
		ok                       bool
	}{
		{"own trust domain", client, "ROOTCA", true},
		{"partner refused", stranger, "ROOTCA", false},
		{"partner let in", stranger, "ALL", true},
		{"partner by name", stranger, "spiffe://partner.example", true},
		{"own refused where the partner is meant", client, "spiffe://partner.example", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lis, err := tls.Listen("tcp", "127.0.0.1:0", proxyTLS(t, server, tt.validation))
			must(t, err)
			t.Cleanup(func() { _ = lis.Close() })
			handshake := make(chan error, 1)
			go func() {
				c, err := lis.Accept()
				if err == nil {
					err = errors.Join(c.(*tls.Conn).Handshake(), c.Close())
				}
				handshake <- err
			}()
			c, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", lis.Addr().String(), proxyTLS(t, tt.client, "ALL"))
			if err == nil {
				_, _ = io.ReadAll(c)
				_ = c.Close()
			}
			if err := <-handshake; (err == nil) != tt.ok {
				t.Errorf("server says %v, want success %t", err, tt.ok)
			}
		})
	}
}

func TestSDSStreamIsPushedRotationsAndAcknowledgementsAreQuiet(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	registry := prometheus.NewRegistry()
	s := newTestServer(t, Options{Registerer: registry})
	first, second := ca.identity(t, "/a"), ca.identity(t, "/a")
	w := newScripted(first)
	e := newEnvoy(t, s.start("a", w), envoyNode(t, 34, nil))
	e.subscribe("default")
	wantCertificate(t, e.recvNth("1")["default"], first.SVIDs[0])
	w.taken(3, func() {
		e.ack()
		e.ack() // says nothing new
		e.send(&discoveryv3.DiscoveryRequest{})
	})
	w.set(second)
	wantCertificate(t, e.recvNth("2")["default"], second.SVIDs[0])
	w.taken(1, e.ack)
	w.set(first)
	wantCertificate(t, e.recvNth("3")["default"], first.SVIDs[0])
	e.ack()
	e.subscribe("default", "ROOTCA")
	e.recvNth("4") // sent after all the above has been taken in
	wantMetric(t, registry, `
		signet_workloadapi_sds_answers_total{result="accepted"} 3
		signet_workloadapi_sds_answers_total{result="rejected"} 0
		signet_workloadapi_sds_answers_total{result="stale"} 0
	`, "signet_workloadapi_sds_answers_total")
}

func wantMetric(t *testing.T, r *prometheus.Registry, want, name string) {
	t.Helper()
	head := "# HELP " + name + " Answers of proxies to the secrets sent to them, by result.\n# TYPE " + name + " counter\n"
	if err := testutil.GatherAndCompare(r, strings.NewReader(head+strings.ReplaceAll(strings.TrimSpace(want), "\t", "")+"\n"), name); err != nil {
		t.Error(err)
	}
}

// TestSDSPushesOnlyWhatIsSubscribedTo changes what a stream has not asked for. Responses are numbered, so one too many shows
// in the next.
func TestSDSPushesOnlyWhatIsSubscribedTo(t *testing.T) {
	ca, other := newAuthority(t, trustDomain), newAuthority(t, partner)
	s := newTestServer(t, Options{})
	state := federated(t, ca, other, "/a")
	w := newScripted(state)
	addr := s.start("a", w)
	node := func() *corev3.Node { return envoyNode(t, 34, nil) }
	streams := make(map[string]*envoy)
	deltas := make(map[string]*deltaEnvoy)
	names := []string{"default", "ROOTCA", "ALL", "spiffe://partner.example"}
	for _, name := range names {
		streams[name], deltas[name] = newEnvoy(t, addr, node()), newDeltaEnvoy(t, addr, node())
		streams[name].subscribe(name)
		streams[name].recvNth("1")
		streams[name].ack()
		deltas[name].subscribe(name)
		deltas[name].recv("1")
		deltas[name].ack()
	}
	seen := make(map[string]int)
	change := func(affected ...string) {
		t.Helper()
		w.set(state)
		w.waitAsked(2 * len(names)) // every stream has looked at it
		for _, name := range affected {
			seen[name]++
			number := fmt.Sprint(seen[name] + 1)
			wantNames(t, streams[name].recvNth(number), name)
			streams[name].ack()
			secrets, removed := deltas[name].recv(number)
			wantNames(t, secrets, name)
			if len(removed) != 0 {
				t.Errorf("removed %q", removed)
			}
			deltas[name].ack()
		}
	}
	change() // another identity that says the same
	state.SVIDs = []*x509svid.SVID{ca.svid(t, "/a")}
	change("default")
	other = newAuthority(t, partner)
	state.Bundles = x509bundle.NewSet(ca.bundle(), other.bundle())
	change("ALL", "spiffe://partner.example")
	rotated := ca.bundle()
	rotated.AddX509Authority(newAuthority(t, trustDomain).cert)
	state.Bundles = x509bundle.NewSet(rotated, other.bundle())
	change("ROOTCA", "ALL")
	reordered := x509bundle.FromX509Authorities(trustDomain, reversed(rotated.X509Authorities()))
	state.Bundles = x509bundle.NewSet(other.bundle(), reordered)
	change() // the same authorities in another order
	third := newAuthority(t, spiffeid.RequireTrustDomainFromString("third.example"))
	state.Bundles = x509bundle.NewSet(rotated, other.bundle(), third.bundle())
	change("ALL")
}

func reversed[E any](s []E) []E {
	s = slices.Clone(s)
	slices.Reverse(s)
	return s
}

// TestSDSRejectedSecretsAreNotSentAgain is what keeps a proxy that cannot use a secret from being sent it for ever, as fast
// as it can refuse (SPIRE's ApplicationDoesNotSpin).
func TestSDSRejectedSecretsAreNotSentAgain(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	first, second := ca.identity(t, "/a"), ca.identity(t, "/a")
	w := newScripted(first)
	addr := s.start("a", w)

	e := newEnvoy(t, addr, envoyNode(t, 34, nil))
	e.subscribe("default")
	e.recvNth("1")
	rejectedVersion := e.last.GetVersionInfo()
	d := newDeltaEnvoy(t, addr, envoyNode(t, 34, nil))
	d.subscribe("default")
	d.recv("1")
	w.taken(200, func() {
		for range 100 {
			e.nack("no such curve")
			d.nack("no such curve")
		}
	})
	w.set(second)
	wantCertificate(t, e.recvNth("2")["default"], second.SVIDs[0])
	secrets, _ := d.recv("2")
	wantCertificate(t, secrets["default"], second.SVIDs[0])
	if e.last.GetVersionInfo() == rejectedVersion {
		t.Error("a new certificate under the rejected version")
	}
	log := s.log.String()
	if n := strings.Count(log, "a proxy rejected its secrets"); n != 2 { // one for each stream
		t.Errorf("%d warnings, want 2:\n%s", n, log)
	}
	for _, want := range []string{"level=WARN", "no such curve", "spiffe://cluster.local/a", rejectedVersion} {
		if !strings.Contains(log, want) {
			t.Errorf("log does not contain %q:\n%s", want, log)
		}
	}
}

// TestSDSRejectionsAreLoggedABoundedNumberOfTimes is a proxy that comes back and rejects the same again.
func TestSDSRejectionsAreLoggedABoundedNumberOfTimes(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	w := newScripted(ca.identity(t, "/a"))
	addr := s.start("a", w)
	for range 20 {
		e := newEnvoy(t, addr, nil)
		e.subscribe("default")
		e.recvNth("1")
		e.nack("no")
		e.subscribe("ROOTCA")
		e.recvNth("2") // the rejection has been taken in
	}
	if n := strings.Count(s.log.String(), "a proxy rejected"); n != maxRejectionsLogged {
		t.Errorf("%d warnings, want %d", n, maxRejectionsLogged)
	}
}

// TestSDSKeysAreNeverLogged has proxies quote the secret that they reject, as Envoy does when it violates a rule of its
// definition.
func TestSDSKeysAreNeverLogged(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	w := newScripted(ca.identity(t, "/a"))
	addr := s.start("a", w)
	e := newEnvoy(t, addr, envoyNode(t, 34, nil))
	e.subscribe("default")
	key := string(e.recv()["default"].GetTlsCertificate().GetPrivateKey().GetInlineBytes())
	lines := strings.Split(strings.TrimSpace(key), "\n")
	body := strings.Join(lines[1:len(lines)-1], "")
	var quoted tlsv3.Secret
	must(t, e.last.GetResources()[0].UnmarshalTo(&quoted))
	for n, message := range []string{
		"Proto constraint validation failed: " + prototext.Format(&quoted),
		"bad key " + key, "bad key " + body, "bad key " + strings.ReplaceAll(body, "/", "_"), "bad: " + strings.ReplaceAll(key, "\n", "\\n"),
		strings.Repeat("x ", 3000) + key,
	} {
		w.set(ca.identity(t, "/a")) // a new key would have to be quoted; the old one must not be logged either
		e.recv()
		w.taken(1, func() { e.nack(message) })
		e.subscribe("default", strings.ToValidUTF8(message[:min(len(message), 2000)], ""), fmt.Sprint(n)) // nor as a name
		e.recv()
	}
	log := s.log.String()
	if !strings.Contains(log, "a proxy rejected") || !strings.Contains(log, "asks for secrets that do not exist") {
		t.Fatalf("nothing logged:\n%s", log)
	}
	for at := 0; at+16 <= len(body); at++ {
		if strings.Contains(log, body[at:at+16]) {
			t.Fatalf("log holds 16 characters of the key:\n%s", log)
		}
	}
}

func TestSDSSecretsDoNotPrint(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	c, err := newCatalog(ca.identity(t, "/a"))
	must(t, err)
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		for _, v := range []any{c.first, offer{"default", c.first}} {
			if got := fmt.Sprintf(format, v); strings.Contains(got, "PRIVATE") || strings.Contains(got, fmt.Sprintf("%x", "PRIVATE")) || strings.Contains(got, "80, 82") {
				t.Errorf("%s of %T prints the key: %.80s", format, v, got)
			}
		}
	}
}

func TestSDSResubscription(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	w := newScripted(ca.identity(t, "/a"))
	e := newEnvoy(t, s.start("a", w), envoyNode(t, 34, nil))
	subscribe := func(names ...string) {
		t.Helper()
		w.taken(1, func() { e.subscribe(names...) })
	}
	rotate := func() {
		w.set(ca.identity(t, "/a"))
		w.waitAsked(1)
	}
	e.subscribe("default")
	wantNames(t, e.recvNth("1"), "default")
	one := e.last.GetVersionInfo()
	e.ack()
	e.subscribe("default", "ROOTCA") // more: everything is told
	wantNames(t, e.recvNth("2"), "default", "ROOTCA")
	if e.last.GetVersionInfo() == one {
		t.Error("other secrets under the same version")
	}
	w.taken(1, e.ack)
	subscribe("ROOTCA", "default") // the same in another order
	subscribe("ROOTCA")            // less: nothing to tell
	rotate()                       // the certificate is nobody's business any more
	e.subscribe("ROOTCA", "default")
	wantNames(t, e.recvNth("3"), "default", "ROOTCA") // and is again
	w.taken(1, e.ack)
	subscribe() // nothing at all, which is not everything: the client has named names before
	rotate()
	e.subscribe("default")
	wantNames(t, e.recvNth("4"), "default")
	e.ack()
	e.subscribe("*")
	wantNames(t, e.recvNth("5"), "spiffe://cluster.local", "spiffe://cluster.local/a")
	e.ack()
	e.subscribe("default", "*")
	wantNames(t, e.recvNth("6"), "default", "spiffe://cluster.local", "spiffe://cluster.local/a")
	w.taken(1, e.ack)
	subscribe("spiffe://cluster.local", "spiffe://cluster.local/a")
	e.subscribe("*") // new, though it comes to the same
	wantNames(t, e.recvNth("7"), "spiffe://cluster.local", "spiffe://cluster.local/a")
	e.names = []string{"default", "unknown"} // a rejection can change the subscription, too
	e.nack("no")
	wantNames(t, e.recvNth("8"), "default")
}

func TestSDSWildcardFollowsTheIdentity(t *testing.T) {
	ca, other := newAuthority(t, trustDomain), newAuthority(t, partner)
	s := newTestServer(t, Options{})
	w := newScripted(ca.identity(t, "/a"))
	addr := s.start("a", w)
	e, d := newEnvoy(t, addr, nil), newDeltaEnvoy(t, addr, nil)
	e.subscribe()
	wantNames(t, e.recvNth("1"), "spiffe://cluster.local", "spiffe://cluster.local/a")
	d.subscribe()
	secrets, _ := d.recv("1")
	wantNames(t, secrets, "spiffe://cluster.local", "spiffe://cluster.local/a")
	d.ack()
	more := federated(t, ca, other, "/a")
	w.set(more)
	wantNames(t, e.recvNth("2"), "spiffe://cluster.local", "spiffe://cluster.local/a", "spiffe://partner.example")
	secrets, _ = d.recv("2")
	wantNames(t, secrets, "spiffe://cluster.local/a", "spiffe://partner.example")
	less := more
	less.Bundles = x509bundle.NewSet(ca.bundle(), x509bundle.New(partner)) // no authority is no bundle
	w.set(less)
	wantNames(t, e.recvNth("3"), "spiffe://cluster.local", "spiffe://cluster.local/a")
	secrets, removed := d.recv("3")
	wantNames(t, secrets)
	if !slices.Equal(removed, []string{"spiffe://partner.example"}) {
		t.Errorf("removed %q", removed)
	}
	d.ack()
	again := less
	again.SVIDs = []*x509svid.SVID{ca.svid(t, "/a")}
	w.set(again)
	e.recvNth("4")
	secrets, removed = d.recv("4")
	wantNames(t, secrets, "spiffe://cluster.local/a")
	if len(removed) != 0 {
		t.Errorf("removed %q for the second time", removed)
	}
	e.ack()
	e.subscribe("default") // the wildcard without a name is over with the first name
	wantNames(t, e.recvNth("5"), "default")
}

func TestSDSStaleNoncesAreIgnored(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	registry := prometheus.NewRegistry()
	s := newTestServer(t, Options{Registerer: registry})
	w := newScripted(ca.identity(t, "/a"))
	e := newEnvoy(t, s.start("a", w), envoyNode(t, 34, nil))
	must(t, e.stream.Send(&discoveryv3.DiscoveryRequest{ResourceNames: []string{"default"}, ResponseNonce: "of an earlier stream", VersionInfo: "x"}))
	e.recvNth("1")
	nonces := []string{"", "0", "2", "18446744073709551616", "of an earlier stream", "-1"}
	w.taken(len(nonces), func() {
		for _, nonce := range nonces {
			must(t, e.stream.Send(&discoveryv3.DiscoveryRequest{ResourceNames: []string{"ROOTCA"}, ResponseNonce: nonce}))
		}
	})
	w.set(ca.identity(t, "/a"))
	wantNames(t, e.recvNth("2"), "default") // and not ROOTCA
	for range 2 {                           // The first is a late word on the first response, which counts; its names do not.
		must(t, e.stream.Send(&discoveryv3.DiscoveryRequest{ResourceNames: []string{"ROOTCA"}, ResponseNonce: "1"}))
	}
	e.subscribe("ROOTCA")
	wantNames(t, e.recvNth("3"), "ROOTCA")
	wantMetric(t, registry, `
		signet_workloadapi_sds_answers_total{result="accepted"} 2
		signet_workloadapi_sds_answers_total{result="rejected"} 0
		signet_workloadapi_sds_answers_total{result="stale"} 7
	`, "signet_workloadapi_sds_answers_total")
}

// TestSDSUnknownNames is Istio's agent, which asks for what SPIRE answers with an error that ends the stream.
func TestSDSUnknownNames(t *testing.T) {
	ca, other := newAuthority(t, trustDomain), newAuthority(t, partner)
	registry := prometheus.NewRegistry()
	s := newTestServer(t, Options{Registerer: registry})
	w := newScripted(ca.identity(t, "/a"))
	addr := s.start("a", w)
	e := newEnvoy(t, addr, envoyNode(t, 34, nil))
	e.subscribe("file-root:system", "default", "spiffe://partner.example")
	wantNames(t, e.recvNth("1"), "default")
	e.ack()
	alone := newEnvoy(t, addr, envoyNode(t, 34, nil))
	alone.subscribe("file-root:system")
	wantNames(t, alone.recvNth("1")) // answered, and with nothing
	alone.ack()
	d := newDeltaEnvoy(t, addr, envoyNode(t, 34, nil))
	d.subscribe("file-root:system", "spiffe://partner.example", "ROOTCA")
	secrets, removed := d.recv("1")
	wantNames(t, secrets, "ROOTCA")
	if !slices.Equal(removed, []string{"file-root:system", "spiffe://partner.example"}) {
		t.Errorf("removed %q", removed)
	}
	d.ack()

	i := federated(t, ca, other, "/a")
	i.SVIDs = w.identity.SVIDs
	w.set(i) // what was unknown becomes known
	wantNames(t, e.recvNth("2"), "default", "spiffe://partner.example")
	secrets, removed = d.recv("2")
	wantNames(t, secrets, "spiffe://partner.example")
	if len(removed) != 0 {
		t.Errorf("removed %q", removed)
	}
	back := i
	back.Bundles = x509bundle.NewSet(ca.bundle())
	w.set(back) // and unknown again
	wantNames(t, e.recvNth("3"), "default")
	_, removed = d.recv("3")
	if !slices.Equal(removed, []string{"spiffe://partner.example"}) {
		t.Errorf("removed %q", removed)
	}
	alone.subscribe("default")
	alone.recvNth("2")
	_, err := fetchSecrets(t, addr, nil, "fetched", "default")
	must(t, err)

	log := s.log.String()
	for _, name := range []string{"file-root:system", "spiffe://partner.example", "fetched"} {
		if n := strings.Count(log, name); n != 1 {
			t.Errorf("%q logged %d times:\n%s", name, n, log)
		}
	}
	if got := metricValue(t, registry, "signet_workloadapi_sds_unknown_names_total"); got != 2+1+2+1+1+1 {
		t.Errorf("unknown names %v", got)
	}
}

func metricValue(t *testing.T, r *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := r.Gather()
	must(t, err)
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// TestSDSNodeIsThatOfTheFirstRequest: later requests have none (SPIRE's KeepNodeInformation), or are not asked.
func TestSDSNodeIsThatOfTheFirstRequest(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	w := newScripted(ca.identity(t, "/a"))
	e := newEnvoy(t, s.start("a", w), envoyNode(t, 34, map[string]any{"disable_spiffe_cert_validation": true}))
	e.subscribe("ROOTCA")
	wantPlain(t, e.recv()["ROOTCA"], ca)
	e.ack()
	e.subscribe("ROOTCA", "default")
	wantPlain(t, e.recv()["ROOTCA"], ca)
	e.node = envoyNode(t, 34, nil)
	e.subscribe("ROOTCA", "spiffe://cluster.local")
	wantPlain(t, e.recv()["ROOTCA"], ca)
}

// TestSDSStates is design D7 for all three methods.
func TestSDSStates(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	open := map[string]func(t *testing.T, addr string) func() error{
		"stream": func(t *testing.T, addr string) func() error {
			e := newEnvoy(t, addr, nil)
			e.subscribe("default")
			return func() error { _, err := e.stream.Recv(); return err }
		},
		"delta": func(t *testing.T, addr string) func() error {
			e := newDeltaEnvoy(t, addr, nil)
			e.subscribe("default")
			return func() error { _, err := e.stream.Recv(); return err }
		},
		"fetch": func(t *testing.T, addr string) func() error {
			done := make(chan error, 1)
			cc := dial(t, addr)
			go func() {
				_, err := secretv3.NewSecretDiscoveryServiceClient(cc).FetchSecrets(context.Background(), &discoveryv3.DiscoveryRequest{})
				done <- err
			}()
			return func() error { return <-done }
		},
	}
	broken := ca.identity(t, "/a")
	broken.Bundles = x509bundle.NewSet(x509bundle.New(trustDomain))
	for method, open := range open {
		t.Run(method, func(t *testing.T) {
			s := newTestServer(t, Options{})
			for _, tt := range []struct {
				name     string
				identity Identity
				code     codes.Code
				text     string
			}{
				{"not entitled", Identity{Status: NotEntitled}, codes.PermissionDenied, "no identity issued"},
				{"initializing", Identity{}, codes.Unavailable, "starting"},
				{"broken", broken, codes.Unavailable, "could not serialize"},
				{"empty", Identity{Status: Entitled, TrustDomain: trustDomain}, codes.Unavailable, "could not serialize"},
				{"nil svid", Identity{Status: Entitled, TrustDomain: trustDomain, SVIDs: []*x509svid.SVID{nil}}, codes.Unavailable, "could not serialize"},
				{"svid without key", Identity{Status: Entitled, TrustDomain: trustDomain, SVIDs: []*x509svid.SVID{{ID: spiffeid.RequireFromPath(trustDomain, "/a")}}}, codes.Unavailable, "could not serialize"},
			} {
				t.Run(tt.name, func(t *testing.T) {
					w := newScripted(tt.identity)
					defer s.Detach(w)
					wantStatus(t, open(t, s.start(strings.ReplaceAll(tt.name, " ", "-"), w))(), tt.code, tt.text)
				})
			}
			t.Run("pending is held", func(t *testing.T) {
				w := newScripted(Identity{Status: Pending})
				defer s.Detach(w)
				recv := open(t, s.start("pending", w))
				w.waitAsked(1)
				w.set(ca.identity(t, "/a"))
				must(t, recv())
			})
			t.Run("pending is refused", func(t *testing.T) {
				w := newScripted(Identity{Status: Pending})
				defer s.Detach(w)
				recv := open(t, s.start("refused", w))
				w.waitAsked(1)
				w.set(Identity{Status: NotEntitled})
				wantStatus(t, recv(), codes.PermissionDenied, "no identity issued")
			})
			t.Run("detached", func(t *testing.T) {
				w := newScripted(Identity{Status: Pending})
				recv := open(t, s.start("detached", w))
				w.waitAsked(1)
				s.Detach(w)
				wantStatus(t, recv(), codes.PermissionDenied, "no identity issued")
			})
			t.Run("shutdown", func(t *testing.T) {
				s := newTestServer(t, Options{})
				w := newScripted(Identity{Status: Pending})
				recv := open(t, s.start("shutdown", w))
				w.waitAsked(1)
				must(t, s.Shutdown(context.Background()))
				wantStatus(t, recv(), codes.Unavailable, "shutting down")
			})
		})
	}
}

// TestSDSStreamsEndMidway: each way a stream that has been told something can end, and those that do not end it.
func TestSDSStreamsEndMidway(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	first, last := ca.identity(t, "/a"), ca.identity(t, "/a")
	broken := first
	broken.Bundles = nil
	s := newTestServer(t, Options{})
	w := newScripted(first)
	addr := s.start("a", w)
	e, d := newEnvoy(t, addr, nil), newDeltaEnvoy(t, addr, nil)
	e.subscribe("default")
	e.recvNth("1")
	d.subscribe("default")
	d.recv("1")
	for _, i := range []Identity{{Status: Pending}, broken, first} { // what a proxy has is better than an error
		w.set(i)
		w.waitAsked(2)
	}
	w.set(last)
	wantCertificate(t, e.recvNth("2")["default"], last.SVIDs[0])
	d.recv("2")
	w.set(Identity{Status: NotEntitled})
	_, err := e.stream.Recv()
	wantStatus(t, err, codes.PermissionDenied, "no identity issued")
	_, err = d.stream.Recv()
	wantStatus(t, err, codes.PermissionDenied, "no identity issued")
	if n := strings.Count(s.log.String(), "cannot be served to proxies"); n != 1 {
		t.Errorf("%d errors logged, want 1", n)
	}
}

// TestSDSHalfClosedStreamsAreAnsweredAndEnd: a client that will send nothing more gets what it has asked for.
func TestSDSHalfClosedStreamsAreAnsweredAndEnd(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	w := newScripted(Identity{Status: Pending})
	addr := s.start("a", w)
	e, d, idle := newEnvoy(t, addr, nil), newDeltaEnvoy(t, addr, nil), newEnvoy(t, addr, nil)
	must(t, idle.stream.CloseSend()) // has asked for nothing
	if _, err := idle.stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("got %v, want the end", err)
	}
	e.subscribe("default")
	must(t, e.stream.CloseSend())
	d.subscribe("default")
	must(t, d.stream.CloseSend())
	w.waitAsked(2 + 3 + 3) // each at its start, after its request and after its end
	w.set(ca.identity(t, "/a"))
	wantNames(t, e.recv(), "default")
	d.recv("1")
	if _, err := e.stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("got %v, want the end", err)
	}
	if _, err := d.stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("got %v, want the end", err)
	}
}

func TestSDSDeltaSubscriptions(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	w := newScripted(ca.identity(t, "/a"))
	e := newDeltaEnvoy(t, s.start("a", w), envoyNode(t, 34, nil))
	recv := func(n string, want, gone []string) {
		t.Helper()
		secrets, removed := e.recv(n)
		wantNames(t, secrets, want...)
		if !slices.Equal(removed, gone) {
			t.Errorf("removed %q, want %q", removed, gone)
		}
		w.taken(1, e.ack)
	}
	e.subscribe("default")
	recv("1", []string{"default"}, nil)
	e.subscribe("ROOTCA", "nothing") // only what is new is told
	recv("2", []string{"ROOTCA"}, []string{"nothing"})
	e.subscribe("default", "nothing") // again: the client may have dropped it
	recv("3", []string{"default"}, []string{"nothing"})
	w.taken(1, func() { e.unsubscribe("default", "never asked for") })
	w.set(ca.identity(t, "/a"))
	w.waitAsked(1)
	e.subscribe("ALL")
	recv("4", []string{"ALL"}, nil) // without default
	e.send(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"default"}, ResourceNamesUnsubscribe: []string{"ALL"}})
	recv("5", []string{"default"}, nil)
	e.subscribe("*")
	recv("6", []string{"spiffe://cluster.local", "spiffe://cluster.local/a"}, nil)
	e.subscribe("*") // again: the client may have dropped them
	recv("7", []string{"spiffe://cluster.local", "spiffe://cluster.local/a"}, nil)
	e.subscribe("spiffe://cluster.local/a")
	recv("8", []string{"spiffe://cluster.local/a"}, nil)
	e.unsubscribe("spiffe://cluster.local/a", "default") // is the first still part of the wildcard? and the second?
	recv("9", []string{"spiffe://cluster.local/a"}, []string{"default"})
	w.taken(1, func() { e.unsubscribe("*") })
	w.set(ca.identity(t, "/a"))
	w.waitAsked(1)
	e.subscribe("default")
	recv("10", []string{"default"}, nil) // and none of the wildcard's
}

// TestSDSDeltaReconnect: a client that says what it has is told what it has not.
func TestSDSDeltaReconnect(t *testing.T) {
	ca, other := newAuthority(t, trustDomain), newAuthority(t, partner)
	i := federated(t, ca, other, "/a")
	before := newTestServer(t, Options{})
	addr := before.start("a", newScripted(i))
	e := newDeltaEnvoy(t, addr, nil)
	e.subscribe("default", "ROOTCA", "spiffe://partner.example")
	e.recv("1")
	e.ack()
	must(t, before.Shutdown(context.Background()))

	after := newTestServer(t, Options{}) // another agent: versions are those of the content
	i.SVIDs = []*x509svid.SVID{ca.svid(t, "/a")}
	i.Bundles = x509bundle.NewSet(ca.bundle())
	w := newScripted(i)
	addr = after.start("a", w)
	again := newDeltaEnvoy(t, addr, nil)
	again.send(&discoveryv3.DeltaDiscoveryRequest{
		ResourceNamesSubscribe: []string{"default", "ROOTCA", "spiffe://partner.example"}, InitialResourceVersions: e.has, ResponseNonce: "17",
	})
	secrets, removed := again.recv("1")
	wantNames(t, secrets, "default") // ROOTCA is the same
	if !slices.Equal(removed, []string{"spiffe://partner.example"}) {
		t.Errorf("removed %q", removed)
	}
	again.ack()

	third := newDeltaEnvoy(t, addr, nil) // has everything
	third.send(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"ROOTCA"}, InitialResourceVersions: map[string]string{"ROOTCA": e.has["ROOTCA"]}})
	third.subscribe("default")
	secrets, _ = third.recv("1")
	wantNames(t, secrets, "default")

	done := newDeltaEnvoy(t, addr, nil) // the same, and wants no more
	done.send(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"ROOTCA"}, InitialResourceVersions: map[string]string{"ROOTCA": e.has["ROOTCA"]}})
	must(t, done.stream.CloseSend())
	if _, err := done.stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("got %v, want the end", err)
	}

	wild := newDeltaEnvoy(t, addr, nil)
	wild.send(&discoveryv3.DeltaDiscoveryRequest{InitialResourceVersions: map[string]string{
		"spiffe://cluster.local": e.has["ROOTCA"], "spiffe://cluster.local/old": "x",
	}})
	secrets, removed = wild.recv("1")
	wantNames(t, secrets, "spiffe://cluster.local/a")
	if !slices.Equal(removed, []string{"spiffe://cluster.local/old"}) {
		t.Errorf("removed %q", removed)
	}
}

// TestSDSDeltaAnswers: several responses may be under way, and each is answered once.
func TestSDSDeltaAnswers(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	registry := prometheus.NewRegistry()
	s := newTestServer(t, Options{Registerer: registry})
	w := newScripted(ca.identity(t, "/a"))
	e := newDeltaEnvoy(t, s.start("a", w), nil)
	e.subscribe("default")
	e.recv("1")
	w.set(ca.identity(t, "/a"))
	e.recv("2")
	for _, nonce := range []string{"1", "1", "2", "2", "3", "x", "0", "1"} {
		e.send(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: nonce})
	}
	e.send(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: "nonsense", ResourceNamesSubscribe: []string{"ROOTCA"}}) // counts all the same
	secrets, _ := e.recv("3")
	wantNames(t, secrets, "ROOTCA")
	wantMetric(t, registry, `
		signet_workloadapi_sds_answers_total{result="accepted"} 2
		signet_workloadapi_sds_answers_total{result="rejected"} 0
		signet_workloadapi_sds_answers_total{result="stale"} 6
	`, "signet_workloadapi_sds_answers_total")
}

// TestSDSRequestBeforeTheIdentity: what is asked for while the SVID is pending is answered once, with the last subscription.
func TestSDSRequestBeforeTheIdentity(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	w := newScripted(Identity{Status: Pending})
	addr := s.start("a", w)
	e, d := newEnvoy(t, addr, nil), newDeltaEnvoy(t, addr, nil)
	e.subscribe("default")
	e.subscribe("ROOTCA")
	d.subscribe("default")
	d.subscribe("ROOTCA")
	w.waitAsked(6) // each stream at its start and after each request
	w.set(ca.identity(t, "/a"))
	wantNames(t, e.recvNth("1"), "ROOTCA")
	secrets, _ := d.recv("1")
	wantNames(t, secrets, "ROOTCA", "default")
}

func TestSDSHostileRequests(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	w := newScripted(ca.identity(t, "/a"))
	addr := s.start("a", w)
	many := make([]string, 10_000)
	for n := range many {
		many[n] = fmt.Sprint("n", n)
	}
	long := []string{strings.Repeat("x", maxSecretNameBytes/2), strings.Repeat("y", maxSecretNameBytes/2)}
	hoard := make(map[string]any)
	for n := range 4000 {
		hoard[fmt.Sprint("label-", n)] = "value"
	}
	for _, tt := range []struct {
		name    string
		request *discoveryv3.DiscoveryRequest
		code    codes.Code
		text    string
	}{
		{"10,000 names", &discoveryv3.DiscoveryRequest{ResourceNames: many}, codes.ResourceExhausted, "too many secrets"},
		{"another type", &discoveryv3.DiscoveryRequest{TypeUrl: "type.googleapis.com/envoy.api.v2.auth.Secret"}, codes.InvalidArgument, "this service has"},
		{"a type without end", &discoveryv3.DiscoveryRequest{TypeUrl: strings.Repeat("x", 100_000)}, codes.InvalidArgument, "this service has"},
		{"a request too large", &discoveryv3.DiscoveryRequest{ResourceNames: append(long, "z")}, codes.ResourceExhausted, ""},
		{"large metadata", &discoveryv3.DiscoveryRequest{Node: envoyNode(t, 34, hoard), ResourceNames: []string{"default"}}, codes.OK, ""},
		{"1,024 names", &discoveryv3.DiscoveryRequest{ResourceNames: many[:1024]}, codes.OK, ""},
		{"strange names", &discoveryv3.DiscoveryRequest{ResourceNames: []string{"\x00", "\n", "spiffe://", "💥", "default", strings.Repeat("%s", 100)}}, codes.OK, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			client := secretv3.NewSecretDiscoveryServiceClient(dial(t, addr))
			check := func(err error) {
				t.Helper()
				if tt.code == codes.OK {
					must(t, err)
					return
				}
				wantStatus(t, err, tt.code, tt.text)
				if len(err.Error()) > 1000 {
					t.Errorf("error of %d bytes", len(err.Error()))
				}
			}
			_, err := client.FetchSecrets(testContext(t), tt.request)
			check(err)
			stream, err := client.StreamSecrets(testContext(t))
			must(t, err)
			_ = stream.Send(tt.request) // the server may have ended it already
			_, err = stream.Recv()
			check(err)
			delta, err := client.DeltaSecrets(testContext(t))
			must(t, err)
			_ = delta.Send(&discoveryv3.DeltaDiscoveryRequest{Node: tt.request.Node, TypeUrl: tt.request.TypeUrl, ResourceNamesSubscribe: tt.request.ResourceNames})
			_, err = delta.Recv()
			check(err)
		})
	}
	t.Run("an incremental client that adds without end", func(t *testing.T) {
		d := newDeltaEnvoy(t, addr, nil)
		var err error
		for n := 0; err == nil && n <= maxSecretNameBytes/10_000; n++ {
			_ = d.stream.Send(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{fmt.Sprint(n, strings.Repeat("x", 10_000))}})
			_, err = d.stream.Recv()
		}
		wantStatus(t, err, codes.ResourceExhausted, "too many secrets")
	})
	t.Run("initial versions without end", func(t *testing.T) {
		d := newDeltaEnvoy(t, addr, nil)
		versions := make(map[string]string)
		for _, name := range many[:2000] {
			versions[name] = "x"
		}
		d.send(&discoveryv3.DeltaDiscoveryRequest{InitialResourceVersions: versions})
		_, err := d.stream.Recv()
		wantStatus(t, err, codes.ResourceExhausted, "too many secrets")
	})
	t.Run("garbage", func(t *testing.T) {
		cc := dial(t, addr, grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawCodec{})))
		for _, method := range []string{secretv3.SecretDiscoveryService_StreamSecrets_FullMethodName, secretv3.SecretDiscoveryService_DeltaSecrets_FullMethodName} {
			stream, err := cc.NewStream(testContext(t), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
			must(t, err)
			must(t, stream.SendMsg([]byte("\xff\xff\xff\xff\xff")))
			var got []byte
			wantStatus(t, stream.RecvMsg(&got), codes.Internal, "unmarshal")
		}
	})
	if got := len(s.log.String()); got > 64<<10 {
		t.Errorf("%d bytes of log", got)
	}
	e := newEnvoy(t, addr, nil) // still at work
	e.subscribe("default")
	wantNames(t, e.recv(), "default")
}

// TestSDSReleasedNamesAreBounded: while an identity is pending nothing is told, so a client that takes names up and drops them
// again must not fill the agent's memory with what is to be told. Once it is told, the stream goes on.
func TestSDSReleasedNamesAreBounded(t *testing.T) {
	drop := func(s *incremental, name string) error {
		if _, err := s.receive(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{wildcardName, name}}); err != nil {
			return err
		}
		_, err := s.receive(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesUnsubscribe: []string{name}})
		return err
	}
	for what, name := range map[string]string{"names": "", "bytes": strings.Repeat("x", 10_000)} {
		t.Run(what, func(t *testing.T) {
			s := newIncremental(SDSOptions{}.settings())
			var err error
			for n := 0; err == nil && n <= maxSecretNames; n++ {
				err = drop(s, fmt.Sprint(n, name))
			}
			wantStatus(t, err, codes.ResourceExhausted, "too many secrets")
		})
	}
	t.Run("told", func(t *testing.T) {
		ca := newAuthority(t, trustDomain)
		c, err := newCatalog(ca.identity(t, "/a"))
		must(t, err)
		s := newIncremental(SDSOptions{}.settings())
		for n := range 3 * maxSecretNames {
			must(t, drop(s, fmt.Sprint(n)))
			if r := s.respond(c); !slices.Equal(r.GetRemovedResources(), []string{fmt.Sprint(n)}) {
				t.Fatalf("told that %q are gone, want %d", r.GetRemovedResources(), n)
			}
		}
		if s.bytes != 0 || len(s.released) != 0 {
			t.Errorf("%d bytes and %d names are still counted", s.bytes, len(s.released))
		}
	})
}

// TestSDSSocketsSpeakForTheirOwn: no name opens another workload's secrets.
func TestSDSSocketsSpeakForTheirOwn(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	a := s.start("a", newScripted(ca.identity(t, "/a")))
	s.start("b", newScripted(ca.identity(t, "/b")))
	node := envoyNode(t, 34, map[string]any{"default_svid_name": "spiffe://cluster.local/b"})
	e := newEnvoy(t, a, node)
	e.subscribe("spiffe://cluster.local/b")
	for name, secret := range e.recv() { // the proxy's own name for its own SVID
		got, err := x509svid.Parse(secret.GetTlsCertificate().GetCertificateChain().GetInlineBytes(), secret.GetTlsCertificate().GetPrivateKey().GetInlineBytes())
		must(t, err)
		if got.ID.Path() != "/a" {
			t.Errorf("%s is the SVID of %s", name, got.ID)
		}
	}
}

func TestSDSDisabled(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	registry := prometheus.NewRegistry()
	s := newTestServer(t, Options{Registerer: registry, SDS: SDSOptions{Disabled: true}})
	_, err := fetchSecrets(t, s.start("a", newScripted(ca.identity(t, "/a"))), nil, "default")
	wantStatus(t, err, codes.Unimplemented, "SecretDiscoveryService")
}

func TestSDSOptionsValidate(t *testing.T) {
	for _, tt := range []struct {
		options SDSOptions
		problem string
	}{
		{SDSOptions{}, ""},
		{SDSOptions{SVIDName: "a", BundleName: "b", AllBundlesName: "c"}, ""},
		{SDSOptions{BundleName: "null", AllBundlesName: "ROOTCA"}, ""},
		{SDSOptions{BundleName: "ALL"}, ""},
		{SDSOptions{SVIDName: "ROOTCA"}, "an SVID and a bundle"},
		{SDSOptions{AllBundlesName: "default"}, "an SVID and a bundle"},
		{SDSOptions{SVIDName: "*"}, "must be"},
		{SDSOptions{BundleName: strings.Repeat("x", 3000)}, "must be"},
	} {
		switch err := tt.options.Validate(); {
		case tt.problem == "" && err != nil:
			t.Errorf("%.60v: %v", tt.options, err)
		case tt.problem != "" && (err == nil || !strings.Contains(err.Error(), tt.problem)):
			t.Errorf("%.60v: got %v, want %q", tt.options, err, tt.problem)
		}
	}
}

func TestSDSHintsAreBounded(t *testing.T) {
	var notes sdsNotes
	var names []string
	for n := range 100 {
		names = append(names, fmt.Sprint("n", n))
	}
	if got := notes.fresh(names[:3]); !slices.Equal(got, names[:3]) {
		t.Errorf("got %q", got)
	}
	if got := notes.fresh(names[:3]); len(got) != 0 {
		t.Errorf("got %q for the second time", got)
	}
	if got := notes.fresh(names); !slices.Equal(got, names[3:maxHints]) {
		t.Errorf("got %q", got)
	}
	if got := notes.fresh([]string{"another"}); len(got) != 0 {
		t.Errorf("got %q beyond the limit", got)
	}
}

func TestPresentable(t *testing.T) {
	for in, want := range map[string]string{
		"no such curve": "no such curve",
		"spiffe://cluster.local/ns/a-very-long-namespace-name/sa/a-very-long-account": "spiffe://cluster.local/ns/a-very-long-namespace-name/sa/a-very-long-account",
		"bad \xff\xfe":                   "bad ?",
		`x inline_bytes: "abc`:           "x [the rest may hold secrets]",
		"MIGHAgEAMBMGByqGSM49AgEGCCqG!":  "[28 characters]!",
		strings.Repeat("ab ", 200):       strings.Repeat("ab ", 85) + "a",
		strings.Repeat("é", 200):         strings.Repeat("é", 128),
		strings.Repeat("a ", 90) + "é é": strings.Repeat("a ", 90) + "é é",
	} {
		if got := presentable(in); got != want {
			t.Errorf("presentable(%.60q) = %q, want %q", in, got, want)
		}
	}
}
