// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package evaluate

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/signet-spiffe/signet/internal/identity"
	"github.com/signet-spiffe/signet/internal/pki"
	"github.com/signet-spiffe/signet/internal/request"
)

const (
	testDriver = "spiffe.csi.cert-manager.io"
	testAgent  = "system:serviceaccount:signet-system:signet-agent"
	testID     = "spiffe://example.org/ns/shop/sa/cart"
)

var (
	testNow    = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	testIssuer = cmmeta.IssuerReference{Name: "spiffe-ca", Kind: "ClusterIssuer", Group: "cert-manager.io"}
	testTD     = spiffeid.RequireTrustDomainFromString("example.org")
)

// testKey is shared: what varies in these tests is never the key's value.
var testKey = sync.OnceValue(func() pki.PrivateKey {
	key, err := pki.GenerateKey(pki.P256)
	if err != nil {
		panic(err)
	}
	return key
})

func policy(t testing.TB) Policy {
	t.Helper()
	template, err := identity.ParseTemplate(identity.DefaultTemplate)
	if err != nil {
		t.Fatal(err)
	}
	return Policy{
		Driver: testDriver, Issuers: []cmmeta.IssuerReference{testIssuer}, TrustDomain: testTD, Template: template,
		Duration: time.Hour, KeyTypes: pki.KeyTypes(), AgentUsername: testAgent,
	}
}

// valid is the request as the agent makes it and the API server completes it.
func valid(t testing.TB) *cmapi.CertificateRequest {
	t.Helper()
	id := spiffeid.RequireFromString(testID)
	csr, err := pki.NewCSR(testKey(), id, "")
	if err != nil {
		t.Fatal(err)
	}
	cr := request.New(request.Spec{
		Driver: testDriver, Node: "node-a", VolumeID: "csi-1", ID: id, CSR: csr, Issuer: testIssuer, Duration: time.Hour,
		Pod: request.Pod{Namespace: "shop", Name: "cart-0", UID: "uid-1", ServiceAccount: "cart"},
	})
	cr.Spec.Username = testAgent
	cr.Spec.Extra = map[string][]string{
		request.ExtraNodeName: {"node-a"},
		request.ExtraPodName:  {"signet-agent-x"},
		request.ExtraPodUID:   {"agent-uid"},
	}
	return cr
}

func validPod() Pod {
	return Pod{Found: true, UID: "uid-1", NodeName: "node-a", ServiceAccount: "cart", Drivers: []string{"other.csi", testDriver}}
}

// wantDenied checks a denial's rule, and that its message names the rule and
// holds every fragment.
func wantDenied(t *testing.T, v Verdict, rule Rule, fragments ...string) {
	t.Helper()
	if v.Decision != Deny || v.Rule != rule {
		t.Fatalf("decision %s by rule %q (%s), want denied by %q", v.Decision, v.Rule, v.Message, rule)
	}
	for _, want := range append(fragments, "Denied request: ", fmt.Sprintf("rule %q", rule)) {
		if !strings.Contains(v.Message, want) {
			t.Errorf("message %q lacks %q", v.Message, want)
		}
	}
}

func TestApproveAgent(t *testing.T) {
	p := policy(t)
	cr := valid(t)
	first := Evaluate(Request{cr}, Facts{Now: testNow}, p)
	if first.Decision != NeedPod || first.Pod != (PodRef{"shop", "cart-0"}) {
		t.Fatalf("without facts: %+v, want the pod to be looked up", first)
	}
	pod := validPod()
	v := Evaluate(Request{cr}, Facts{Now: testNow, Pod: &pod}, p)
	if v.Decision != Approve || v.ID.String() != testID || v.Rule != "" {
		t.Fatalf("%+v, want approved", v)
	}
	if !strings.HasPrefix(v.Message, "Approved request") || !strings.Contains(v.Message, testID) {
		t.Errorf("message %q", v.Message)
	}
}

func TestApproveEveryKeyType(t *testing.T) {
	for _, kt := range pki.KeyTypes() {
		t.Run(string(kt), func(t *testing.T) {
			key, err := pki.GenerateKey(kt)
			if err != nil {
				t.Fatal(err)
			}
			cr := valid(t)
			cr.Spec.Request, err = pki.NewCSR(key, spiffeid.RequireFromString(testID), "")
			if err != nil {
				t.Fatal(err)
			}
			p := policy(t)
			pod := validPod()
			if v := Evaluate(Request{cr}, Facts{Now: testNow, Pod: &pod}, p); v.Decision != Approve {
				t.Errorf("%+v, want approved", v)
			}
			p.KeyTypes = slices.DeleteFunc(p.KeyTypes, func(k pki.KeyType) bool { return k == kt })
			wantDenied(t, Evaluate(Request{cr}, Facts{Now: testNow, Pod: &pod}, p), RuleKeyType, string(kt))
		})
	}
}

// TestApproveHarmless: what a request may vary in without being refused.
func TestApproveHarmless(t *testing.T) {
	for name, change := range map[string]func(cr *cmapi.CertificateRequest, pod *Pod, p *Policy){
		"usages in another order": func(cr *cmapi.CertificateRequest, _ *Pod, _ *Policy) { slices.Reverse(cr.Spec.Usages) },
		"no driver annotation": func(cr *cmapi.CertificateRequest, _ *Pod, _ *Policy) {
			delete(cr.Annotations, request.AnnotationDriver)
		},
		"white space around the CSR": func(cr *cmapi.CertificateRequest, _ *Pod, _ *Policy) {
			cr.Spec.Request = append([]byte("\n "), append(cr.Spec.Request, " \n\n"...)...)
		},
		"usage extensions as allowed": func(cr *cmapi.CertificateRequest, _ *Pod, _ *Policy) {
			cr.Spec.Request = csrWith(san(uri(testID)), keyUsageExt(0b10100000, 5), ekuExt(oidServerAuth, oidClientAuth))
		},
		"SAN not critical": func(cr *cmapi.CertificateRequest, _ *Pod, _ *Policy) {
			e := san(uri(testID))
			e.Critical = false
			cr.Spec.Request = csrWith(e)
		},
		"pod in its grace period": func(_ *cmapi.CertificateRequest, pod *Pod, _ *Policy) { pod.GoneAt = testNow.Add(time.Minute) },
		"grace period over, within clock skew": func(_ *cmapi.CertificateRequest, pod *Pod, _ *Policy) {
			pod.GoneAt = testNow.Add(-clockSkew)
		},
		"issuer defaults spelled out": func(cr *cmapi.CertificateRequest, _ *Pod, p *Policy) {
			p.Issuers = []cmmeta.IssuerReference{{Name: "local"}}
			cr.Spec.IssuerRef = cmmeta.IssuerReference{Name: "local", Kind: "Issuer", Group: "cert-manager.io"}
		},
		"second issuer of two": func(_ *cmapi.CertificateRequest, _ *Pod, p *Policy) {
			p.Issuers = []cmmeta.IssuerReference{{Name: "older", Kind: "ClusterIssuer"}, testIssuer}
		},
		"agent, where pods may ask too": func(_ *cmapi.CertificateRequest, _ *Pod, p *Policy) { p.AllowPod = true },
	} {
		t.Run(name, func(t *testing.T) {
			cr, pod, p := valid(t), validPod(), policy(t)
			change(cr, &pod, &p)
			if v := Evaluate(Request{cr}, Facts{Now: testNow, Pod: &pod}, p); v.Decision != Approve {
				t.Errorf("%+v, want approved", v)
			}
		})
	}
}

