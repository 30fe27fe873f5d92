// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"
)

// maxMessageBytes is what gRPC clients accept unless told otherwise.
const maxMessageBytes = 4 << 20

// maxHintBytes is the longest hint that is passed on (Workload API §8).
const maxHintBytes = 1024

// noKeys is a JWKS without keys. Zero bytes would not parse as a JWKS.
var noKeys = []byte(`{"keys":[]}`)

// message is a marshalled response. It may hold a private key and does not print.
type message struct{ bytes []byte }

// Format prints no content, whatever the verb.
func (*message) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "message(redacted)") }

// view is one Identity with its messages, each marshalled at most once and only if somebody asks.
type view struct {
	identity   Identity
	superseded <-chan struct{}

	x509SVIDs, x509Bundles, jwtBundles func() (*message, error)

	secrets    func() (*catalog, error) // for proxies
	rejections atomic.Int32             // of secrets, by proxies
}

func (e *endpoint) newView(i Identity, superseded <-chan struct{}) *view {
	lazy := func(build func(Identity) (proto.Message, error)) func() (*message, error) {
		return sync.OnceValues(func() (*message, error) { return e.marshal(i, build) })
	}
	return &view{
		identity:    i,
		superseded:  superseded,
		x509SVIDs:   lazy(x509SVIDResponse),
		x509Bundles: lazy(x509BundlesResponse),
		jwtBundles:  lazy(jwtBundlesResponse),
		secrets:     sync.OnceValues(func() (*catalog, error) { return e.secrets(i) }),
	}
}

// marshal builds and encodes one message, deterministically, so that equal messages are equal bytes. It reports an identity
// that cannot be served; a view calls it once, however many streams ask.
func (e *endpoint) marshal(i Identity, build func(Identity) (proto.Message, error)) (*message, error) {
	m, err := build(i)
	var b []byte
	if err == nil {
		e.fit(i, m)
		b, err = proto.MarshalOptions{Deterministic: true}.Marshal(m)
	}
	if err != nil {
		e.metrics.unserved.Inc()
		e.log.Error("identity cannot be served", "spiffe_id", i.defaultID(), "error", err, workloadAttr(e.workload))
		return nil, err
	}
	return &message{bytes: b}, nil
}

// fit makes a message as small as clients accept, if that is possible, and tells the operator what it cost.
func (e *endpoint) fit(i Identity, m proto.Message) {
	size := proto.Size(m)
	if size <= maxMessageBytes {
		return
	}
	if left := leaveOut(m, i.TrustDomain); len(left) > 0 {
		e.metrics.leftOut.Add(float64(len(left)))
		e.log.Error("trust bundles do not all fit into one message; federated ones are left out, the largest first: use fewer trust domains or authorities",
			"spiffe_id", i.defaultID(), "left_out", left, "bytes", size, "limit", maxMessageBytes, workloadAttr(e.workload))
	}
	if size = proto.Size(m); size > maxMessageBytes {
		e.log.Error("message is larger than clients accept; use fewer authorities",
			"spiffe_id", i.defaultID(), "bytes", size, "limit", maxMessageBytes, workloadAttr(e.workload))
	}
}

// x509SVIDResponse builds the message of Workload API §5.2.1. CRLs are optional and not sent.
func x509SVIDResponse(i Identity) (proto.Message, error) {
	if len(i.SVIDs) == 0 {
		return nil, errors.New("identity is entitled but holds no svid")
	}
	bundles := marshalBundles(i.Bundles)
	r := &workload.X509SVIDResponse{Svids: make([]*workload.X509SVID, 0, len(i.SVIDs))}
	hints := make(map[string]bool, len(i.SVIDs))
	for _, svid := range i.SVIDs {
		if svid == nil {
			return nil, errors.New("identity holds a nil svid")
		}
		chain, key, err := svid.MarshalRaw()
		if err != nil {
			return nil, fmt.Errorf("marshal svid %s: %w", svid.ID, err)
		}
		bundle := bundles[svid.ID.TrustDomain().IDString()]
		if len(bundle) == 0 {
			return nil, fmt.Errorf("svid %s: no x.509 authorities for its trust domain", svid.ID)
		}
		r.Svids = append(r.Svids, &workload.X509SVID{
			SpiffeId:    svid.ID.String(),
			X509Svid:    chain,
			X509SvidKey: key,
			Bundle:      bundle,
			Hint:        uniqueHint(svid.Hint, hints),
		})
	}
	delete(bundles, i.TrustDomain.IDString())
	r.FederatedBundles = bundles
	return r, nil
}

