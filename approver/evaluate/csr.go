// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package evaluate

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/signet-spiffe/signet/internal/pki"
)

// maxCSRBytes bounds the work on one request. A CSR with an RSA-4096 key, the
// longest SPIFFE ID and the longest DNS names has under 12 KiB.
const maxCSRBytes = 16 << 10

const csrPEMType = "CERTIFICATE REQUEST"

var (
	oidExtensionRequest = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14} // RFC 2985 5.4.2
	oidKeyUsage         = asn1.ObjectIdentifier{2, 5, 29, 15}                // RFC 5280 4.2.1.3
	oidSubjectAltName   = asn1.ObjectIdentifier{2, 5, 29, 17}                // RFC 5280 4.2.1.6
	oidExtKeyUsage      = asn1.ObjectIdentifier{2, 5, 29, 37}                // RFC 5280 4.2.1.12
	oidServerAuth       = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 1}
	oidClientAuth       = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 2}
)

// names are those that a CSR asks for: one URI, byte for byte, and DNS names.
type names struct {
	uri string
	dns pki.DNSNames
}

// checkCSR holds the rules on the CSR and returns the names that it asks for. The
// encoding is walked here, and not left to x509 alone, because
// crypto/x509 skips attributes it cannot read, and issuers other than
// cert-manager's own may read them.
func checkCSR(request []byte, keyTypes []pki.KeyType) (names, *denial) {
	der, d := decodePEM(request)
	if d != nil {
		return names{}, d
	}
	extensions, d := walk(der)
	if d != nil {
		return names{}, d
	}
	found, d := checkExtensions(extensions)
	if d != nil {
		return names{}, d
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return names{}, deny(RuleEncoding, "the CSR cannot be parsed: %s", quote(err.Error()))
	}
	if err := csr.CheckSignature(); err != nil {
		return names{}, deny(RuleSignature, "the CSR's signature does not match its key: %s", quote(err.Error()))
	}
	return found, checkKey(csr, keyTypes)
}

// decodePEM accepts one PEM block between optional white space. pem.Decode alone
// would skip whatever comes before the first block it can read.
func decodePEM(b []byte) ([]byte, *denial) {
	if len(b) > maxCSRBytes {
		return nil, deny(RuleEncoding, "the CSR has %d bytes, allowed are %d", len(b), maxCSRBytes)
	}
	b = bytes.TrimSpace(b)
	if !bytes.HasPrefix(b, []byte("-----BEGIN "+csrPEMType+"-----")) || bytes.Count(b, []byte("-----BEGIN")) != 1 {
		return nil, deny(RuleEncoding, "spec.request is not exactly one PEM block of type %q", csrPEMType)
	}
	block, rest := pem.Decode(b)
	if block == nil || block.Type != csrPEMType || len(block.Headers) != 0 || len(bytes.TrimSpace(rest)) != 0 {
		return nil, deny(RuleEncoding, "spec.request is not exactly one PEM block of type %q without headers", csrPEMType)
	}
	return block.Bytes, nil
}

// extension is one requested extension, its OID in dotted form.
type extension struct {
	id    asn1.ObjectIdentifier
	value cryptobyte.String
}

// walk reads a PKCS#10 request strictly (RFC 2986 4.1, DER) and returns the
// requested extensions: version 1, an empty subject, and at most one attribute,
// an extension request with one value.
func walk(der []byte) ([]extension, *denial) {
	malformed := func(where string) *denial {
		return deny(RuleEncoding, "the CSR is not one DER-encoded PKCS#10 request: bad %s", where)
	}
	input := cryptobyte.String(der)
	var outer, info, subject cryptobyte.String
	if !input.ReadASN1(&outer, cbasn1.SEQUENCE) || !input.Empty() {
		return nil, malformed("outer sequence, or data after it")
	}
	var version uint
	if !outer.ReadASN1(&info, cbasn1.SEQUENCE) || !info.ReadASN1Integer(&version) || version != 0 {
		return nil, malformed("version (RFC 2986 4.1 knows 0 alone)")
	}
	if !info.ReadASN1(&subject, cbasn1.SEQUENCE) {
		return nil, malformed("subject")
	}
	if !subject.Empty() {
		return nil, deny(RuleSubject, "the CSR has a subject of %d bytes, allowed is an empty one: the SPIFFE ID alone names a workload", len(subject))
	}
	if !info.SkipASN1(cbasn1.SEQUENCE) {
		return nil, malformed("public key")
	}
	var attributes cryptobyte.String
	if !info.ReadASN1(&attributes, cbasn1.Tag(0).Constructed().ContextSpecific()) || !info.Empty() {
		return nil, malformed("attributes, or data after them")
	}
	return walkAttributes(attributes)
}