// TestDenySpec: each case is the valid request but for one thing outside the CSR.
func TestDenySpec(t *testing.T) {
	for _, c := range []struct {
		name   string
		rule   Rule
		change func(cr *cmapi.CertificateRequest)
		says   []string
	}{
		{"issuer name", RuleIssuer, func(cr *cmapi.CertificateRequest) { cr.Spec.IssuerRef.Name = "letsencrypt-prod" }, []string{"letsencrypt-prod", "spiffe-ca"}},
		{"issuer kind", RuleIssuer, func(cr *cmapi.CertificateRequest) { cr.Spec.IssuerRef.Kind = "Issuer" }, nil},
		{"issuer kind left out", RuleIssuer, func(cr *cmapi.CertificateRequest) { cr.Spec.IssuerRef.Kind = "" }, []string{"Issuer.cert-manager.io/spiffe-ca"}},
		{"issuer group", RuleIssuer, func(cr *cmapi.CertificateRequest) { cr.Spec.IssuerRef.Group = "awspca.cert-manager.io" }, nil},
		{"duration longer", RuleDuration, func(cr *cmapi.CertificateRequest) { cr.Spec.Duration.Duration += time.Nanosecond }, []string{"1h0m0.000000001s", "exactly 1h0m0s"}},
		{"duration shorter", RuleDuration, func(cr *cmapi.CertificateRequest) { cr.Spec.Duration.Duration = time.Minute }, nil},
		{"no duration", RuleDuration, func(cr *cmapi.CertificateRequest) { cr.Spec.Duration = nil }, []string{"no duration"}},
		{"CA", RuleCA, func(cr *cmapi.CertificateRequest) { cr.Spec.IsCA = true }, nil},
		{"usage added", RuleUsages, func(cr *cmapi.CertificateRequest) {
			cr.Spec.Usages = append(cr.Spec.Usages, cmapi.UsageCertSign)
		}, []string{"cert sign"}},
		{"usage missing", RuleUsages, func(cr *cmapi.CertificateRequest) { cr.Spec.Usages = cr.Spec.Usages[1:] }, nil},
		{"usage repeated for another", RuleUsages, func(cr *cmapi.CertificateRequest) { cr.Spec.Usages[1] = cr.Spec.Usages[0] }, nil},
		{"no usages", RuleUsages, func(cr *cmapi.CertificateRequest) { cr.Spec.Usages = nil }, nil},
		{"no owner", RuleOwner, func(cr *cmapi.CertificateRequest) { cr.OwnerReferences = nil }, []string{"0 owner"}},
		{"two owners", RuleOwner, func(cr *cmapi.CertificateRequest) {
			cr.OwnerReferences = append(cr.OwnerReferences, cr.OwnerReferences[0])
		}, []string{"2 owner"}},
		{"owner is no pod", RuleOwner, func(cr *cmapi.CertificateRequest) { cr.OwnerReferences[0].Kind = "Node" }, []string{"Node"}},
		{"owner is a pod of another API", RuleOwner, func(cr *cmapi.CertificateRequest) { cr.OwnerReferences[0].APIVersion = "example.org/v1" }, nil},
		{"owner without UID", RuleOwner, func(cr *cmapi.CertificateRequest) { cr.OwnerReferences[0].UID = "" }, nil},
		{"owner without name", RuleOwner, func(cr *cmapi.CertificateRequest) { cr.OwnerReferences[0].Name = "" }, nil},
		{"annotation names another", RuleAnnotation, func(cr *cmapi.CertificateRequest) {
			cr.Annotations[request.AnnotationIdentity] = "spiffe://example.org/ns/shop/sa/other"
		}, []string{"sa/other", "sa/cart"}},
		{"annotation empty", RuleAnnotation, func(cr *cmapi.CertificateRequest) { cr.Annotations[request.AnnotationIdentity] = "" }, nil},
		{"annotation with white space", RuleAnnotation, func(cr *cmapi.CertificateRequest) { cr.Annotations[request.AnnotationIdentity] += "\n" }, nil},
		{"namespace is not the identity's", RuleIdentity, func(cr *cmapi.CertificateRequest) { cr.Namespace = "other" }, []string{"ns/other", "ns/shop"}},
		{"another service account asks", RuleRequester, func(cr *cmapi.CertificateRequest) {
			cr.Spec.Username = "system:serviceaccount:signet-system:signet-approver"
		}, []string{"signet-approver", testAgent}},
		{"a user with the agent's name in another case", RuleRequester, func(cr *cmapi.CertificateRequest) { cr.Spec.Username = strings.ToUpper(testAgent) }, nil},
		{"nobody asks", RuleRequester, func(cr *cmapi.CertificateRequest) { cr.Spec.Username = "" }, nil},
		{"the pod itself asks", RuleRequester, func(cr *cmapi.CertificateRequest) { cr.Spec.Username = "system:serviceaccount:shop:cart" }, nil},
		{"token without node", RuleToken, func(cr *cmapi.CertificateRequest) { delete(cr.Spec.Extra, request.ExtraNodeName) }, []string{request.ExtraNodeName, "1.32"}},
		{"token with empty node", RuleToken, func(cr *cmapi.CertificateRequest) { cr.Spec.Extra[request.ExtraNodeName] = []string{""} }, nil},
		{"token with two nodes", RuleToken, func(cr *cmapi.CertificateRequest) {
			cr.Spec.Extra[request.ExtraNodeName] = []string{"node-a", "node-b"}
		}, []string{"2 nodes"}},
		{"no extra at all", RuleToken, func(cr *cmapi.CertificateRequest) { cr.Spec.Extra = nil }, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			cr, pod := valid(t), validPod()
			c.change(cr)
			wantDenied(t, Evaluate(Request{cr}, Facts{Now: testNow, Pod: &pod}, policy(t)), c.rule, c.says...)
		})
	}
}