// uniqueHint returns the hint unless it is taken or too long. Clients drop an SVID whose hint repeats an earlier one
// (Workload API §5.2.1); without its hint they keep it.
func uniqueHint(hint string, taken map[string]bool) string {
	if taken[hint] || len(hint) > maxHintBytes {
		return ""
	}
	taken[hint] = true
	return hint
}

// x509BundlesResponse builds the message of Workload API §5.2.2.
func x509BundlesResponse(i Identity) (proto.Message, error) {
	bundles := marshalBundles(i.Bundles)
	if len(bundles[i.TrustDomain.IDString()]) == 0 {
		return nil, fmt.Errorf("no x.509 authorities for the own trust domain %q", i.TrustDomain.Name())
	}
	return &workload.X509BundlesResponse{Bundles: bundles}, nil
}

// jwtBundlesResponse builds the message of Workload API §6.2.2: a JWKS of each trust domain that is known. The own one is
// always there, without keys while the JWT profile is disabled. So is a federated one without keys: that is how a trust
// domain says that all its keys are revoked (Trust Domain and Bundle §4.2.1).
func jwtBundlesResponse(i Identity) (proto.Message, error) {
	if i.TrustDomain == (spiffeid.TrustDomain{}) {
		return nil, errors.New("identity names no trust domain")
	}
	r := map[string][]byte{i.TrustDomain.IDString(): noKeys}
	if i.JWTBundles != nil {
		for _, b := range i.JWTBundles.Bundles() {
			jwks, err := marshalJWKS(b)
			if err != nil {
				return nil, err
			}
			r[b.TrustDomain().IDString()] = jwks
		}
	}
	return &workload.JWTBundlesResponse{Bundles: r}, nil
}

// marshalJWKS writes a JWT bundle as JWKS, ordered by key ID. Every key says what it is for (Workload API §6.2.2, Trust Domain
// and Bundle §4.2.2), which jwtbundle.Marshal leaves out.
func marshalJWKS(b *jwtbundle.Bundle) ([]byte, error) {
	keys := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{}}
	authorities := b.JWTAuthorities()
	for _, id := range slices.Sorted(maps.Keys(authorities)) {
		keys.Keys = append(keys.Keys, jose.JSONWebKey{Key: authorities[id], KeyID: id, Use: "jwt-svid"})
	}
	jwks, err := json.Marshal(keys)
	if err != nil {
		return nil, fmt.Errorf("marshal jwt bundle of %s: %w", b.TrustDomain(), err)
	}
	return jwks, nil
}

// marshalBundles returns the concatenated DER of each trust domain's authorities, keyed by the SPIFFE ID of the trust domain
// (Workload API §5.1). Trust domains without authorities are left out: an empty bundle reads as a redaction, and some clients
// refuse the whole message.
func marshalBundles(set *x509bundle.Set) map[string][]byte {
	if set == nil {
		return nil
	}
	r := make(map[string][]byte, set.Len())
	for _, b := range set.Bundles() {
		if der := marshalAuthorities(b.X509Authorities()); len(der) > 0 {
			r[b.TrustDomain().IDString()] = der
		}
	}
	return r
}

// marshalAuthorities concatenates in a fixed order and without repeats: the order of authorities means nothing, and a source
// that lists the same ones in another order has not changed.
func marshalAuthorities(authorities []*x509.Certificate) []byte {
	return bytes.Join(distinct(authorities), nil)
}

// distinct returns the DER of the authorities in that order.
func distinct(authorities []*x509.Certificate) [][]byte {
	raw := make([][]byte, 0, len(authorities))
	for _, a := range authorities {
		raw = append(raw, a.Raw)
	}
	slices.SortFunc(raw, bytes.Compare)
	return slices.CompactFunc(raw, bytes.Equal)
}
