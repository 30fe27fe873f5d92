// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"context"
	"fmt"
	"slices"
	"unicode/utf8"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
)

// JWTSource issues JWT-SVIDs. Joined to a server (Options.JWT), it turns the JWT profile of the Workload API on; which keys
// verify its tokens is said by Identity.JWTBundles.
type JWTSource interface {
	// IssueJWTSVIDs returns one JWT-SVID for each of ids, in their order, each for all of audience. The server has checked
	// that w is entitled to ids, that ids are distinct and that there is at least one of each. SVID.Hint may stay empty: the
	// hint of the X.509-SVID of the same ID is used then.
	//
	// It is called from many goroutines, on behalf of callers that may ask in a loop, so it should keep what it has signed
	// for a while. An error with a gRPC status is passed on to the caller; any other becomes Unavailable with its text,
	// which therefore must hold no token and no key.
	IssueJWTSVIDs(ctx context.Context, w Workload, audience []string, ids []spiffeid.ID) ([]*jwtsvid.SVID, error)
}

const (
	// maxTokenBytes bounds a token to validate, and with it what one request can cost. A JWT-SVID travels in an HTTP
	// header (JWT-SVID §5.2), of which servers take 8 KiB to 16 KiB.
	maxTokenBytes = 16 << 10
	// maxReasonBytes bounds what an error says about a token: parts of it, as the key ID, are in there.
	maxReasonBytes = 512
	// maxAudiences bounds the audiences of one request.
	maxAudiences = 64
)

var (
	errNoJWT          = status.Error(codes.Unimplemented, "JWT functionality is disabled")
	errNoAudience     = status.Error(codes.InvalidArgument, "audience must be specified")
	errManyAudiences  = status.Errorf(codes.InvalidArgument, "more than %d audiences", maxAudiences)
	errNoToken        = status.Error(codes.InvalidArgument, "svid must be specified")
	errLongToken      = status.Errorf(codes.InvalidArgument, "svid is longer than %d bytes", maxTokenBytes)
	errOtherID        = status.Error(codes.PermissionDenied, "no identity issued: the workload is not entitled to the requested SPIFFE ID")
	errJWTNotAnswered = status.Error(codes.Unavailable, "could not fetch JWT-SVID: the issuer's answer is not what was asked for, see the log of the agent")
)

// FetchJWTSVID implements Workload API §6.2.1. A malformed request is told so before anything else (§4.5): it is wrong
// whatever the server can do.
func (h handler) FetchJWTSVID(ctx context.Context, r *workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error) {
	id, err := checkJWTSVIDRequest(r)
	if err != nil {
		return nil, err
	}
	ep, err := endpointOf(ctx)
	if err != nil {
		return nil, err
	}
	if err := ep.begin(); err != nil {
		return nil, err
	}
	defer ep.finish()
	if h.jwt == nil {
		return nil, ep.jwtRefusal()
	}
	v, err := ep.entitled(ctx)
	if err != nil {
		return nil, err
	}
	ids, err := choose(v.identity, id)
	if err != nil {
		return nil, err
	}
	svids, err := h.jwt.IssueJWTSVIDs(ctx, ep.workload, slices.Clone(r.GetAudience()), slices.Clone(ids))
	if err != nil {
		return nil, jwtIssueError(ctx, err)
	}
	response, err := jwtSVIDResponse(v.identity, ids, svids)
	if err != nil {
		ep.log.Error("jwt-svids cannot be served", "error", err, workloadAttr(ep.workload))
		return nil, errJWTNotAnswered
	}
	return response, nil
}