// TestDenyPod: each case is the valid pod but for one thing.
func TestDenyPod(t *testing.T) {
	for _, c := range []struct {
		name   string
		rule   Rule
		change func(p *Pod)
		says   []string
	}{
		{"does not exist", RulePodExists, func(p *Pod) { *p = Pod{} }, []string{"shop/cart-0"}},
		{"other UID", RulePodUID, func(p *Pod) { p.UID = "uid-2" }, []string{"uid-1", "uid-2"}},
		{"other node", RulePodNode, func(p *Pod) { p.NodeName = "node-b" }, []string{"node-a", "node-b"}},
		{"not scheduled", RulePodNode, func(p *Pod) { p.NodeName = "" }, nil},
		{"does not mount the driver", RulePodDriver, func(p *Pod) { p.Drivers = []string{"other.csi"} }, []string{testDriver}},
		{"mounts nothing", RulePodDriver, func(p *Pod) { p.Drivers = nil }, nil},
		{"finished", RulePodRunning, func(p *Pod) { p.Finished = true }, []string{"finished"}},
		{"past its grace period", RulePodRunning, func(p *Pod) { p.GoneAt = testNow.Add(-clockSkew - time.Second) }, []string{"gone"}},
		{"other service account", RuleIdentity, func(p *Pod) { p.ServiceAccount = "default" }, []string{"sa/default", "sa/cart"}},
		{"mirror pod, without service account", RuleIdentity, func(p *Pod) { p.ServiceAccount = "" }, []string{"no identity"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			pod := validPod()
			c.change(&pod)
			wantDenied(t, Evaluate(Request{valid(t)}, Facts{Now: testNow, Pod: &pod}, policy(t)), c.rule, c.says...)
		})
	}
}

// asPod turns the valid request into one made with the pod's own token.
func asPod(cr *cmapi.CertificateRequest) *cmapi.CertificateRequest {
	cr.Spec.Username = "system:serviceaccount:shop:cart"
	cr.Spec.Extra = map[string][]string{
		request.ExtraNodeName: {"node-a"}, request.ExtraPodName: {"cart-0"}, request.ExtraPodUID: {"uid-1"},
	}
	return cr
}

func TestRequesterPod(t *testing.T) {
	p := policy(t)
	p.AgentUsername, p.AllowPod = "", true
	for _, c := range []struct {
		name   string
		rule   Rule // empty: approved
		change func(cr *cmapi.CertificateRequest)
	}{
		{"its own identity", "", func(*cmapi.CertificateRequest) {}},
		{"with a token that names no pod", "", func(cr *cmapi.CertificateRequest) { cr.Spec.Extra = nil }},
		{"another service account's identity", RuleIdentity, func(cr *cmapi.CertificateRequest) { cr.Spec.Username = "system:serviceaccount:shop:other" }},
		{"from another namespace", RuleRequester, func(cr *cmapi.CertificateRequest) { cr.Spec.Username = "system:serviceaccount:other:cart" }},
		{"into another namespace", RuleIdentity, func(cr *cmapi.CertificateRequest) {
			cr.Namespace = "other"
			cr.Spec.Username = "system:serviceaccount:other:cart"
		}},
		{"a user", RuleRequester, func(cr *cmapi.CertificateRequest) { cr.Spec.Username = "kubernetes-admin" }},
		{"the agent, which may not", RuleRequester, func(cr *cmapi.CertificateRequest) { cr.Spec.Username = testAgent }},
		{"a token of another pod", RuleToken, func(cr *cmapi.CertificateRequest) { cr.Spec.Extra[request.ExtraPodName] = []string{"cart-1"} }},
		{"a token of an earlier pod of that name", RuleToken, func(cr *cmapi.CertificateRequest) { cr.Spec.Extra[request.ExtraPodUID] = []string{"uid-0"} }},
		{"a token of two pods", RuleToken, func(cr *cmapi.CertificateRequest) {
			cr.Spec.Extra[request.ExtraPodUID] = []string{"uid-1", "uid-2"}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cr := asPod(valid(t))
			c.change(cr)
			v := Evaluate(Request{cr}, Facts{Now: testNow}, p)
			if c.rule != "" {
				wantDenied(t, v, c.rule)
				return
			}
			if v.Decision != Approve || v.ID.String() != testID {
				t.Errorf("%+v, want approved without looking at a pod", v)
			}
		})
	}
}

func TestRequesterBoth(t *testing.T) {
	p := policy(t)
	p.AllowPod = true
	if v := Evaluate(Request{asPod(valid(t))}, Facts{Now: testNow}, p); v.Decision != Approve {
		t.Errorf("the pod asks: %+v", v)
	}
	if v := Evaluate(Request{valid(t)}, Facts{Now: testNow}, p); v.Decision != NeedPod {
		t.Errorf("the agent asks: %+v", v)
	}
	cr := asPod(valid(t))
	cr.Spec.Username = "system:serviceaccount:shop:other"
	wantDenied(t, Evaluate(Request{cr}, Facts{Now: testNow}, p), RuleIdentity)
}

func ext(id asn1.ObjectIdentifier, value []byte) pkix.Extension {
	return pkix.Extension{Id: id, Value: value}
}

func name(tag int, content string) asn1.RawValue {
	return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tag, Bytes: []byte(content)}
}

func uri(s string) asn1.RawValue { return name(6, s) }

func dnsNames(n int) []asn1.RawValue {
	var names []asn1.RawValue
	for i := range n {
		names = append(names, name(2, fmt.Sprintf("a%d.example", i)))
	}
	return names
}

func san(names ...asn1.RawValue) pkix.Extension {
	e := ext(oidSubjectAltName, must(asn1.Marshal(names)))
	e.Critical = true
	return e
}

func keyUsageExt(bits byte, length int) pkix.Extension {
	return ext(oidKeyUsage, must(asn1.Marshal(asn1.BitString{Bytes: []byte{bits}, BitLength: length})))
}

func ekuExt(oids ...asn1.ObjectIdentifier) pkix.Extension {
	return ext(oidExtKeyUsage, must(asn1.Marshal(oids)))
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func toPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: csrPEMType, Bytes: der})
}

func csrFrom(template x509.CertificateRequest, key crypto.Signer) []byte {
	return toPEM(must(x509.CreateCertificateRequest(rand.Reader, &template, key)))
}

func csrWith(extensions ...pkix.Extension) []byte {
	return csrFrom(x509.CertificateRequest{ExtraExtensions: extensions}, testKey().Signer())
}

