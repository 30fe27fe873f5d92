// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

var workloadID = spiffeid.RequireFromString("spiffe://example.org/ns/shop/sa/cart")

func mustKey(t testing.TB, kt KeyType) PrivateKey {
	t.Helper()
	key, err := GenerateKey(kt)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestKeyTypesRoundTrip(t *testing.T) {
	for _, kt := range KeyTypes() {
		t.Run(string(kt), func(t *testing.T) {
			if parsed, err := ParseKeyType(string(kt)); err != nil || parsed != kt {
				t.Fatalf("ParseKeyType(%q) = %q, %v", kt, parsed, err)
			}
			key := mustKey(t, kt)
			if got, err := KeyTypeOf(key.Public()); err != nil || got != kt {
				t.Errorf("KeyTypeOf = %q, %v, want %q", got, err, kt)
			}
			b, err := key.MarshalPEM()
			if err != nil {
				t.Fatal(err)
			}
			back, err := ParsePrivateKeyPEM(b)
			if err != nil {
				t.Fatal(err)
			}
			if !back.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(key.Public()) {
				t.Error("the key that was read back is another one")
			}
		})
	}
}

func TestKeyTypesRefused(t *testing.T) {
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewPrivateKey(p521); err == nil || !strings.Contains(err.Error(), "P-521") {
		t.Errorf("P-521: %v, want an error that names the curve", err)
	}
	odd := &rsa.PublicKey{N: mustKey(t, RSA2048).Signer().Public().(*rsa.PublicKey).N, E: 65537}
	odd.N.Rsh(odd.N, 1)
	if _, err := KeyTypeOf(odd); err == nil || !strings.Contains(err.Error(), "2047 bits") {
		t.Errorf("odd RSA: %v, want an error that names the size", err)
	}
	if _, err := ParseKeyType("p-256"); err == nil {
		t.Error("ParseKeyType(p-256): want an error")
	}
	if _, err := GenerateKey("DSA"); err == nil {
		t.Error("GenerateKey(DSA): want an error")
	}
	if _, err := NewPrivateKey(nil); err == nil {
		t.Error("NewPrivateKey(nil): want an error")
	}
}

// A private key must not come out of the process by printing, logging or
// marshalling what holds it.
func TestPrivateKeyDoesNotPrint(t *testing.T) {
	ec, ed := mustKey(t, P256), mustKey(t, Ed25519)
	var out bytes.Buffer
	for _, key := range []PrivateKey{ec, ed} {
		holder := struct{ Key PrivateKey }{key}
		hidden := struct{ key PrivateKey }{key} // fmt cannot call methods here.
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%d", "%x", "%q"} {
			for _, value := range []any{key, holder, &holder, hidden, &hidden, []PrivateKey{key}} {
				fmt.Fprintf(&out, verb+"\n", value)
			}
		}
		slog.New(slog.NewTextHandler(&out, nil)).Info("x", "key", key, "holder", holder, "hidden", hidden)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "key", key, "holder", holder)
		if b, err := json.Marshal(holder); err == nil {
			t.Errorf("marshalled to JSON: %s", b)
		}
	}
	edBytes := ed.Signer().(ed25519.PrivateKey)
	ecBytes, err := ec.Signer().(*ecdsa.PrivateKey).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	for name, secret := range map[string]string{
		"P-256 scalar, decimal":     new(big.Int).SetBytes(ecBytes).String(),
		"P-256 scalar, hexadecimal": fmt.Sprintf("%x", ecBytes),
		"Ed25519 seed, decimal":     strings.Trim(fmt.Sprint([]byte(edBytes[:8])), "[]"),
		"Ed25519 seed, hexadecimal": fmt.Sprintf("%x", []byte(edBytes[:8])),
	} {
		if strings.Contains(out.String(), secret) {
			t.Errorf("printed: %s", name)
		}
	}
	if !strings.Contains(out.String(), redacted) {
		t.Errorf("nothing was printed as %q: %s", redacted, out.String())
	}
}

