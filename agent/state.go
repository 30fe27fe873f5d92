// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/signet-spiffe/signet/agent/issue"
	"github.com/signet-spiffe/signet/agent/workload"
	"github.com/signet-spiffe/signet/csi"
	"github.com/signet-spiffe/signet/internal/pki"
)

// The formats of state. A reader refuses what it does not know. A volume without
// attributes has the first, which every agent reads; an agent that does not know
// attributes must not take up a volume that has any: it might show a key that is
// not to be shown. Nor may one that does not know of DNS names take up a volume
// that has some: its next SVID would lack them.
const (
	statePlain      = 1
	stateAttributes = 2
	stateDNSNames   = 3
)

// state is the private part of a volume, on its tmpfs, where only root on the
// node reads it. It holds the key, because a volume may show none as a file. It
// never holds a token: those stay in memory.
type state struct {
	Version int       `json:"version"`
	Volume  string    `json:"volume"`
	Pod     issue.Pod `json:"pod"`
	// UID and GID own the files; nil is root. An agent that knows of no UID makes
	// root their owner at the next renewal: the pod's user is kept out then, nobody
	// is let in.
	UID *int64 `json:"uid,omitempty"`
	GID *int64 `json:"gid,omitempty"`
	// Attributes are nil in statePlain.
	Attributes *attributes `json:"attributes,omitempty"`
	// Unissued says that there is no SVID yet; the rest is empty then.
	Unissued bool   `json:"unissued,omitempty"`
	SPIFFEID string `json:"spiffe_id,omitempty"`
	// Key, Chain and Bundle are PEM.
	Key    string `json:"key,omitempty"`
	Chain  string `json:"chain,omitempty"`
	Bundle string `json:"bundle,omitempty"`
	// IssuedWith is what the certificate was issued with. A state from before
	// this was kept has none, and its SVID is taken as it is.
	IssuedWith issuedWith `json:"issued_with,omitzero"`
}

// attributes is workload.Attributes as it is stored. Durations are nanoseconds.
type attributes struct {
	NoWait      bool          `json:"no_wait,omitempty"`
	KeyType     pki.KeyType   `json:"key_type,omitempty"`
	Duration    time.Duration `json:"duration,omitempty"`
	RenewBefore time.Duration `json:"renew_before,omitempty"`
	DNSNames    pki.DNSNames  `json:"dns_names,omitempty"`
	NoFiles     bool          `json:"no_files,omitempty"`
	NoSocket    bool          `json:"no_socket,omitempty"`
	Certificate string        `json:"file_name_certificate,omitempty"`
	Key         string        `json:"file_name_key,omitempty"`
	CA          string        `json:"file_name_ca,omitempty"`
	Socket      string        `json:"file_name_socket,omitempty"`
}

// issuedWith is a workload.Basis but for the key type, which the key itself tells.
type issuedWith struct {
	Issuer   string `json:"issuer,omitempty"`
	Duration string `json:"duration,omitempty"`
}

func (w issuedWith) basis(key pki.PrivateKey) (workload.Basis, error) {
	b := workload.Basis{Issuer: w.Issuer}
	var err error
	if w.Duration != "" {
		if b.Duration, err = time.ParseDuration(w.Duration); err != nil {
			return b, errors.New("decode state: issued_with: duration is none")
		}
	}
	if b.KeyType, err = pki.KeyTypeOf(key.Public()); err != nil {
		return b, fmt.Errorf("decode state: %w", err)
	}
	return b, nil
}

// String keeps the key out of what prints a state.
func (state) String() string { return "[volume state]" }

// GoString keeps the key out of what prints a state.
func (state) GoString() string { return "[volume state]" }

func marshalState(v workload.Volume, c workload.Content, key []byte) ([]byte, error) {
	s := stateOf(v)
	s.SPIFFEID, s.Key = c.SVID.ID.String(), string(key)
	s.Chain, s.Bundle = string(pki.MarshalCertificates(c.SVID.Chain)), string(pki.MarshalCertificates(c.Bundle.X509Authorities()))
	s.IssuedWith = issuedWith{Issuer: c.SVID.Basis.Issuer, Duration: c.SVID.Basis.Duration.String()}
	return s.marshal()
}

// marshalUnissued is the state of a volume that has no SVID yet.
func marshalUnissued(v workload.Volume) ([]byte, error) {
	s := stateOf(v)
	s.Unissued = true
	return s.marshal()
}

func stateOf(v workload.Volume) state {
	s := state{Version: statePlain, Volume: v.ID, Pod: v.Pod, UID: v.UID, GID: v.GID}
	if a, d := v.Attributes, v.Attributes.Delivery; a != (workload.Attributes{}) {
		s.Version = stateAttributes
		s.Attributes = &attributes{
			NoWait: a.NoWait, KeyType: a.KeyType, Duration: a.Duration, RenewBefore: a.RenewBefore, DNSNames: a.DNSNames,
			NoFiles: d.NoFiles, NoSocket: d.NoSocket, Certificate: d.Certificate, Key: d.Key, CA: d.CA, Socket: d.Socket,
		}
		if a.DNSNames != "" {
			s.Version = stateDNSNames
		}
	}
	return s
}