type rawCSR struct {
	Info      asn1.RawValue
	Algorithm pkix.AlgorithmIdentifier
	Signature asn1.BitString
}

type rawInfo struct {
	Version    int
	Subject    asn1.RawValue
	Key        asn1.RawValue
	Attributes []asn1.RawValue `asn1:"tag:0,set"`
}

type rawAttribute struct {
	ID     asn1.ObjectIdentifier
	Values []asn1.RawValue `asn1:"set"`
}

// resigned takes the valid CSR apart, lets change alter it below the level that
// crypto/x509 can produce, and signs it again.
func resigned(change func(info *rawInfo)) []byte {
	block, _ := pem.Decode(csrWith(san(uri(testID))))
	var csr rawCSR
	var info rawInfo
	_ = must(asn1.Unmarshal(block.Bytes, &csr))
	_ = must(asn1.Unmarshal(csr.Info.FullBytes, &info))
	change(&info)
	der := must(asn1.Marshal(info))
	digest := crypto.SHA256.New()
	digest.Write(der)
	signature := must(testKey().Signer().Sign(rand.Reader, digest.Sum(nil), crypto.SHA256))
	csr.Info = asn1.RawValue{FullBytes: der}
	csr.Signature = asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)}
	return toPEM(must(asn1.Marshal(csr)))
}

func attribute(id asn1.ObjectIdentifier, values ...any) asn1.RawValue {
	a := rawAttribute{ID: id}
	for _, v := range values {
		a.Values = append(a.Values, asn1.RawValue{FullBytes: must(asn1.Marshal(v))})
	}
	return asn1.RawValue{FullBytes: must(asn1.Marshal(a))}
}

func TestResignedUnchangedIsApproved(t *testing.T) {
	cr, pod := valid(t), validPod()
	cr.Spec.Request = resigned(func(*rawInfo) {})
	if v := Evaluate(Request{cr}, Facts{Now: testNow, Pod: &pod}, policy(t)); v.Decision != Approve {
		t.Fatalf("%+v: the cases below would be refused for the wrong reason", v)
	}
}

