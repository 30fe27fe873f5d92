// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Status says what a workload may be told. The zero value tells it nothing.
type Status int

const (
	// Initializing: it is not known yet whether the workload is entitled to anything. Callers get Unavailable (Workload
	// Endpoint §6) and are expected to come back.
	Initializing Status = iota
	// Pending: the workload is entitled, its SVID is being issued. Streams are held open, so that the workload has its SVID
	// in the moment it exists instead of after its client's back-off.
	Pending
	// Entitled: the Identity is complete.
	Entitled
	// NotEntitled: there is no identity for this workload. Callers get PermissionDenied (Workload API §5.2.1).
	NotEntitled
)

// String returns the status in lower case, for logs.
func (s Status) String() string {
	switch s {
	case Initializing:
		return "initializing"
	case Pending:
		return "pending"
	case Entitled:
		return "entitled"
	case NotEntitled:
		return "not entitled"
	default:
		return fmt.Sprintf("status(%d)", int(s))
	}
}

// Identity is all that one socket says, at one moment. It is immutable once handed over, with everything it points to: a
// change is a new Identity with new slices, SVIDs and bundle set. It prints neither keys nor certificates.
type Identity struct {
	// Status decides whether the other fields are looked at: only Entitled does.
	Status Status
	// SVIDs holds at least one SVID when Entitled. The first is the default (Workload API §8); the order is kept.
	SVIDs []*x509svid.SVID
	// Bundles holds the X.509 bundles of the own trust domain (mandatory when Entitled) and of federated ones. Bundles
	// without an authority are not sent. Several identities may share one set.
	Bundles *x509bundle.Set
	// JWTBundles holds the JWT bundles that are known, of the own trust domain and of federated ones; nil for none. They are
	// what JWT-SVIDs are validated against. Several identities may share one set.
	JWTBundles *jwtbundle.Set
	// TrustDomain is the own trust domain.
	TrustDomain spiffeid.TrustDomain
}

// String describes the identity by names alone.
func (i Identity) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "identity(%s, trust domain %q, svids [", i.Status, i.TrustDomain.Name())
	for n, svid := range i.SVIDs {
		if n > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(svidName(svid))
	}
	fmt.Fprintf(&b, "], bundles %d)", bundleCount(i.Bundles))
	return b.String()
}

// Format prints String for every verb that fmt lets a type decide on (%T and %p show no fields of the SVIDs).
func (i Identity) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, i.String()) }

// LogValue implements slog.LogValuer.
func (i Identity) LogValue() slog.Value { return slog.StringValue(i.String()) }

// MarshalText keeps encoders, encoding/json before all, from walking into private keys.
func (i Identity) MarshalText() ([]byte, error) { return []byte(i.String()), nil }

// defaultID returns the SPIFFE ID of the default SVID, or "" when there is none. For logs.
func (i Identity) defaultID() string {
	if len(i.SVIDs) == 0 {
		return ""
	}
	return svidName(i.SVIDs[0])
}

func svidName(s *x509svid.SVID) string {
	if s == nil {
		return "<nil>"
	}
	return s.ID.String()
}

func bundleCount(s *x509bundle.Set) int {
	if s == nil {
		return 0
	}
	return s.Len()
}

// Workload is the identity behind one socket. Implementations must be comparable (a pointer is): Detach finds a workload by
// equality.
type Workload interface {
	// Identity returns the present identity and a channel that is closed once it has been superseded. Both are read at the
	// same moment: a change after the call closes the channel. As long as the identity stays the same, the same channel
	// should be returned; it is what marshalled messages are cached by. A nil channel means that this identity is final.
	//
	// It is called often, from many goroutines, and must return without waiting for I/O.
	Identity() (Identity, <-chan struct{})
}
