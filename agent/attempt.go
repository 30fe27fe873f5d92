// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/signet-spiffe/signet/agent/workload"
	"github.com/signet-spiffe/signet/csi"
	"github.com/signet-spiffe/signet/internal/failpoint"
	"github.com/signet-spiffe/signet/internal/pki"
)

// attempt is the file beside a volume's state while a request is under way: what the
// agent that comes after this one needs to take its answer. A mount that waits has no
// state yet, so it says whose the volume is as a state does. It never holds a token.
type attempt struct {
	Volume state `json:"volume"`
	// Request is the issuer's name of it.
	Request  string `json:"request"`
	SPIFFEID string `json:"spiffe_id"`
	// Key is PEM.
	Key       string     `json:"key"`
	AskedWith issuedWith `json:"asked_with"`
}

// String keeps the key out of what prints an attempt.
func (attempt) String() string { return "[attempt]" }

// GoString keeps the key out of what prints an attempt.
func (attempt) GoString() string { return "[attempt]" }

var _ workload.Attempts = (*volumes)(nil)

// Keep implements workload.Attempts.
func (v *volumes) Keep(volume workload.Volume, a workload.Attempt) error {
	dir, ok := v.store.Get(volume.ID)
	if !ok {
		return fmt.Errorf("keep attempt of volume %s: the volume's storage is gone", volume.ID)
	}
	b, err := marshalAttempt(volume, a)
	if err != nil {
		return fmt.Errorf("keep attempt of volume %s: %w", volume.ID, err)
	}
	if err := dir.WriteAttempt(b); err != nil {
		return err
	}
	failpoint.Here("attempt/kept")
	return nil
}

// Drop implements workload.Attempts.
func (v *volumes) Drop(id string) error {
	dir, ok := v.store.Get(id)
	if !ok {
		return nil
	}
	if err := dir.RemoveAttempt(); err != nil {
		return err
	}
	failpoint.Here("attempt/dropped")
	return nil
}

func marshalAttempt(volume workload.Volume, a workload.Attempt) ([]byte, error) {
	key, err := a.Key.MarshalPEM()
	if err != nil {
		return nil, err
	}
	return json.Marshal(attempt{
		Volume: stateOf(volume), Request: a.Request, SPIFFEID: a.ID.String(), Key: string(key),
		AskedWith: issuedWith{Issuer: a.Basis.Issuer, Duration: a.Basis.Duration.String()},
	})
}

// unmarshalAttempt parses what marshalAttempt wrote, and takes nothing for granted.
// Whether the request is there, and its answer good, others find out.
func unmarshalAttempt(b []byte) (workload.Volume, *workload.Attempt, error) {
	var a attempt
	if err := json.Unmarshal(b, &a); err != nil {
		return workload.Volume{}, nil, errors.New("decode attempt: not JSON") // The error could quote the key.
	}
	volume, err := a.Volume.volume()
	if err != nil {
		return workload.Volume{}, nil, fmt.Errorf("decode attempt: %w", err)
	}
	id, err := spiffeid.FromString(a.SPIFFEID)
	if err != nil {
		return workload.Volume{}, nil, fmt.Errorf("decode attempt: SPIFFE ID: %w", err)
	}
	key, err := pki.ParsePrivateKeyPEM([]byte(a.Key))
	if err != nil {
		return workload.Volume{}, nil, fmt.Errorf("decode attempt: %w", err)
	}
	basis, err := a.AskedWith.basis(key)
	if err != nil {
		return workload.Volume{}, nil, err
	}
	if a.Request == "" {
		return workload.Volume{}, nil, errors.New("decode attempt: no request is named")
	}
	return volume, &workload.Attempt{Request: a.Request, ID: id, Key: key, Basis: basis}, nil
}

// errEnded says that an attempt's certificate was stored before the agent ended.
var errEnded = errors.New("the attempt has ended")

// fits says why an attempt cannot be that of a volume whose state was read.
func (r recovered) fits(volume workload.Volume, a *workload.Attempt) error {
	switch {
	case volume.ID != r.volume.ID || volume.Pod != r.volume.Pod:
		return errors.New("it is of another volume")
	case r.svid != nil && sameKey(r.svid.Key.Public(), a.Key.Public()):
		return errEnded
	}
	return nil
}

// recoverAttempt reads the attempt that was under way for a volume whose state was
// read; nil if there is none.
func (v *volumes) recoverAttempt(dir *csi.Dir, r recovered) *workload.Attempt {
	_, a := v.readAttempt(dir, r.fits)
	return a
}

// recoverMount takes up a volume without state, which was never published, if an
// attempt was under way for it: kubelet waits. The error is fs.ErrNotExist if none
// was.
func (v *volumes) recoverMount(dir *csi.Dir) (recovered, error) {
	volume, a := v.readAttempt(dir, func(volume workload.Volume, _ *workload.Attempt) error {
		switch {
		case volume.ID != dir.ID():
			return fmt.Errorf("it is of volume %q", volume.ID)
		case volume.Attributes.NoWait:
			return errors.New("it is of a volume that does not wait, and there is no state")
		}
		return nil
	})
	if a == nil {
		return recovered{}, fs.ErrNotExist
	}
	return recovered{volume: volume, attempt: a}, nil
}

// readAttempt reads the attempt that was under way in a volume, nil if there is none.
// One that cannot be taken up is removed: it costs no more than a new request.
func (v *volumes) readAttempt(dir *csi.Dir, fits func(workload.Volume, *workload.Attempt) error) (workload.Volume, *workload.Attempt) {
	b, err := dir.ReadAttempt()
	if errors.Is(err, fs.ErrNotExist) {
		return workload.Volume{}, nil
	}
	var volume workload.Volume
	var a *workload.Attempt
	if err == nil {
		volume, a, err = unmarshalAttempt(b)
	}
	if err == nil {
		err = fits(volume, a)
	}
	if err == nil {
		return volume, a
	}
	if !errors.Is(err, errEnded) {
		v.log.Warn("an attempt of the agent before cannot be taken up and is made anew", "volume", dir.ID(), "error", err)
	}
	if err := dir.RemoveAttempt(); err != nil {
		v.log.Warn("could not remove an attempt of the agent before", "volume", dir.ID(), "error", err)
	}
	return workload.Volume{}, nil
}
