// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package evaluate

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
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
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\n"), "", "", "")
	p := policy(f)
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
		resigned(func(i *rawInfo) { i.Attributes = nil }),
	} {
		block, _ := pem.Decode(csr)
		f.Add(block.Bytes)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		csr := toPEM(der)
		uri, d := checkCSR(csr, pki.KeyTypes())
		if d != nil {
			checkVerdict(t, d.verdict(spiffeid.ID{}))
			return
		}
		parsed, err := certpki.DecodeX509CertificateRequestBytes(csr)
		if err != nil {
			t.Fatalf("accepted, but cert-manager refuses: %v", err)
		}
		if len(parsed.URIs) != 1 || len(parsed.DNSNames)+len(parsed.IPAddresses)+len(parsed.EmailAddresses) != 0 {
			t.Fatalf("accepted %q, cert-manager reads %v %v %v %v", uri, parsed.URIs, parsed.DNSNames, parsed.IPAddresses, parsed.EmailAddresses)
		}
	})
}

// FuzzSAN drives the rules on names without a signature in the way.
func FuzzSAN(f *testing.F) {
	f.Add(san(uri(testID)).Value)
	f.Add(san(uri("spiffe://example.org")).Value)
	f.Add(san(uri(testID + "?")).Value)
	f.Add(san(uri(testID), name(2, "a")).Value)
	f.Fuzz(func(t *testing.T, value []byte) {
		raw, d := checkSAN(value)
		if d != nil {
			return
		}
		id, d := checkID(raw, raw, testTD)
		if d != nil {
			return
		}
		if !bytes.Equal(value, san(uri(id.String())).Value) {
			t.Fatalf("accepted %x, which is not the one encoding of %s", value, id)
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
		len(template.DNSNames)+len(template.IPAddresses)+len(template.EmailAddresses)+len(template.UnknownExtKeyUsage) != 0 ||
		template.KeyUsage&^allowed != 0 || len(template.ExtraExtensions) != 1 {
		t.Fatalf("approved a CSR that gives %+v", template)
	}
}