func walkAttributes(attributes cryptobyte.String) ([]extension, *denial) {
	if attributes.Empty() {
		return nil, nil
	}
	var attribute, values, extensions cryptobyte.String
	var oid asn1.ObjectIdentifier
	if !attributes.ReadASN1(&attribute, cbasn1.SEQUENCE) || !attribute.ReadASN1ObjectIdentifier(&oid) {
		return nil, deny(RuleEncoding, "the CSR is not one DER-encoded PKCS#10 request: bad attribute")
	}
	if !oid.Equal(oidExtensionRequest) {
		return nil, deny(RuleExtensions, "the CSR has attribute %s, allowed is the extension request alone", quote(oid.String()))
	}
	if !attributes.Empty() {
		return nil, deny(RuleExtensions, "the CSR has more than one attribute, allowed is one extension request")
	}
	if !attribute.ReadASN1(&values, cbasn1.SET) || !attribute.Empty() ||
		!values.ReadASN1(&extensions, cbasn1.SEQUENCE) || !values.Empty() {
		return nil, deny(RuleEncoding, "the CSR is not one DER-encoded PKCS#10 request: bad extension request (one value is allowed)")
	}
	return walkExtensions(extensions)
}

func walkExtensions(s cryptobyte.String) ([]extension, *denial) {
	var out []extension
	for !s.Empty() {
		var ext extension
		var body cryptobyte.String
		if !s.ReadASN1(&body, cbasn1.SEQUENCE) || !body.ReadASN1ObjectIdentifier(&ext.id) ||
			!skipCritical(&body) || !body.ReadASN1(&ext.value, cbasn1.OCTET_STRING) || !body.Empty() {
			return nil, deny(RuleEncoding, "the CSR is not one DER-encoded PKCS#10 request: bad extension")
		}
		if slices.ContainsFunc(out, func(e extension) bool { return e.id.Equal(ext.id) }) {
			return nil, deny(RuleExtensions, "the CSR has extension %s twice", quote(ext.id.String()))
		}
		out = append(out, ext)
	}
	return out, nil
}

// skipCritical reads the optional critical flag, which DER encodes only when true.
func skipCritical(body *cryptobyte.String) bool {
	if !body.PeekASN1Tag(cbasn1.BOOLEAN) {
		return true
	}
	var critical bool
	return body.ReadASN1Boolean(&critical) && critical
}

// checkExtensions returns the names in the SAN.
func checkExtensions(extensions []extension) (found names, d *denial) {
	hasSAN := false
	for _, ext := range extensions {
		switch {
		case ext.id.Equal(oidSubjectAltName):
			hasSAN = true
			found, d = checkSAN(ext.value)
		case ext.id.Equal(oidKeyUsage):
			d = checkKeyUsage(ext.value)
		case ext.id.Equal(oidExtKeyUsage):
			d = checkExtKeyUsage(ext.value)
		default:
			d = deny(RuleExtensions, "the CSR asks for extension %s, allowed are subject alternative name, key usage and extended key usage", quote(ext.id.String()))
		}
		if d != nil {
			return names{}, d
		}
	}
	if !hasSAN {
		return names{}, deny(RuleSAN, "the CSR has no subject alternative name, it must have one URI, the SPIFFE ID (X509-SVID §2)")
	}
	return found, nil
}

// The GeneralName alternatives (RFC 5280 4.2.1.6), by context tag.
var nameKinds = []string{"otherName", "e-mail address", "DNS name", "X.400 address", "directory name", "EDI party name", "URI", "IP address", "registered ID"}