func TestParsePrivateKeyPEMRefuses(t *testing.T) {
	key := mustKey(t, P256)
	good, err := key.MarshalPEM()
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(key.Signer().(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	for name, in := range map[string][]byte{
		"empty":         nil,
		"not PEM":       []byte("hello"),
		"SEC 1":         pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1}),
		"trailing data": append(bytes.Clone(good), "x"...),
		"damaged DER":   pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1, 2, 3}}),
	} {
		if _, err := ParsePrivateKeyPEM(in); err == nil {
			t.Errorf("%s: want an error", name)
		}
	}
	if _, err := (PrivateKey{}).MarshalPEM(); err == nil {
		t.Error("MarshalPEM without a key: want an error")
	}
}

func TestNewCSR(t *testing.T) {
	for _, kt := range []KeyType{P256, P384, Ed25519} {
		b, err := NewCSR(mustKey(t, kt), workloadID, "")
		if err != nil {
			t.Fatal(err)
		}
		block, rest := pem.Decode(b)
		if block == nil || block.Type != "CERTIFICATE REQUEST" || len(rest) != 0 {
			t.Fatalf("%s: not one CERTIFICATE REQUEST block", kt)
		}
		csr, err := x509.ParseCertificateRequest(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if err := csr.CheckSignature(); err != nil {
			t.Error(err)
		}
		if len(csr.Subject.Names) != 0 {
			t.Errorf("subject %v, want none", csr.Subject)
		}
		if len(csr.URIs) != 1 || csr.URIs[0].String() != workloadID.String() {
			t.Errorf("URIs %v, want %s", csr.URIs, workloadID)
		}
		if len(csr.Extensions) != 1 || !csr.Extensions[0].Id.Equal(oidSubjectAltName) || !csr.Extensions[0].Critical {
			t.Errorf("extensions %v, want the SAN alone and critical (RFC 5280 4.1.2.6)", csr.Extensions)
		}
	}
}

func TestNewCSRWithDNSNames(t *testing.T) {
	names, err := NewDNSNames("web.shop.svc", "shop.svc")
	if err != nil {
		t.Fatal(err)
	}
	b, err := NewCSR(mustKey(t, P256), workloadID, names)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if len(csr.Extensions) != 1 || !csr.Extensions[0].Critical {
		t.Fatalf("extensions %v, want the SAN alone and critical", csr.Extensions)
	}
	var got []asn1.RawValue
	if rest, err := asn1.Unmarshal(csr.Extensions[0].Value, &got); err != nil || len(rest) != 0 {
		t.Fatalf("SAN: %v", err)
	}
	want := []struct {
		tag  int
		name string
	}{{6, workloadID.String()}, {2, "shop.svc"}, {2, "web.shop.svc"}}
	if len(got) != len(want) {
		t.Fatalf("%d names, want %d", len(got), len(want))
	}
	for i, w := range want {
		if got[i].Tag != w.tag || got[i].Class != asn1.ClassContextSpecific || got[i].IsCompound || string(got[i].Bytes) != w.name {
			t.Errorf("name %d is %+v, want %+v", i, got[i], w)
		}
	}
}

func TestNewCSRRefuses(t *testing.T) {
	key := mustKey(t, P256)
	if _, err := NewCSR(PrivateKey{}, workloadID, ""); err == nil {
		t.Error("no key: want an error")
	}
	if _, err := NewCSR(key, spiffeid.ID{}, ""); err == nil {
		t.Error("no ID: want an error")
	}
	if _, err := NewCSR(key, spiffeid.RequireFromString("spiffe://example.org"), ""); err == nil {
		t.Error("ID without a path: want an error")
	}
}

func FuzzParseCertificates(f *testing.F) {
	f.Add([]byte(""))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		certs, err := ParseCertificates(in)
		if (err == nil) != (len(certs) > 0) {
			t.Fatalf("%d certificates and error %v", len(certs), err)
		}
		if err != nil {
			return
		}
		back, err := ParseCertificates(MarshalCertificates(certs))
		if err != nil || len(back) != len(certs) {
			t.Fatalf("does not survive a round trip: %v", err)
		}
	})
}