// TestDenyCSR: each case is the valid CSR but for one thing.
func TestDenyCSR(t *testing.T) {
	key := testKey().Signer()
	validCSR := csrWith(san(uri(testID)))
	validBlock, _ := pem.Decode(validCSR)
	subject := func(n pkix.Name) []byte {
		return csrFrom(x509.CertificateRequest{Subject: n, ExtraExtensions: []pkix.Extension{san(uri(testID))}}, key)
	}
	evil := "spiffe://example.org/ns/kube-system/sa/root"
	oidChallengePassword := asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}
	oidMicrosoftExtensions := asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 14}
	basicConstraints := func(ca bool) pkix.Extension {
		return ext(asn1.ObjectIdentifier{2, 5, 29, 19}, must(asn1.Marshal(struct {
			CA bool `asn1:"optional"`
		}{ca})))
	}
	badSignature := bytes.Clone(validBlock.Bytes)
	badSignature[len(badSignature)-1] ^= 1

	for _, c := range []struct {
		name string
		rule Rule
		csr  []byte
		says []string
	}{
		// Encoding.
		{"empty", RuleEncoding, nil, nil},
		{"not PEM", RuleEncoding, []byte("hello"), nil},
		{"DER without PEM", RuleEncoding, validBlock.Bytes, nil},
		{"another PEM type", RuleEncoding, pem.EncodeToMemory(&pem.Block{Type: "NEW CERTIFICATE REQUEST", Bytes: validBlock.Bytes}), nil},
		{"PEM headers", RuleEncoding, pem.EncodeToMemory(&pem.Block{Type: csrPEMType, Headers: map[string]string{"a": "b"}, Bytes: validBlock.Bytes}), []string{"headers"}},
		{"text before the block", RuleEncoding, append([]byte("text\n"), validCSR...), nil},
		{"text after the block", RuleEncoding, append(bytes.Clone(validCSR), "text"...), nil},
		{"two blocks", RuleEncoding, append(bytes.Clone(validCSR), csrWith(san(uri(evil)))...), nil},
		{"a broken block first", RuleEncoding, append([]byte("-----BEGIN CERTIFICATE REQUEST-----\n!\n"), validCSR...), nil},
		{"garbage in the block", RuleEncoding, toPEM([]byte("garbage")), nil},
		{"data after the DER", RuleEncoding, toPEM(append(bytes.Clone(validBlock.Bytes), 0)), nil},
		{"too long", RuleEncoding, append(bytes.Clone(validCSR), bytes.Repeat([]byte{'\n'}, maxCSRBytes)...), []string{"allowed are 16384"}},
		{"version 2", RuleEncoding, resigned(func(i *rawInfo) { i.Version = 1 }), []string{"version"}},
		{"signature", RuleSignature, toPEM(badSignature), nil},

		// Subject.
		{"common name", RuleSubject, subject(pkix.Name{CommonName: "x"}), nil},
		{"organization", RuleSubject, subject(pkix.Name{Organization: []string{"system:masters"}}), nil},
		{"organizational unit", RuleSubject, subject(pkix.Name{OrganizationalUnit: []string{"x"}}), nil},
		{"country", RuleSubject, subject(pkix.Name{Country: []string{"NL"}}), nil},
		{"province", RuleSubject, subject(pkix.Name{Province: []string{"x"}}), nil},
		{"locality", RuleSubject, subject(pkix.Name{Locality: []string{"x"}}), nil},
		{"street address", RuleSubject, subject(pkix.Name{StreetAddress: []string{"x"}}), nil},
		{"postal code", RuleSubject, subject(pkix.Name{PostalCode: []string{"x"}}), nil},
		{"serial number", RuleSubject, subject(pkix.Name{SerialNumber: "1"}), nil},
		{"unknown subject field", RuleSubject, subject(pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{{Type: asn1.ObjectIdentifier{2, 5, 4, 65}, Value: "x"}}}), nil},
		{"e-mail in the subject", RuleSubject, subject(pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{{Type: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 1}, Value: "a@b.example"}}}), nil},

		// Attributes and extensions.
		{"challenge password", RuleExtensions, resigned(func(i *rawInfo) {
			i.Attributes = append([]asn1.RawValue{attribute(oidChallengePassword, "x")}, i.Attributes...)
		}), []string{"1.2.840.113549.1.9.7"}},
		{"second attribute", RuleExtensions, resigned(func(i *rawInfo) {
			i.Attributes = append(i.Attributes, attribute(oidExtensionRequest, []pkix.Extension{keyUsageExt(0x80, 1)}))
		}), []string{"more than one attribute"}},
		{"Microsoft's extension request", RuleExtensions, resigned(func(i *rawInfo) {
			i.Attributes = []asn1.RawValue{attribute(oidMicrosoftExtensions, []pkix.Extension{san(uri(testID))})}
		}), nil},
		{"extension request with two values", RuleEncoding, resigned(func(i *rawInfo) {
			i.Attributes = []asn1.RawValue{attribute(oidExtensionRequest, []pkix.Extension{san(uri(testID))}, []pkix.Extension{san(uri(evil))})}
		}), []string{"one value"}},
		{"attribute that x509 skips", RuleEncoding, resigned(func(i *rawInfo) {
			i.Attributes = append([]asn1.RawValue{{FullBytes: []byte{0x02, 0x01, 0x00}}}, i.Attributes...)
		}), nil},
		{"SAN twice", RuleExtensions, resigned(func(i *rawInfo) {
			i.Attributes = []asn1.RawValue{attribute(oidExtensionRequest, []pkix.Extension{san(uri(testID)), san(uri(evil))})}
		}), []string{"2.5.29.17", "twice"}},
		{"basic constraints, CA", RuleExtensions, csrWith(san(uri(testID)), basicConstraints(true)), []string{"2.5.29.19"}},
		{"basic constraints, no CA", RuleExtensions, csrWith(san(uri(testID)), basicConstraints(false)), nil},
		{"name constraints", RuleExtensions, csrWith(san(uri(testID)), ext(asn1.ObjectIdentifier{2, 5, 29, 30}, []byte{0x30, 0})), nil},
		{"extension nobody knows", RuleExtensions, csrWith(san(uri(testID)), ext(asn1.ObjectIdentifier{1, 2, 3, 4}, []byte{5, 0})), []string{"1.2.3.4"}},

		// Usages.
		{"key usage non-repudiation, between the allowed", RuleKeyUsage, csrWith(san(uri(testID)), keyUsageExt(0b11000000, 2)), []string{"bit 1"}},
		{"key usage cert sign", RuleKeyUsage, csrWith(san(uri(testID)), keyUsageExt(0b00000100, 6)), []string{"bit 5"}},
		{"key usage crl sign beside allowed", RuleKeyUsage, csrWith(san(uri(testID)), keyUsageExt(0b10100010, 7)), []string{"bit 6"}},
		{"key usage not a bit string", RuleKeyUsage, csrWith(san(uri(testID)), ext(oidKeyUsage, []byte{5, 0})), nil},
		{"key usage with trailing data", RuleKeyUsage, csrWith(san(uri(testID)), ext(oidKeyUsage, []byte{3, 2, 7, 0x80, 0})), nil},
		{"extended key usage code signing", RuleKeyUsage, csrWith(san(uri(testID)), ekuExt(oidClientAuth, asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 3})), []string{"1.3.6.1.5.5.7.3.3"}},
		{"extended key usage any", RuleKeyUsage, csrWith(san(uri(testID)), ekuExt(asn1.ObjectIdentifier{2, 5, 29, 37, 0})), nil},
		{"extended key usage not a sequence", RuleKeyUsage, csrWith(san(uri(testID)), ext(oidExtKeyUsage, []byte{5, 0})), nil},
		{"extended key usage not of identifiers", RuleKeyUsage, csrWith(san(uri(testID)), ext(oidExtKeyUsage, []byte{0x30, 2, 5, 0})), nil},

		// Subject alternative names.
		{"no extension", RuleSAN, csrWith(), []string{"no subject alternative name"}},
		{"no attributes", RuleSAN, resigned(func(i *rawInfo) { i.Attributes = nil }), nil},
		{"no name", RuleSAN, csrWith(san()), []string{"0 URIs"}},
		{"DNS name alone", RuleSAN, csrWith(san(name(2, "a.example"))), []string{"0 URIs"}},
		{"DNS name twice", RuleSAN, csrWith(san(uri(testID), name(2, "a.example"), name(2, "a.example"))), []string{"twice"}},
		{"DNS name twice, apart", RuleSAN, csrWith(san(name(2, "a.example"), uri(testID), name(2, "b.example"), name(2, "a.example"))), []string{"twice"}},
		{"DNS name in upper case", RuleSAN, csrWith(san(uri(testID), name(2, "A.example"))), []string{`label "A"`}},
		{"DNS name with wildcard", RuleSAN, csrWith(san(uri(testID), name(2, "*.example"))), []string{`label "*"`}},
		{"DNS name with final dot", RuleSAN, csrWith(san(uri(testID), name(2, "a.example."))), []string{`label ""`}},
		{"empty DNS name", RuleSAN, csrWith(san(uri(testID), name(2, ""))), []string{"empty"}},
		{"DNS name with NUL", RuleSAN, csrWith(san(uri(testID), name(2, "a.example\x00.evil"))), []string{`\x00`}},
		{"DNS name with a comma", RuleSAN, csrWith(san(uri(testID), name(2, "a.example,b.example"))), nil},
		{"DNS name that is an IPv4 address", RuleSAN, csrWith(san(uri(testID), name(2, "10.0.0.1"))), []string{"number"}},
		{"DNS name that is an IPv4 address in short", RuleSAN, csrWith(san(uri(testID), name(2, "127.0x1"))), []string{"number"}},
		{"DNS name that is an IPv6 address", RuleSAN, csrWith(san(uri(testID), name(2, "::1"))), nil},
		{"DNS name with a long label", RuleSAN, csrWith(san(uri(testID), name(2, strings.Repeat("a", 64)+".example"))), nil},
		{"DNS name that is too long", RuleSAN, csrWith(san(uri(testID), name(2, strings.Repeat("a.", 124)+"longer"))), []string{"254", "253"}},
		{"too many DNS names", RuleSAN, csrWith(san(append(dnsNames(17), uri(testID))...)), []string{"17", "16"}},
		{"DNS name in constructed form", RuleSAN, csrWith(san(uri(testID), asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 2, IsCompound: true, Bytes: []byte("a.example")})), nil},
		{"IP address beside a DNS name", RuleSAN, csrWith(san(uri(testID), name(2, "a.example"), name(7, "\x0a\x00\x00\x01"))), []string{"IP address"}},
		{"EDI party name", RuleSAN, csrWith(san(uri(testID), asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 5, IsCompound: true, Bytes: []byte{0x81, 0}})), []string{"EDI party name"}},
		{"IP address", RuleSAN, csrWith(san(uri(testID), name(7, string(net.IPv4(10, 0, 0, 1).To4())))), []string{"IP address"}},
		{"e-mail address", RuleSAN, csrWith(san(uri(testID), name(1, "a@b.example"))), []string{"e-mail address"}},
		{"other name", RuleSAN, csrWith(san(uri(testID), asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: []byte{6, 1, 42}})), nil},
		{"directory name", RuleSAN, csrWith(san(uri(testID), asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: []byte{0x30, 0}})), nil},
		{"registered ID", RuleSAN, csrWith(san(uri(testID), name(8, "\x2a"))), []string{"registered ID"}},
		{"a name of another class", RuleSAN, csrWith(san(uri(testID), asn1.RawValue{Class: asn1.ClassUniversal, Tag: 22, Bytes: []byte("x")})), []string{"unknown name"}},
		{"URI in constructed form", RuleSAN, csrWith(san(asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, IsCompound: true, Bytes: []byte(testID)})), nil},
		{"two URIs", RuleSAN, csrWith(san(uri(testID), uri(evil))), []string{"2 URIs"}},
		{"the same URI twice", RuleSAN, csrWith(san(uri(testID), uri(testID))), []string{"2 URIs"}},
		{"SPIFFE ID and web address", RuleSAN, csrWith(san(uri(testID), uri("https://example.org/"))), []string{"2 URIs"}},
		{"not a sequence", RuleSAN, csrWith(ext(oidSubjectAltName, []byte{5, 0})), nil},
		{"data after the sequence", RuleSAN, csrWith(ext(oidSubjectAltName, append(san(uri(testID)).Value, 0))), nil},
		{"broken name", RuleSAN, csrWith(ext(oidSubjectAltName, []byte{0x30, 2, 0x86, 9})), nil},

		// SPIFFE ID.
		{"not SPIFFE", RuleSPIFFEID, csrWith(san(uri("https://example.org/ns/shop/sa/cart"))), []string{"https://"}},
		{"empty URI", RuleSPIFFEID, csrWith(san(uri(""))), nil},
		{"scheme in upper case", RuleSPIFFEID, csrWith(san(uri("SPIFFE://example.org/ns/shop/sa/cart"))), nil},
		{"query", RuleSPIFFEID, csrWith(san(uri(testID + "?a=b"))), []string{"a=b"}},
		{"empty query", RuleSPIFFEID, csrWith(san(uri(testID + "?"))), nil},
		{"fragment", RuleSPIFFEID, csrWith(san(uri(testID + "#a"))), nil},
		{"empty fragment", RuleSPIFFEID, csrWith(san(uri(testID + "#"))), nil},
		{"userinfo", RuleSPIFFEID, csrWith(san(uri("spiffe://a@example.org/ns/shop/sa/cart"))), nil},
		{"port", RuleSPIFFEID, csrWith(san(uri("spiffe://example.org:443/ns/shop/sa/cart"))), nil},
		{"trust domain in upper case", RuleSPIFFEID, csrWith(san(uri("spiffe://EXAMPLE.org/ns/shop/sa/cart"))), nil},
		{"percent-encoding", RuleSPIFFEID, csrWith(san(uri("spiffe://example.org/ns/shop/sa/c%61rt"))), nil},
		{"encoded slash", RuleSPIFFEID, csrWith(san(uri("spiffe://example.org/ns/shop%2fsa/cart"))), nil},
		{"empty segment", RuleSPIFFEID, csrWith(san(uri("spiffe://example.org/ns//shop/sa/cart"))), nil},
		{"trailing slash", RuleSPIFFEID, csrWith(san(uri(testID + "/"))), nil},
		{"dot segment", RuleSPIFFEID, csrWith(san(uri("spiffe://example.org/./ns/shop/sa/cart"))), nil},
		{"dot-dot segment", RuleSPIFFEID, csrWith(san(uri("spiffe://example.org/ns/other/../shop/sa/cart"))), nil},
		{"no path", RuleSPIFFEID, csrWith(san(uri("spiffe://example.org"))), []string{"workload"}},
		{"no trust domain", RuleSPIFFEID, csrWith(san(uri("spiffe:///ns/shop/sa/cart"))), nil},
		{"longer than allowed", RuleSPIFFEID, csrWith(san(uri("spiffe://example.org/" + strings.Repeat("a", 2048)))), []string{"2048"}},
		{"other trust domain", RuleTrustDomain, csrWith(san(uri("spiffe://example.com/ns/shop/sa/cart"))), []string{"example.com", "example.org"}},
		{"trust domain with a suffix", RuleTrustDomain, csrWith(san(uri("spiffe://example.org.evil/ns/shop/sa/cart"))), nil},

		// DNS names are well formed, but nobody switched them on.
		{"DNS name", RuleDNSNames, csrWith(san(uri(testID), name(2, "a.example"))), []string{"a.example", "none", "--allowed-dns-suffixes"}},
		{"DNS name first", RuleDNSNames, csrWith(san(name(2, "a.example"), uri(testID))), nil},

		// Keys.
		{"P-521", RuleKeyType, csrFrom(x509.CertificateRequest{ExtraExtensions: []pkix.Extension{san(uri(testID))}}, must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader))), []string{"P-521"}},
		{"P-224", RuleKeyType, csrFrom(x509.CertificateRequest{ExtraExtensions: []pkix.Extension{san(uri(testID))}}, must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader))), []string{"P-224"}},
		{"RSA-1024", RuleKeyType, csrFrom(x509.CertificateRequest{ExtraExtensions: []pkix.Extension{san(uri(testID))}}, must(rsa.GenerateKey(rand.Reader, 1024))), []string{"1024"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cr, pod := valid(t), validPod()
			cr.Spec.Request = c.csr
			// Where the URI can be read, the annotation agrees with it, so that the
			// rule under test is the one that speaks.
			if found, d := checkCSR(c.csr, pki.KeyTypes()); d == nil {
				cr.Annotations[request.AnnotationIdentity] = found.uri
			}
			wantDenied(t, Evaluate(Request{cr}, Facts{Now: testNow, Pod: &pod}, policy(t)), c.rule, c.says...)
		})
	}
}