func (s state) marshal() ([]byte, error) {
	b, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode state of volume %s: %w", s.Volume, err)
	}
	return b, nil
}

// parse checks what was stored; nil has no attributes.
func (a *attributes) parse() (workload.Attributes, error) {
	if a == nil {
		return workload.Attributes{}, nil
	}
	if a.KeyType != "" {
		if _, err := pki.ParseKeyType(string(a.KeyType)); err != nil {
			return workload.Attributes{}, err
		}
	}
	if a.DNSNames != "" {
		if names, err := pki.ParseDNSNames(string(a.DNSNames)); err != nil || names != a.DNSNames {
			return workload.Attributes{}, errors.New("the DNS names are not a set of DNS names")
		}
	}
	if a.Duration < 0 || a.RenewBefore < 0 || a.NoFiles && a.NoSocket {
		return workload.Attributes{}, errors.New("attributes contradict themselves")
	}
	for _, name := range []string{a.Certificate, a.Key, a.CA, a.Socket} {
		if name != "" && !csi.IsFileName(name) {
			return workload.Attributes{}, fmt.Errorf("file name %q", name)
		}
	}
	return workload.Attributes{
		NoWait: a.NoWait, KeyType: a.KeyType, Duration: a.Duration, RenewBefore: a.RenewBefore, DNSNames: a.DNSNames,
		Delivery: workload.Delivery{
			NoFiles: a.NoFiles, NoSocket: a.NoSocket, Certificate: a.Certificate, Key: a.Key, CA: a.CA, Socket: a.Socket,
		},
	}, nil
}

// volume says whose the state is.
func (s state) volume() (workload.Volume, error) {
	if s.Version < statePlain || s.Version > stateDNSNames {
		return workload.Volume{}, fmt.Errorf("version %d, this agent knows %d to %d", s.Version, statePlain, stateDNSNames)
	}
	chosen, err := s.Attributes.parse()
	if err != nil {
		return workload.Volume{}, err
	}
	return workload.Volume{ID: s.Volume, Pod: s.Pod, UID: s.UID, GID: s.GID, Attributes: chosen}, nil
}

// sameKey says that two public keys are one.
func sameKey(a, b crypto.PublicKey) bool {
	key, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && key.Equal(b)
}

// unmarshalState parses what marshalState wrote, and takes nothing for granted:
// the key must be the certificate's and the certificate the identity's, with the
// DNS names that the volume chose.
func unmarshalState(b []byte) (recovered, error) {
	var s state
	if err := json.Unmarshal(b, &s); err != nil {
		return recovered{}, errors.New("decode state: not JSON") // The error could quote the key.
	}
	volume, err := s.volume()
	if err != nil {
		return recovered{}, fmt.Errorf("decode state: %w", err)
	}
	if s.Unissued && volume.Attributes.NoWait {
		return recovered{volume: volume}, nil
	}
	id, err := spiffeid.FromString(s.SPIFFEID)
	if err != nil {
		return recovered{}, fmt.Errorf("decode state: SPIFFE ID: %w", err)
	}
	key, err := pki.ParsePrivateKeyPEM([]byte(s.Key))
	if err != nil {
		return recovered{}, fmt.Errorf("decode state: %w", err)
	}
	chain, err := pki.ParseCertificates([]byte(s.Chain))
	if err != nil {
		return recovered{}, fmt.Errorf("decode state: chain: %w", err)
	}
	roots, err := pki.ParseCertificates([]byte(s.Bundle))
	if err != nil {
		return recovered{}, fmt.Errorf("decode state: bundle: %w", err)
	}
	leaf := chain[0]
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != id.String() {
		return recovered{}, fmt.Errorf("decode state: the certificate is not for %s", id)
	}
	if names, err := pki.NewDNSNames(leaf.DNSNames...); err != nil || names != volume.Attributes.DNSNames {
		return recovered{}, errors.New("decode state: the certificate has other DNS names than the volume chose")
	}
	if !sameKey(key.Public(), leaf.PublicKey) {
		return recovered{}, errors.New("decode state: key and certificate do not match")
	}
	basis, err := s.IssuedWith.basis(key)
	if err != nil {
		return recovered{}, err
	}
	return recovered{
		volume: volume,
		svid:   &workload.SVID{ID: id, Chain: chain, Key: key, Basis: basis},
		bundle: x509bundle.FromX509Authorities(id.TrustDomain(), roots),
	}, nil
}