// checkJWTSVIDRequest returns the requested SPIFFE ID; the zero ID means all.
func checkJWTSVIDRequest(r *workload.JWTSVIDRequest) (spiffeid.ID, error) {
	switch audience := r.GetAudience(); {
	case len(audience) == 0 || slices.Contains(audience, ""):
		return spiffeid.ID{}, errNoAudience
	case len(audience) > maxAudiences:
		return spiffeid.ID{}, errManyAudiences
	}
	if r.GetSpiffeId() == "" {
		return spiffeid.ID{}, nil
	}
	id, err := spiffeid.FromString(r.GetSpiffeId())
	if err != nil {
		return spiffeid.ID{}, status.Errorf(codes.InvalidArgument, "invalid requested SPIFFE ID: %s", clip(err.Error()))
	}
	return id, nil
}

// jwtRefusal is the answer of a disabled JWT profile. A workload without an identity hears that, as everywhere. One whose
// SVID is pending is not kept waiting for a no.
func (e *endpoint) jwtRefusal() error {
	if _, err := e.current().verdict(); err != nil {
		return err
	}
	return errNoJWT
}

// choose returns the distinct SPIFFE IDs that a request is about: the one that it names, or all (Workload API §6.2.1).
func choose(i Identity, wanted spiffeid.ID) ([]spiffeid.ID, error) {
	var ids []spiffeid.ID
	for _, svid := range i.SVIDs {
		if svid != nil && !slices.Contains(ids, svid.ID) {
			ids = append(ids, svid.ID)
		}
	}
	switch {
	case len(ids) == 0:
		return nil, errUnserialized
	case wanted.IsZero():
		return ids, nil
	case slices.Contains(ids, wanted):
		return []spiffeid.ID{wanted}, nil
	default:
		return nil, errOtherID
	}
}

func jwtIssueError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return status.FromContextError(ctx.Err()).Err()
	}
	if s, ok := status.FromError(err); ok && s.Code() != codes.OK {
		return s.Err()
	}
	return status.Errorf(codes.Unavailable, "could not fetch JWT-SVID: %s", clip(err.Error()))
}

// jwtSVIDResponse builds the message of Workload API §6.2.1 of what the source has answered for ids.
func jwtSVIDResponse(i Identity, ids []spiffeid.ID, svids []*jwtsvid.SVID) (*workload.JWTSVIDResponse, error) {
	if len(svids) != len(ids) {
		return nil, fmt.Errorf("%d jwt-svids for %d SPIFFE IDs", len(svids), len(ids))
	}
	r := &workload.JWTSVIDResponse{Svids: make([]*workload.JWTSVID, 0, len(svids))}
	hints := make(map[string]bool, len(svids))
	for n, svid := range svids {
		switch {
		case svid == nil || svid.Marshal() == "":
			return nil, fmt.Errorf("no jwt-svid for %s", ids[n])
		case svid.ID != ids[n]:
			return nil, fmt.Errorf("jwt-svid of %s for %s", svid.ID, ids[n])
		}
		hint := svid.Hint
		if hint == "" {
			hint = hintOf(i, svid.ID)
		}
		r.Svids = append(r.Svids, &workload.JWTSVID{SpiffeId: svid.ID.String(), Svid: svid.Marshal(), Hint: uniqueHint(hint, hints)})
	}
	return r, nil
}

func hintOf(i Identity, id spiffeid.ID) string {
	for _, svid := range i.SVIDs {
		if svid != nil && svid.ID == id && svid.Hint != "" {
			return svid.Hint
		}
	}
	return ""
}

// FetchJWTBundles implements Workload API §6.2.2. With the JWT profile off the own trust domain has no keys and the stream
// stays open. An error would be honest too, but go-spiffe's BundleSource and JWTSource wait for a first message before they
// let anything start.
func (handler) FetchJWTBundles(_ *workload.JWTBundlesRequest, stream grpc.ServerStreamingServer[workload.JWTBundlesResponse]) error {
	return push(stream, func(v *view) (*message, error) { return v.jwtBundles() })
}