// TestDenyForeignBytesInURI: url.Parse and C string handling disagree about these.
func TestDenyForeignBytesInURI(t *testing.T) {
	for _, b := range []string{"\x00", "\n", " ", "\t", "\x7f", "\xc3\xa9", "\xff", "\\", "*"} {
		csr := resigned(func(i *rawInfo) {
			i.Attributes = []asn1.RawValue{attribute(oidExtensionRequest, []pkix.Extension{san(uri(testID + b))})}
		})
		cr, pod := valid(t), validPod()
		cr.Spec.Request = csr
		cr.Annotations[request.AnnotationIdentity] = testID + b
		v := Evaluate(Request{cr}, Facts{Now: testNow, Pod: &pod}, policy(t))
		if v.Decision != Deny || (v.Rule != RuleSPIFFEID && v.Rule != RuleEncoding) {
			t.Errorf("byte %q: %+v, want denied", b, v)
		}
	}
}

func TestMessagesAreBoundedAndPrintable(t *testing.T) {
	cr, pod := valid(t), validPod()
	cr.Spec.Username = strings.Repeat("ü\n\x1b[31m", 10_000)
	v := Evaluate(Request{cr}, Facts{Now: testNow, Pod: &pod}, policy(t))
	wantDenied(t, v, RuleRequester)
	if len(v.Message) > 4096 {
		t.Errorf("message has %d bytes", len(v.Message))
	}
	if strings.ContainsAny(v.Message, "\n\x1b") {
		t.Errorf("message %q has control characters", v.Message)
	}
}

