// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// oidSubjectAltName is id-ce-subjectAltName (RFC 5280 4.2.1.6).
var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// tagDNS and tagURI are the context tags of dNSName and
// uniformResourceIdentifier in GeneralName (RFC 5280 4.2.1.6).
const (
	tagDNS = 2
	tagURI = 6
)

// NewCSR makes the PEM certificate signing request for id: no subject, and a SAN
// with one URI and, after it, dnsNames. The SAN extension is critical, because a
// certificate without a subject must carry it so (RFC 5280 4.1.2.6, X509-SVID
// §3.1) and some issuers copy the flag from the request instead of setting it
// themselves.
func NewCSR(key PrivateKey, id spiffeid.ID, dnsNames DNSNames) ([]byte, error) {
	if key.IsZero() {
		return nil, fmt.Errorf("make CSR for %s: there is no key", id)
	}
	if id.IsZero() || id.Path() == "" {
		return nil, errors.New("make CSR: a workload's SPIFFE ID needs a path (X509-SVID §3.1)")
	}
	names := []asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: tagURI, Bytes: []byte(id.String())}}
	for _, name := range dnsNames.Names() {
		names = append(names, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tagDNS, Bytes: []byte(name)})
	}
	san, err := asn1.Marshal(names)
	if err != nil {
		return nil, fmt.Errorf("make CSR for %s: encode SAN: %w", id, err)
	}
	template := &x509.CertificateRequest{
		ExtraExtensions: []pkix.Extension{{Id: oidSubjectAltName, Critical: true, Value: san}},
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key.Signer())
	if err != nil {
		return nil, fmt.Errorf("make CSR for %s: %w", id, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}
