// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package evaluate

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"slices"
	"strings"
	"testing"

	certpki "github.com/cert-manager/cert-manager/pkg/util/pki"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/signet-spiffe/signet/internal/pki"
	"github.com/signet-spiffe/signet/internal/request"
)

// FuzzEvaluate changes the CSR, the annotation and the requester. Whatever is
// approved must be the one certificate that the pod may have, as cert-manager
// itself reads the CSR.
func FuzzEvaluate(f *testing.F) {
	good := csrWith(san(uri(testID)))
	f.Add(good, testID, testAgent, "node-a")
	f.Add(csrWith(san(uri(testID), uri("spiffe://example.org/x"))), testID, testAgent, "node-a")
	f.Add(csrWith(san(uri(testID)), keyUsageExt(0x80, 1), ekuExt(oidServerAuth)), testID, testAgent, "node-a")
	f.Add(append(bytes.Clone(good), good...), testID, testAgent, "node-a")
	for _, dns := range []string{"shop.svc.cluster.local", "web.shop.svc.cluster.local", "web.kube-system.svc.cluster.local", "webshop.svc.cluster.local", "*.shop.svc.cluster.local", ".shop.svc.cluster.local"} {
		f.Add(csrWith(san(uri(testID), name(2, dns))), testID, testAgent, "node-a")
		f.Add(csrWith(san(name(2, dns), uri(testID), name(2, "x.shop.svc.cluster.local"))), testID, testAgent, "node-a")
	}
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\n"), "", "", "")
	p := policy(f)
	p.DNSSuffixes = suffixes(f, "{{namespace}}.svc.cluster.local")
	f.Fuzz(func(t *testing.T, csr []byte, annotation, username, node string) {
		cr, pod := valid(t), validPod()
		cr.Spec.Request = csr
		cr.Annotations[request.AnnotationIdentity] = annotation
		cr.Spec.Username = username
		cr.Spec.Extra[request.ExtraNodeName] = []string{node}
		v := Evaluate(Request{cr}, Facts{Now: testNow, Pod: &pod}, p)
		checkVerdict(t, v)
		if v.Decision != Approve {
			return
		}
		if annotation != testID || username != testAgent || node != "node-a" || v.ID.String() != testID {
			t.Fatalf("approved %q for %q on %q as %s", annotation, username, node, v.ID)
		}
		checkApprovedCSR(t, csr)
	})
}

// FuzzCSR drives the DER walk below PEM, where the fuzzer gets further.
func FuzzCSR(f *testing.F) {
	for _, csr := range [][]byte{
		csrWith(san(uri(testID))),
		csrWith(san(uri(testID)), keyUsageExt(0xa0, 3), ekuExt(oidServerAuth, oidClientAuth)),
		csrWith(san(uri(testID), name(2, "a.example"))),
		csrWith(san(name(2, "b.example"), uri(testID), name(2, "a.example"))),
		csrWith(san(uri(testID), name(2, "A.example"))),
		csrWith(san(uri(testID), name(2, "a.example"), name(2, "a.example"))),
		csrWith(san(uri(testID), name(2, "10.0.0.1"))),
		csrWith(san(append(dnsNames(17), uri(testID))...)),
		resigned(func(i *rawInfo) { i.Attributes = nil }),
	} {
		block, _ := pem.Decode(csr)
		f.Add(block.Bytes)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		csr := toPEM(der)
		found, d := checkCSR(csr, pki.KeyTypes())
		if d != nil {
			checkVerdict(t, d.verdict(spiffeid.ID{}))
			return
		}
		parsed, err := certpki.DecodeX509CertificateRequestBytes(csr)
		if err != nil {
			t.Fatalf("accepted, but cert-manager refuses: %v", err)
		}
		dns, err := pki.NewDNSNames(parsed.DNSNames...)
		if err != nil || dns != found.dns || len(parsed.URIs) != 1 || len(parsed.IPAddresses)+len(parsed.EmailAddresses) != 0 {
			t.Fatalf("accepted %q, cert-manager reads %v %v %v %v", found, parsed.URIs, parsed.DNSNames, parsed.IPAddresses, parsed.EmailAddresses)
		}
	})
}

// FuzzSAN drives the rules on names without a signature in the way.
func FuzzSAN(f *testing.F) {
	f.Add(san(uri(testID)).Value)
	f.Add(san(uri("spiffe://example.org")).Value)
	f.Add(san(uri(testID + "?")).Value)
	f.Add(san(uri(testID), name(2, "a")).Value)
	f.Add(san(name(2, "b.a"), uri(testID), name(2, "a")).Value)
	f.Add(san(uri(testID), name(2, "A")).Value)
	f.Add(san(uri(testID), name(2, "a"), name(2, "a")).Value)
	f.Add(san(uri(testID), name(2, "a,b")).Value)
	f.Add(san(append(dnsNames(17), uri(testID))...).Value)
	f.Fuzz(func(t *testing.T, value []byte) {
		found, d := checkSAN(value)
		if d != nil {
			return
		}
		id, d := checkID(found.uri, found.uri, testTD)
		if d != nil {
			return
		}
		// The names that were found, in the order in which they stand there, have
		// this one encoding.
		var stand, want []asn1.RawValue
		if rest, err := asn1.Unmarshal(value, &stand); err != nil || len(rest) != 0 {
			t.Fatalf("accepted %x, which does not decode: %v", value, err)
		}
		left := found.dns.Names()
		for _, n := range stand {
			i := slices.Index(left, string(n.Bytes))
			switch {
			case n.Tag == 6:
				want = append(want, uri(id.String()))
			case i >= 0:
				want = append(want, name(2, left[i]))
				left = slices.Delete(left, i, i+1)
			}
		}
		if len(left) > 0 || !bytes.Equal(value, san(want...).Value) {
			t.Fatalf("accepted %x, which is not the encoding of %s and %q", value, id, found.dns)
		}
	})
}

func checkVerdict(t *testing.T, v Verdict) {
	t.Helper()
	if (v.Decision == Deny) != (v.Rule != "") {
		t.Fatalf("%+v: a denial, and only that, names a rule", v)
	}
	if len(v.Message) > 8192 || bytes.ContainsAny([]byte(v.Message), "\n\r\x00\x1b") {
		t.Fatalf("message %q", v.Message)
	}
}

func checkApprovedCSR(t *testing.T, csr []byte) {
	t.Helper()
	parsed, err := certpki.DecodeX509CertificateRequestBytes(csr)
	if err != nil {
		t.Fatal(err)
	}
	template, err := certpki.CertificateTemplateFromCSR(parsed)
	if err != nil {
		t.Fatal(err)
	}
	const allowed = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment
	if len(template.URIs) != 1 || template.URIs[0].String() != testID || template.Subject.String() != "" || template.IsCA ||
		len(template.IPAddresses)+len(template.EmailAddresses)+len(template.UnknownExtKeyUsage) != 0 ||
		template.KeyUsage&^allowed != 0 || len(template.ExtraExtensions) != 1 {
		t.Fatalf("approved a CSR that gives %+v", template)
	}
	for _, dns := range template.DNSNames {
		if dns != "shop.svc.cluster.local" && !strings.HasSuffix(dns, ".shop.svc.cluster.local") || strings.ToLower(dns) != dns || strings.ContainsAny(dns, "*,\x00") {
			t.Fatalf("approved DNS name %q", dns)
		}
	}
}
