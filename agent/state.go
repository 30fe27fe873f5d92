// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/signet-spiffe/signet/agent/issue"
	"github.com/signet-spiffe/signet/agent/workload"
	"github.com/signet-spiffe/signet/internal/pki"
)

// stateVersion is the format of state. A reader refuses what it does not know.
const stateVersion = 1

// state is the private part of a volume, on its tmpfs, where only root on the
// node reads it. It holds the key, because a volume may show none as a file. It
// never holds a token: those stay in memory.
type state struct {
	Version  int       `json:"version"`
	Volume   string    `json:"volume"`
	Pod      issue.Pod `json:"pod"`
	GID      *int64    `json:"gid,omitempty"`
	SPIFFEID string    `json:"spiffe_id"`
	// Key, Chain and Bundle are PEM.
	Key    string `json:"key"`
	Chain  string `json:"chain"`
	Bundle string `json:"bundle"`
}

// String keeps the key out of what prints a state.
func (state) String() string { return "[volume state]" }

// GoString keeps the key out of what prints a state.
func (state) GoString() string { return "[volume state]" }

func marshalState(v workload.Volume, c workload.Content, key []byte) ([]byte, error) {
	b, err := json.Marshal(state{
		Version: stateVersion, Volume: v.ID, Pod: v.Pod, GID: v.GID, SPIFFEID: c.SVID.ID.String(),
		Key: string(key), Chain: string(pki.MarshalCertificates(c.SVID.Chain)), Bundle: string(pki.MarshalCertificates(c.Bundle.X509Authorities())),
	})
	if err != nil {
		return nil, fmt.Errorf("encode state of volume %s: %w", v.ID, err)
	}
	return b, nil
}

// unmarshalState parses what marshalState wrote, and takes nothing for granted:
// the key must be the certificate's and the certificate the identity's.
func unmarshalState(b []byte) (recovered, error) {
	var s state
	if err := json.Unmarshal(b, &s); err != nil {
		return recovered{}, errors.New("decode state: not JSON") // The error could quote the key.
	}
	if s.Version != stateVersion {
		return recovered{}, fmt.Errorf("decode state: version %d, this agent knows %d", s.Version, stateVersion)
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
	if public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(leaf.PublicKey) {
		return recovered{}, errors.New("decode state: key and certificate do not match")
	}
	return recovered{
		volume: workload.Volume{ID: s.Volume, Pod: s.Pod, GID: s.GID},
		svid:   &workload.SVID{ID: id, Chain: chain, Key: key},
		bundle: x509bundle.FromX509Authorities(id.TrustDomain(), roots),
	}, nil
}