// ValidateJWTSVID implements Workload API §6.2.3 for tokens of every trust domain whose JWT authorities are known. Whether
// tokens are issued here does not matter for that.
func (handler) ValidateJWTSVID(ctx context.Context, r *workload.ValidateJWTSVIDRequest) (*workload.ValidateJWTSVIDResponse, error) {
	switch {
	case r.GetAudience() == "":
		return nil, errNoAudience
	case r.GetSvid() == "":
		return nil, errNoToken
	case len(r.GetSvid()) > maxTokenBytes:
		return nil, errLongToken
	}
	ep, err := endpointOf(ctx)
	if err != nil {
		return nil, err
	}
	if err := ep.begin(); err != nil {
		return nil, err
	}
	defer ep.finish()
	v, err := ep.entitled(ctx)
	if err != nil {
		return nil, err
	}
	return validateJWTSVID(v.identity, r.GetSvid(), r.GetAudience())
}

// validateJWTSVID applies the rules of the JWT-SVID specification as go-spiffe does, so that a workload hears what it would
// find out by itself. Errors are gRPC statuses without the token.
func validateJWTSVID(i Identity, token, audience string) (*workload.ValidateJWTSVIDResponse, error) {
	authorities := &knownAuthorities{identity: i}
	svid, err := jwtsvid.ParseAndValidate(token, authorities, []string{audience})
	switch {
	case authorities.refused != nil:
		return nil, authorities.refused
	case err != nil:
		return nil, status.Error(codes.InvalidArgument, clip(err.Error()))
	}
	claims, err := structpb.NewStruct(claimsOf(i, svid))
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, "svid holds claims that cannot be returned")
	}
	return &workload.ValidateJWTSVIDResponse{SpiffeId: svid.ID.String(), Claims: claims}, nil
}

// knownAuthorities is the jwtbundle.Source of one validation. It remembers why it had no bundle, which is more than the
// error that go-spiffe makes of it.
type knownAuthorities struct {
	identity Identity
	refused  error // gRPC status
}

// GetJWTBundleForTrustDomain implements jwtbundle.Source.
func (k *knownAuthorities) GetJWTBundleForTrustDomain(td spiffeid.TrustDomain) (*jwtbundle.Bundle, error) {
	if set := k.identity.JWTBundles; set != nil {
		if b, ok := set.Get(td); ok && !b.Empty() {
			return b, nil
		}
	}
	if td == k.identity.TrustDomain {
		k.refused = status.Errorf(codes.Unimplemented, "JWT functionality is disabled: the trust domain %q of this workload has no JWT authorities", clip(td.Name()))
	} else {
		k.refused = status.Errorf(codes.InvalidArgument, "no JWT authorities are known for trust domain %q", clip(td.Name()))
	}
	return nil, k.refused
}

// spiffeClaims are those that the JWT-SVID specification defines (§3).
var spiffeClaims = []string{"sub", "aud", "exp"}

// claimsOf returns the claims that are passed on. Of a foreign token those are the ones that SPIFFE defines: what else
// another trust domain asserts was verified by nobody here, and must not look as if it was (Workload API §6.2.3 allows the
// filter, SPIRE has it too). The audience is always a list.
func claimsOf(i Identity, svid *jwtsvid.SVID) map[string]any {
	foreign := svid.ID.TrustDomain() != i.TrustDomain
	claims := make(map[string]any, len(svid.Claims))
	for name, value := range svid.Claims {
		if !foreign || slices.Contains(spiffeClaims, name) {
			claims[name] = value
		}
	}
	audience := make([]any, 0, len(svid.Audience))
	for _, a := range svid.Audience {
		audience = append(audience, a)
	}
	claims["aud"] = audience
	return claims
}

// clip bounds a text of which a caller may have chosen parts.
func clip(s string) string {
	if len(s) <= maxReasonBytes {
		return s
	}
	s = s[:maxReasonBytes]
	for !utf8.ValidString(s) && len(s) > 0 {
		s = s[:len(s)-1]
	}
	return s + "…"
}
