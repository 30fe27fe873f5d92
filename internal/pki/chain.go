// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// ParseCertificates reads a PEM file of one or more certificates, in order. Text
// between the blocks is tolerated, as every TLS library does; a block of another
// type or one that does not parse is an error that says which one.
func ParseCertificates(pemBytes []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for rest := pemBytes; ; {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			if bytes.Contains(rest, []byte("-----BEGIN")) {
				return nil, fmt.Errorf("parse certificates: PEM block %d is damaged", len(certs)+1)
			}
			break
		}
		if block.Type != "CERTIFICATE" {
			// The type is foreign text; %q keeps it on one line.
			return nil, fmt.Errorf("parse certificates: PEM block %d is %q, want \"CERTIFICATE\"", len(certs)+1, block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parse certificates: PEM block %d: %w", len(certs)+1, err)
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, errors.New("parse certificates: no PEM block of type \"CERTIFICATE\"")
	}
	return certs, nil
}

// MarshalCertificates writes certificates as PEM, in order.
func MarshalCertificates(certs []*x509.Certificate) []byte {
	var out bytes.Buffer
	for _, cert := range certs {
		// Encoding to a bytes.Buffer fails only on bad headers; there are none.
		_ = pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
	}
	return out.Bytes()
}