const (
	tagDNS = cbasn1.Tag(2) | classContextSpecific
	tagURI = cbasn1.Tag(6) | classContextSpecific

	classContextSpecific = 0x80
)

// checkSAN accepts a sequence of exactly one URI and a set of DNS names, in any
// order. Which DNS names may be asked for is checkDNSNames's to say.
func checkSAN(value cryptobyte.String) (names, *denial) {
	var list cryptobyte.String
	if !value.ReadASN1(&list, cbasn1.SEQUENCE) || !value.Empty() {
		return names{}, deny(RuleSAN, "the subject alternative name is not a DER sequence")
	}
	var uris, dns []string
	for !list.Empty() {
		var name cryptobyte.String
		var tag cbasn1.Tag
		if !list.ReadAnyASN1(&name, &tag) {
			return names{}, deny(RuleSAN, "the subject alternative name is not a DER sequence of names")
		}
		switch tag {
		case tagURI:
			uris = append(uris, string(name))
		case tagDNS:
			dns = append(dns, string(name))
		default:
			return names{}, deny(RuleSAN, "the subject alternative name holds %s, allowed are one URI (X509-SVID §2) and DNS names", nameKind(tag))
		}
	}
	if len(uris) != 1 {
		return names{}, deny(RuleSAN, "the subject alternative name holds %d URIs, allowed is exactly one (X509-SVID §2)", len(uris))
	}
	set, err := pki.NewDNSNames(dns...)
	if err != nil {
		return names{}, deny(RuleSAN, "in the subject alternative name, %v", err)
	}
	return names{uri: uris[0], dns: set}, nil
}

func nameKind(tag cbasn1.Tag) string {
	const number = 0x1f
	if n := int(tag & number); tag&classContextSpecific != 0 && n < len(nameKinds) {
		return "a name of kind " + quote(nameKinds[n])
	}
	return fmt.Sprintf("an unknown name (tag %#x)", uint8(tag))
}

// checkKeyUsage accepts any of digitalSignature (bit 0) and keyEncipherment
// (bit 2), the two that request.Usages holds.
func checkKeyUsage(value cryptobyte.String) *denial {
	var bits asn1.BitString
	if !value.ReadASN1BitString(&bits) || !value.Empty() {
		return deny(RuleKeyUsage, "the key usage extension is not a DER bit string")
	}
	for i := range bits.BitLength {
		if bits.At(i) == 1 && i != 0 && i != 2 {
			return deny(RuleKeyUsage, "the CSR asks for key usage bit %d, allowed are digitalSignature (0) and keyEncipherment (2)", i)
		}
	}
	return nil
}

// checkExtKeyUsage accepts any of serverAuth and clientAuth.
func checkExtKeyUsage(value cryptobyte.String) *denial {
	var usages cryptobyte.String
	if !value.ReadASN1(&usages, cbasn1.SEQUENCE) || !value.Empty() {
		return deny(RuleKeyUsage, "the extended key usage extension is not a DER sequence")
	}
	for !usages.Empty() {
		var oid asn1.ObjectIdentifier
		if !usages.ReadASN1ObjectIdentifier(&oid) {
			return deny(RuleKeyUsage, "the extended key usage extension is not a DER sequence of object identifiers")
		}
		if !oid.Equal(oidServerAuth) && !oid.Equal(oidClientAuth) {
			return deny(RuleKeyUsage, "the CSR asks for extended key usage %s, allowed are server auth and client auth", quote(oid.String()))
		}
	}
	return nil
}

func checkKey(csr *x509.CertificateRequest, allowed []pki.KeyType) *denial {
	t, err := pki.KeyTypeOf(csr.PublicKey)
	if err != nil {
		return deny(RuleKeyType, "%v", err)
	}
	if !slices.Contains(allowed, t) {
		return deny(RuleKeyType, "asked with a key of type %s, allowed is %s", t, joinKeyTypes(allowed))
	}
	return nil
}

func joinKeyTypes(types []pki.KeyType) string {
	names := make([]string, len(types))
	for i, t := range types {
		names[i] = string(t)
	}
	return strings.Join(names, ", ")
}