func TestIgnore(t *testing.T) {
	for name, change := range map[string]func(cr *cmapi.CertificateRequest){
		"no identity annotation":  func(cr *cmapi.CertificateRequest) { cr.Annotations = nil },
		"driver annotation alone": func(cr *cmapi.CertificateRequest) { delete(cr.Annotations, request.AnnotationIdentity) },
		"another driver's":        func(cr *cmapi.CertificateRequest) { cr.Annotations[request.AnnotationDriver] = "other.csi" },
		"driver annotation empty": func(cr *cmapi.CertificateRequest) { cr.Annotations[request.AnnotationDriver] = "" },
		"approved":                func(cr *cmapi.CertificateRequest) { setCondition(cr, cmapi.CertificateRequestConditionApproved) },
		"denied":                  func(cr *cmapi.CertificateRequest) { setCondition(cr, cmapi.CertificateRequestConditionDenied) },
		"being deleted":           func(cr *cmapi.CertificateRequest) { cr.DeletionTimestamp = &metav1.Time{Time: testNow} },
		"approved, and then made plain": func(cr *cmapi.CertificateRequest) {
			setCondition(cr, cmapi.CertificateRequestConditionApproved)
			cr.Annotations = nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			cr, pod := valid(t), validPod()
			change(cr)
			if v := Evaluate(Request{cr}, Facts{Now: testNow, Pod: &pod}, policy(t)); v != (Verdict{}) {
				t.Errorf("%+v, want ignored", v)
			}
		})
	}
	if v := Evaluate(Request{}, Facts{}, policy(t)); v.Decision != Ignore {
		t.Errorf("no request: %+v", v)
	}
}

func setCondition(cr *cmapi.CertificateRequest, kind cmapi.CertificateRequestConditionType) {
	cr.Status.Conditions = append(cr.Status.Conditions, cmapi.CertificateRequestCondition{Type: kind, Status: cmmeta.ConditionTrue})
}

func TestPlain(t *testing.T) {
	web := must(url.Parse("https://example.org/"))
	plain := func(change func(cr *cmapi.CertificateRequest)) *cmapi.CertificateRequest {
		cr := &cmapi.CertificateRequest{
			ObjectMeta: metav1.ObjectMeta{Namespace: "web", Name: "shop-1"},
			Spec: cmapi.CertificateRequestSpec{
				IssuerRef: cmmeta.IssuerReference{Name: "letsencrypt", Kind: "ClusterIssuer"},
				Request: csrFrom(x509.CertificateRequest{Subject: pkix.Name{CommonName: "shop.example"},
					DNSNames: []string{"shop.example"}, URIs: []*url.URL{web}}, testKey().Signer()),
			},
		}
		change(cr)
		return cr
	}
	p := policy(t)
	p.ApproveNonSPIFFE = true
	for _, c := range []struct {
		name string
		rule Rule
		cr   *cmapi.CertificateRequest
	}{
		{"web server", "", plain(func(*cmapi.CertificateRequest) {})},
		{"CA", "", plain(func(cr *cmapi.CertificateRequest) { cr.Spec.IsCA = true })},
		{"an issuer of our issuer's name", "", plain(func(cr *cmapi.CertificateRequest) { cr.Spec.IssuerRef = cmmeta.IssuerReference{Name: "spiffe-ca"} })},
		{"our issuer", RulePlainIssuer, plain(func(cr *cmapi.CertificateRequest) { cr.Spec.IssuerRef = testIssuer })},
		{"our issuer, group left out", RulePlainIssuer, plain(func(cr *cmapi.CertificateRequest) {
			cr.Spec.IssuerRef = cmmeta.IssuerReference{Name: "spiffe-ca", Kind: "ClusterIssuer"}
		})},
		{"SPIFFE URI", RulePlainURI, plain(func(cr *cmapi.CertificateRequest) { cr.Spec.Request = csrWith(san(uri(testID))) })},
		{"SPIFFE URI after another", RulePlainURI, plain(func(cr *cmapi.CertificateRequest) {
			cr.Spec.Request = csrWith(san(uri("https://example.org/"), uri(testID)))
		})},
		{"SPIFFE URI of another trust domain", RulePlainURI, plain(func(cr *cmapi.CertificateRequest) { cr.Spec.Request = csrWith(san(uri("spiffe://other/x"))) })},
		{"SPIFFE in mixed case", RulePlainURI, plain(func(cr *cmapi.CertificateRequest) { cr.Spec.Request = csrWith(san(uri("sPiFfE:other"))) })},
		{"SPIFFE URI in an attribute of another kind", RulePlainURI, plain(func(cr *cmapi.CertificateRequest) {
			cr.Spec.Request = resigned(func(i *rawInfo) {
				i.Attributes = []asn1.RawValue{attribute(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 14}, []pkix.Extension{san(uri(testID))})}
			})
		})},
		{"garbage", RulePlainEncoding, plain(func(cr *cmapi.CertificateRequest) { cr.Spec.Request = []byte("garbage") })},
		{"two CSRs", RulePlainEncoding, plain(func(cr *cmapi.CertificateRequest) {
			cr.Spec.Request = append(cr.Spec.Request, csrWith(san(uri(testID)))...)
		})},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := Evaluate(Request{c.cr}, Facts{Now: testNow}, p)
			if c.rule != "" {
				wantDenied(t, v, c.rule)
			} else if v.Decision != Approve {
				t.Errorf("%+v, want approved", v)
			}
			if v := Evaluate(Request{c.cr}, Facts{Now: testNow}, policy(t)); v.Decision != Ignore {
				t.Errorf("with the option off: %+v, want ignored", v)
			}
		})
	}
	foreign := valid(t)
	foreign.Annotations[request.AnnotationDriver] = "other.csi"
	if v := Evaluate(Request{foreign}, Facts{Now: testNow}, p); v.Decision != Ignore {
		t.Errorf("another driver's request: %+v, want ignored", v)
	}
}

