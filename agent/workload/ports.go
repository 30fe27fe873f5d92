// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"crypto/x509"
	"errors"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/signet-spiffe/signet/agent/issue"
	"github.com/signet-spiffe/signet/internal/pki"
)

// ErrUnpublished ends Publish calls whose volume was unpublished meanwhile.
var ErrUnpublished = errors.New("the volume was unpublished")

// ErrPending ends Publish calls that waited as long as they may. The request
// goes on; the next Publish joins it.
var ErrPending = errors.New("the SVID is not issued yet")

// ErrInvalid ends Publish calls that contradict what the volume already is.
var ErrInvalid = errors.New("invalid volume")

// Volume says who a volume belongs to and how its files are owned. It does not
// change while the volume is published, but for the token.
type Volume struct {
	// ID is kubelet's volume ID.
	ID  string
	Pod issue.Pod
	// UID and GID own the files; nil means root. UID is the Registry's to set, of a
	// new volume (Options.Owner).
	UID, GID *int64
	// Token is the pod's service account token, if kubelet sent one.
	Token issue.Token
	// Attributes are what the pod's author chose for the volume.
	Attributes Attributes
}

// Attributes are a volume's deviations from the agent's settings; zero values
// deviate in nothing. They are comparable.
type Attributes struct {
	// NoWait: Publish returns once the volume is prepared.
	NoWait bool
	// KeyType of the SVID, Duration asked for, RenewBefore its end.
	KeyType               pki.KeyType
	Duration, RenewBefore time.Duration
	// DNSNames are to be in the certificate beside the SPIFFE ID, if the approver
	// allows them.
	DNSNames pki.DNSNames
	// Delivery is Volumes' business and not looked at here.
	Delivery Delivery
}

// Delivery says what a volume shows, and under which names; empty names are the
// agent's own. NoFiles and NoSocket are never both set.
type Delivery struct {
	NoFiles, NoSocket            bool
	Certificate, Key, CA, Socket string
}

func (v Volume) terms() Terms {
	return Terms{NoWait: v.Attributes.NoWait, RenewBefore: v.Attributes.RenewBefore}
}

// SVID is an X509-SVID with its key. It is immutable. It prints without the key
// (pki.PrivateKey).
type SVID struct {
	ID    spiffeid.ID
	Chain []*x509.Certificate // Leaf first.
	Key   pki.PrivateKey
	Basis Basis
}

// NotBefore is when the SVID begins to be valid.
func (s *SVID) NotBefore() time.Time { return s.Chain[0].NotBefore }

// NotAfter is when the SVID expires.
func (s *SVID) NotAfter() time.Time { return s.Chain[0].NotAfter }

// Content is all that a published volume shows.
type Content struct {
	SVID   *SVID
	Bundle *x509bundle.Bundle
}

// Volumes is storage and delivery. Calls for one volume come one at a time and
// in order; calls for different volumes come at the same time.
type Volumes interface {
	// Prepare makes the storage and listens on the socket, where streams are
	// held until Push. A volume with NoWait is found again after a restart from
	// then on, even without an SVID. Idempotent.
	Prepare(v Volume) error
	// Store writes files and state so that either all of c is seen or nothing.
	Store(v Volume, c Content) error
	// Push shows c to the volume's streams.
	Push(v Volume, c Content)
	// Remove ends the streams, wipes key material and removes the storage.
	// Idempotent; a volume that is not known is no error.
	Remove(volumeID string) error
}

// Trust is the trust bundle of the agent's own trust domain.
type Trust interface {
	// Bundle returns the bundle in use, nil if there is none yet, and a channel
	// that is closed when it has been superseded.
	Bundle() (*x509bundle.Bundle, <-chan struct{})
}

// Learner is a Trust that learns authorities from issuers' answers
// (CertificateRequest.status.ca) because no other source is configured.
type Learner interface {
	Trust
	// Propose returns the bundle as it would be with ca (PEM) in it, for the
	// verification of a chain that came with ca. Nothing changes yet.
	Propose(ca []byte) (*x509bundle.Bundle, error)
	// Observe takes ca into the bundle, at least until the given time.
	Observe(ca []byte, until time.Time) (changed bool, err error)
}
