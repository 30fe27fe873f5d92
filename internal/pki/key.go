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
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"strings"
)

// KeyType names an algorithm and size of a workload's private key.
type KeyType string

// The key types that an SVID may have. All are accepted by go-spiffe; P-256 is
// the default because a key and its CSR cost 0.2 ms, an RSA key up to half a
// second.
const (
	P256    KeyType = "P-256"
	P384    KeyType = "P-384"
	Ed25519 KeyType = "Ed25519"
	RSA2048 KeyType = "RSA-2048"
	RSA3072 KeyType = "RSA-3072"
	RSA4096 KeyType = "RSA-4096"
)

// KeyTypes lists every KeyType, the default first. The caller owns the slice.
func KeyTypes() []KeyType {
	return []KeyType{P256, P384, Ed25519, RSA2048, RSA3072, RSA4096}
}

// ParseKeyType accepts the exact names of KeyTypes.
func ParseKeyType(s string) (KeyType, error) {
	for _, t := range KeyTypes() {
		if string(t) == s {
			return t, nil
		}
	}
	return "", fmt.Errorf("key type %q is unknown (want one of %s)", s, joinKeyTypes())
}

func joinKeyTypes() string {
	names := make([]string, 0, len(KeyTypes()))
	for _, t := range KeyTypes() {
		names = append(names, string(t))
	}
	return strings.Join(names, ", ")
}

// KeyTypeOf tells the type of a public key. The error for a key that is none of
// KeyTypes names its algorithm and size.
func KeyTypeOf(pub crypto.PublicKey) (KeyType, error) {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return P256, nil
		case elliptic.P384():
			return P384, nil
		}
		return "", fmt.Errorf("ECDSA key on curve %s is not allowed (want one of %s)", k.Params().Name, joinKeyTypes())
	case ed25519.PublicKey:
		return Ed25519, nil
	case *rsa.PublicKey:
		switch k.N.BitLen() {
		case 2048:
			return RSA2048, nil
		case 3072:
			return RSA3072, nil
		case 4096:
			return RSA4096, nil
		}
		return "", fmt.Errorf("RSA key of %d bits is not allowed (want one of %s)", k.N.BitLen(), joinKeyTypes())
	}
	return "", fmt.Errorf("key of type %T is not allowed (want one of %s)", pub, joinKeyTypes())
}

// PrivateKey holds a workload's private key. It prints as a placeholder under
// every verb and in slog, and refuses to be marshalled, so that a key leaves the
// process only by MarshalPEM. The zero value holds no key.
//
// The key sits in a closure: where fmt may not call methods (an unexported field
// of something that is printed) it prints a function's address, under any verb.
type PrivateKey struct {
	reveal func() crypto.Signer
}

func hold(signer crypto.Signer) PrivateKey {
	return PrivateKey{reveal: func() crypto.Signer { return signer }}
}

// GenerateKey makes a new key from the system's random source.
func GenerateKey(t KeyType) (PrivateKey, error) {
	signer, err := generate(t)
	if err != nil {
		return PrivateKey{}, fmt.Errorf("generate %s key: %w", t, err)
	}
	return hold(signer), nil
}

func generate(t KeyType) (crypto.Signer, error) {
	switch t {
	case P256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case P384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case Ed25519:
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	case RSA2048:
		return rsa.GenerateKey(rand.Reader, 2048)
	case RSA3072:
		return rsa.GenerateKey(rand.Reader, 3072)
	case RSA4096:
		return rsa.GenerateKey(rand.Reader, 4096)
	}
	return nil, fmt.Errorf("unknown key type (want one of %s)", joinKeyTypes())
}

// NewPrivateKey wraps a signer of one of KeyTypes.
func NewPrivateKey(signer crypto.Signer) (PrivateKey, error) {
	if signer == nil {
		return PrivateKey{}, errors.New("private key is nil")
	}
	if _, err := KeyTypeOf(signer.Public()); err != nil {
		return PrivateKey{}, err
	}
	return hold(signer), nil
}

// ParsePrivateKeyPEM reads exactly one PKCS#8 "PRIVATE KEY" block, as MarshalPEM
// writes it. Errors never quote the input.
func ParsePrivateKeyPEM(b []byte) (PrivateKey, error) {
	block, rest := pem.Decode(b)
	if block == nil {
		return PrivateKey{}, errors.New("parse private key: no PEM block")
	}
	if block.Type != "PRIVATE KEY" {
		return PrivateKey{}, fmt.Errorf("parse private key: PEM block is %q, want \"PRIVATE KEY\"", block.Type)
	}
	if len(bytes.TrimSpace(rest)) != 0 {
		return PrivateKey{}, errors.New("parse private key: data after the PEM block")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return PrivateKey{}, fmt.Errorf("parse private key: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return PrivateKey{}, fmt.Errorf("parse private key: %T cannot sign", key)
	}
	return NewPrivateKey(signer)
}

// MarshalPEM returns the key as one PKCS#8 "PRIVATE KEY" block: what tls.key
// holds. The caller answers for where it goes.
func (k PrivateKey) MarshalPEM() ([]byte, error) {
	if k.IsZero() {
		return nil, errors.New("marshal private key: there is none")
	}
	der, err := x509.MarshalPKCS8PrivateKey(k.reveal())
	if err != nil {
		return nil, fmt.Errorf("marshal private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// Signer returns the key for signing. The result prints as any crypto.Signer
// does: do not log it. Nil for the zero value.
func (k PrivateKey) Signer() crypto.Signer {
	if k.IsZero() {
		return nil
	}
	return k.reveal()
}

// Public returns the public half, or nil for the zero value.
func (k PrivateKey) Public() crypto.PublicKey {
	if k.IsZero() {
		return nil
	}
	return k.reveal().Public()
}

// IsZero reports whether there is no key.
func (k PrivateKey) IsZero() bool { return k.reveal == nil }

const redacted = "[private key]"

// String implements fmt.Stringer without the key.
func (PrivateKey) String() string { return redacted }

// GoString implements fmt.GoStringer without the key.
func (PrivateKey) GoString() string { return redacted }

// Format implements fmt.Formatter without the key, for every verb.
func (PrivateKey) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// LogValue implements slog.LogValuer without the key.
func (PrivateKey) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalJSON refuses, so that a key never lands in a document by accident.
func (PrivateKey) MarshalJSON() ([]byte, error) {
	return nil, errors.New("private keys are not marshalled to JSON")
}

// MarshalText refuses, as MarshalJSON does.
func (PrivateKey) MarshalText() ([]byte, error) {
	return nil, errors.New("private keys are not marshalled to text")
}