// TestIncompletePolicyDenies: no part of the policy may be forgotten and so open a door.
func TestIncompletePolicyDenies(t *testing.T) {
	for name, change := range map[string]func(p *Policy){
		"no issuer":       func(p *Policy) { p.Issuers = nil },
		"no trust domain": func(p *Policy) { p.TrustDomain = spiffeid.TrustDomain{} },
		"no template":     func(p *Policy) { p.Template = identity.Template{} },
		"no duration":     func(p *Policy) { p.Duration = 0 },
		"no key type":     func(p *Policy) { p.KeyTypes = nil },
		"no requester":    func(p *Policy) { p.AgentUsername = "" },
		"no driver":       func(p *Policy) { p.Driver = "" },
	} {
		t.Run(name, func(t *testing.T) {
			cr, pod, p := valid(t), validPod(), policy(t)
			change(&p)
			if v := Evaluate(Request{cr}, Facts{Now: testNow, Pod: &pod}, p); v.Decision == Approve {
				t.Errorf("%+v", v)
			}
			cr.Spec.Username = ""
			if v := Evaluate(Request{cr}, Facts{Now: testNow, Pod: &pod}, p); v.Decision == Approve {
				t.Errorf("nobody asks: %+v", v)
			}
		})
	}
	p := policy(t)
	p.Issuers = nil
	wantDenied(t, Evaluate(Request{valid(t)}, Facts{Now: testNow}, p), RuleIssuer, "no issuer is configured")
	if v := Evaluate(Request{valid(t)}, Facts{Now: testNow}, Policy{}); v.Decision == Approve || v.Decision == NeedPod {
		t.Errorf("empty policy: %+v", v)
	}
}

func TestDurationRange(t *testing.T) {
	for _, c := range []struct {
		min, max, asked time.Duration
		allowed         bool
		says            string
	}{
		{0, 0, time.Hour, true, ""},
		{0, 0, time.Hour - 1, false, "exactly 1h0m0s"},
		{30 * time.Minute, 0, 30 * time.Minute, true, ""},
		{30 * time.Minute, 0, 30*time.Minute - 1, false, "from 30m0s to 1h0m0s"},
		{30 * time.Minute, 0, time.Hour + 1, false, "from 30m0s to 1h0m0s"},
		{0, 2 * time.Hour, 2 * time.Hour, true, ""},
		{0, 2 * time.Hour, 2*time.Hour + 1, false, "from 1h0m0s to 2h0m0s"},
		{0, 2 * time.Hour, 30 * time.Minute, false, "asked for 30m0s"},
		{time.Minute, 2 * time.Hour, 0, false, "from 1m0s to 2h0m0s"},
		{time.Minute, 2 * time.Hour, -time.Hour, false, ""},
	} {
		p, cr := policy(t), valid(t)
		p.MinDuration, p.MaxDuration = c.min, c.max
		if err := p.Validate(); err != nil {
			t.Error(err)
		}
		cr.Spec.Duration.Duration = c.asked
		v := Evaluate(Request{cr}, Facts{Now: testNow}, p)
		if c.allowed {
			if v.Decision != NeedPod {
				t.Errorf("%+v: %+v, want it to pass", c, v)
			}
			continue
		}
		wantDenied(t, v, RuleDuration, c.says)
	}
	p, cr := policy(t), valid(t)
	p.MinDuration, p.MaxDuration, cr.Spec.Duration = time.Minute, 2*time.Hour, nil
	wantDenied(t, Evaluate(Request{cr}, Facts{Now: testNow}, p), RuleDuration, "no duration", "from 1m0s to 2h0m0s")
}

func TestPolicyValidate(t *testing.T) {
	if err := policy(t).Validate(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(p *Policy){
		"driver":       func(p *Policy) { p.Driver = "" },
		"trust domain": func(p *Policy) { p.TrustDomain = spiffeid.TrustDomain{} },
		"duration":     func(p *Policy) { p.Duration = -1 },
		"from 2h":      func(p *Policy) { p.MinDuration = 2 * time.Hour },
		"to 1m":        func(p *Policy) { p.MaxDuration = time.Minute },
		"from -1h":     func(p *Policy) { p.MinDuration = -time.Hour },
		"key type":     func(p *Policy) { p.KeyTypes = nil },
		"nobody":       func(p *Policy) { p.AgentUsername = "" },
	} {
		p := policy(t)
		change(&p)
		if err := p.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one about %q", err, want)
		}
	}
}

func TestPodFrom(t *testing.T) {
	gone := metav1.NewTime(testNow)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{UID: "u", DeletionTimestamp: &gone},
		Spec: corev1.PodSpec{NodeName: "n", ServiceAccountName: "s", Volumes: []corev1.Volume{
			{Name: "a", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
			{Name: "b", VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: testDriver}}},
		}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning},
	}
	got, err := PodFrom(pod, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !got.Found || got.UID != "u" || got.NodeName != "n" || got.ServiceAccount != "s" || got.Finished ||
		!got.GoneAt.Equal(testNow) || !slices.Equal(got.Drivers, []string{testDriver}) {
		t.Errorf("got %+v", got)
	}
	for phase, finished := range map[corev1.PodPhase]bool{
		corev1.PodPending: false, corev1.PodRunning: false, corev1.PodUnknown: false, corev1.PodSucceeded: true, corev1.PodFailed: true,
	} {
		pod.Status.Phase = phase
		if got, _ := PodFrom(pod, nil); got.Finished != finished {
			t.Errorf("phase %s: finished is %t", phase, got.Finished)
		}
	}
	if got, err := PodFrom(nil, apierrors.NewNotFound(schema.GroupResource{Resource: "pods"}, "x")); err != nil || got == nil || got.Found {
		t.Errorf("not found: %+v, %v; that is a fact", got, err)
	}
	if got, err := PodFrom(pod, errors.New("connection refused")); err == nil || got != nil {
		t.Errorf("read failed: %+v, %v; nothing is known then", got, err)
	}
}

func TestDecisionString(t *testing.T) {
	for d, want := range map[Decision]string{Ignore: "ignored", Approve: "approved", Deny: "denied", NeedPod: "needs pod", 9: "decision 9"} {
		if d.String() != want {
			t.Errorf("%d prints as %q, want %q", int(d), d, want)
		}
	}
}
