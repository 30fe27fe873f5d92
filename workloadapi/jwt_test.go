// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	spiffe "github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/signet-spiffe/signet/internal/conformance"
)

// jwtAuthority is an in-memory JWT issuer of one trust domain. It implements JWTSource.
type jwtAuthority struct {
	td     spiffeid.TrustDomain
	kid    string
	key    *ecdsa.PrivateKey
	answer func(Workload, []string, []spiffeid.ID) ([]*jwtsvid.SVID, error) // overrides what is issued
}

func newJWTAuthority(t testing.TB, td spiffeid.TrustDomain, kid string) *jwtAuthority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return &jwtAuthority{td: td, kid: kid, key: key}
}

func (a *jwtAuthority) bundle() *jwtbundle.Bundle {
	return jwtbundle.FromJWTAuthorities(a.td, map[string]crypto.PublicKey{a.kid: a.key.Public()})
}

// sign makes a token of any claims.
func (a *jwtAuthority) sign(claims map[string]any) (string, error) {
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: a.key, KeyID: a.kid}}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return "", err
	}
	return jwt.Signed(signer).Claims(claims).Serialize()
}

func (a *jwtAuthority) token(t testing.TB, claims map[string]any) string {
	t.Helper()
	token, err := a.sign(claims)
	must(t, err)
	return token
}

// claims of a token that is valid for audience db.
func claims(sub string, change ...func(map[string]any)) map[string]any {
	c := map[string]any{"sub": sub, "aud": []string{"db"}, "exp": time.Now().Add(time.Hour).Unix(), "role": "admin"}
	for _, f := range change {
		f(c)
	}
	return c
}

// IssueJWTSVIDs implements JWTSource.
func (a *jwtAuthority) IssueJWTSVIDs(_ context.Context, w Workload, audience []string, ids []spiffeid.ID) ([]*jwtsvid.SVID, error) {
	if a.answer != nil {
		return a.answer(w, audience, ids)
	}
	var svids []*jwtsvid.SVID
	for _, id := range ids {
		token, err := a.sign(claims(id.String(), func(c map[string]any) { c["aud"] = audience }))
		if err != nil {
			return nil, err
		}
		svid, err := jwtsvid.ParseInsecure(token, audience)
		if err != nil {
			return nil, err
		}
		svids = append(svids, svid)
	}
	return svids, nil
}

func newClient(t testing.TB, addr string) *spiffe.Client {
	t.Helper()
	c, err := spiffe.New(testContext(t), spiffe.WithAddr(addr), spiffe.WithBackoffStrategy(atOnce{}))
	must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// A JWT issuer is joined by Options.JWT and Identity.JWTBundles alone; all that go-spiffe has for JWT works then.
func TestAJWTSourceCanBeJoined(t *testing.T) {
	conformance.Proves(t, "W20", "W21", "W22")
	ca, issuer := newAuthority(t, trustDomain), newJWTAuthority(t, trustDomain, "key-1")
	foreign := newJWTAuthority(t, partner, "key-1")
	s := newTestServer(t, Options{JWT: issuer})
	i := ca.identity(t, "/ns/shop/sa/web")
	second, third, repeated := ca.svid(t, "/ns/shop/sa/db"), ca.svid(t, "/ns/shop/sa/cache"), ca.svid(t, "/ns/shop/sa/web")
	i.SVIDs[0].Hint, second.Hint, third.Hint = "web", "web", "cache"
	i.SVIDs = append(i.SVIDs, second, third, repeated)
	i.JWTBundles = jwtbundle.NewSet(issuer.bundle(), foreign.bundle())
	w := newScripted(Identity{Status: Pending, TrustDomain: trustDomain})
	addr := s.start("a", w)
	client := newClient(t, addr)
	ctx := testContext(t)

	go func() { // what is asked for while the SVID is pending is answered when it is there
		w.waitAsked(1)
		w.set(i)
	}()
	svids, err := client.FetchJWTSVIDs(ctx, jwtsvid.Params{Audience: "db", ExtraAudiences: []string{"cache"}})
	must(t, err)
	type named struct{ ID, Hint string }
	var got []named
	for _, svid := range svids {
		got = append(got, named{svid.ID.Path(), svid.Hint})
		if d := cmp.Diff([]string{"db", "cache"}, svid.Audience); d != "" {
			t.Errorf("audience (-want +got):\n%s", d)
		}
	}
	// W20: without a SPIFFE ID, all of them; W21: hints are unique.
	if d := cmp.Diff([]named{{"/ns/shop/sa/web", "web"}, {"/ns/shop/sa/db", ""}, {"/ns/shop/sa/cache", "cache"}}, got); d != "" {
		t.Errorf("jwt-svids (-want +got):\n%s", d)
	}

	source, err := spiffe.NewJWTSource(ctx, clientAt(addr))
	must(t, err)
	t.Cleanup(func() { _ = source.Close() })
	one, err := source.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "db", Subject: third.ID})
	must(t, err)
	if one.ID != third.ID {
		t.Errorf("asked for %s, got %s", third.ID, one.ID)
	}
	_, err = source.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "db", Subject: spiffeid.RequireFromPath(trustDomain, "/ns/shop/sa/other")})
	wantStatus(t, err, codes.PermissionDenied, "no identity issued")

	// The token verifies against the bundles of the stream, and by the server.
	if _, err := jwtsvid.ParseAndValidate(one.Marshal(), source, []string{"db"}); err != nil {
		t.Error(err)
	}
	validated, err := client.ValidateJWTSVID(ctx, one.Marshal(), "db")
	must(t, err)
	if validated.ID != third.ID {
		t.Errorf("validated %s", validated.ID)
	}

	// New keys reach the source without a call.
	next := i
	rotated := newJWTAuthority(t, trustDomain, "key-2")
	next.JWTBundles = jwtbundle.NewSet(rotated.bundle(), foreign.bundle())
	w.set(next)
	for {
		must(t, source.WaitUntilUpdated(ctx))
		b, err := source.GetJWTBundleForTrustDomain(trustDomain)
		must(t, err)
		if b.HasJWTAuthority("key-2") {
			break
		}
	}
	_, err = client.ValidateJWTSVID(ctx, one.Marshal(), "db")
	wantStatus(t, err, codes.InvalidArgument, `no JWT authority "key-1" found`)
}

func TestAJWTSourceThatFails(t *testing.T) {
	ca, issuer := newAuthority(t, trustDomain), newJWTAuthority(t, trustDomain, "k")
	s := newTestServer(t, Options{JWT: issuer})
	w := newScripted(ca.identity(t, "/a"))
	client := newClient(t, s.start("a", w))
	other, err := jwtsvid.ParseInsecure(issuer.token(t, claims("spiffe://cluster.local/b")), []string{"db"})
	must(t, err)
	for name, c := range map[string]struct {
		svids []*jwtsvid.SVID
		err   error
		code  codes.Code
		text  string
	}{
		"any error":                {err: errors.New("signer is down"), code: codes.Unavailable, text: "could not fetch JWT-SVID: signer is down"},
		"long error":               {err: errors.New(strings.Repeat("x", 20_000)), code: codes.Unavailable, text: "xxx…"},
		"status":                   {err: status.Error(codes.ResourceExhausted, "slow down"), code: codes.ResourceExhausted, text: "slow down"},
		"nothing":                  {code: codes.Unavailable, text: "not what was asked for"},
		"nil svid":                 {svids: []*jwtsvid.SVID{nil}, code: codes.Unavailable, text: "not what was asked for"},
		"no token":                 {svids: []*jwtsvid.SVID{{ID: spiffeid.RequireFromPath(trustDomain, "/a")}}, code: codes.Unavailable, text: "not what was asked for"},
		"another workload's token": {svids: []*jwtsvid.SVID{other}, code: codes.Unavailable, text: "not what was asked for"},
	} {
		t.Run(name, func(t *testing.T) {
			issuer.answer = func(asking Workload, _ []string, ids []spiffeid.ID) ([]*jwtsvid.SVID, error) {
				if asking != w || len(ids) != 1 {
					t.Errorf("issuer asked for %v", ids)
				}
				return c.svids, c.err
			}
			_, err := client.FetchJWTSVID(testContext(t), jwtsvid.Params{Audience: "db"})
			wantStatus(t, err, c.code, c.text)
		})
	}
	if strings.Contains(s.log.String(), other.Marshal()) {
		t.Error("a token is in the log")
	}
}

// W23: every key says that it is for JWT-SVIDs, and the order of keys does not change from message to message.
func TestJWTBundlesSayWhatKeysAreFor(t *testing.T) {
	conformance.Proves(t, "W22", "W23", "B4", "B5")
	own, foreign := newJWTAuthority(t, trustDomain, "b"), newJWTAuthority(t, partner, "x")
	b := own.bundle()
	must(t, b.AddJWTAuthority("a", own.key.Public()))
	must(t, b.AddJWTAuthority("c", own.key.Public()))
	revoked := spiffeid.RequireTrustDomainFromString("revoked.example")
	i := Identity{TrustDomain: trustDomain, JWTBundles: jwtbundle.NewSet(b, foreign.bundle(), jwtbundle.New(revoked))}
	m, err := jwtBundlesResponse(i)
	must(t, err)
	bundles := m.(*workload.JWTBundlesResponse).Bundles
	got := map[string][]string{}
	for td, jwks := range bundles {
		var set struct {
			Keys []struct{ Kid, Use, Kty string } `json:"keys"`
		}
		must(t, json.Unmarshal(jwks, &set))
		if set.Keys == nil {
			t.Errorf("%s: keys is absent or null: %s", td, jwks)
		}
		got[td] = []string{}
		for _, k := range set.Keys {
			got[td] = append(got[td], k.Kid+" "+k.Use+" "+k.Kty)
		}
	}
	want := map[string][]string{
		"spiffe://cluster.local":   {"a jwt-svid EC", "b jwt-svid EC", "c jwt-svid EC"},
		"spiffe://partner.example": {"x jwt-svid EC"},
		"spiffe://revoked.example": {},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("bundles (-want +got):\n%s", d)
	}
	for range 20 {
		again, err := jwtBundlesResponse(Identity{TrustDomain: trustDomain, JWTBundles: jwtbundle.NewSet(b.Clone(), foreign.bundle())})
		must(t, err)
		if string(again.(*workload.JWTBundlesResponse).Bundles["spiffe://cluster.local"]) != string(bundles["spiffe://cluster.local"]) {
			t.Fatal("equal bundles are not equal bytes")
		}
	}
}

// W24, J1 to J8, as far as a validator decides.
func TestValidateJWTSVID(t *testing.T) {
	conformance.Proves(t, "W24")
	ca, foreign, forger := newAuthority(t, trustDomain), newJWTAuthority(t, partner, "k"), newJWTAuthority(t, partner, "k")
	s := newTestServer(t, Options{})
	i := ca.identity(t, "/a")
	i.JWTBundles = jwtbundle.NewSet(foreign.bundle(), jwtbundle.New(trustDomain))
	addr := s.start("a", newScripted(i))
	api := workload.NewSpiffeWorkloadAPIClient(dial(t, addr))
	without := func(claim string) func(map[string]any) { return func(c map[string]any) { delete(c, claim) } }
	const subject = "spiffe://partner.example/app"
	set := func(claim string, value any) func(map[string]any) { return func(c map[string]any) { c[claim] = value } }
	good := foreign.token(t, claims(subject))
	tampered := good[:len(good)-3] + strings.Map(func(r rune) rune { // another signature of the same length
		if r == 'A' {
			return 'B'
		}
		return 'A'
	}, good[len(good)-3:])
	for name, c := range map[string]struct {
		token string
		code  codes.Code
		text  string
	}{
		"expired":              {foreign.token(t, claims(subject, set("exp", time.Now().Add(-time.Hour).Unix()))), codes.InvalidArgument, "token has expired"},
		"not yet valid":        {foreign.token(t, claims(subject, set("nbf", time.Now().Add(time.Hour).Unix()))), codes.InvalidArgument, "not valid yet"},
		"other audience":       {foreign.token(t, claims(subject, set("aud", []string{"web"}))), codes.InvalidArgument, "expected audience"},
		"no audience":          {foreign.token(t, claims(subject, without("aud"))), codes.InvalidArgument, "expected audience"},
		"no subject":           {foreign.token(t, claims(subject, without("sub"))), codes.InvalidArgument, "missing subject"},
		"no expiry":            {foreign.token(t, claims(subject, without("exp"))), codes.InvalidArgument, "missing exp"},
		"subject no SPIFFE ID": {foreign.token(t, claims("system:serviceaccount:shop:web")), codes.InvalidArgument, "invalid subject"},
		"tampered":             {tampered, codes.InvalidArgument, "jwtsvid: "},
		"other key, same ID":   {forger.token(t, claims(subject)), codes.InvalidArgument, "jwtsvid: "},
		"other trust domain":   {foreign.token(t, claims("spiffe://unknown.example/app")), codes.InvalidArgument, `no JWT authorities are known for trust domain "unknown.example"`},
		"own trust domain":     {foreign.token(t, claims("spiffe://cluster.local/a")), codes.Unimplemented, "JWT functionality is disabled"},
		"not a token":          {"b", codes.InvalidArgument, "unable to parse"},
		"JSON serialization":   {`{"payload":"","signatures":[]}`, codes.InvalidArgument, "unable to parse"},
		"alg none":             {"eyJhbGciOiJub25lIn0." + strings.Split(good, ".")[1] + ".", codes.InvalidArgument, "unable to parse"},
		"too long":             {strings.Repeat("a", maxTokenBytes+1), codes.InvalidArgument, "longer than"},
		"long key ID":          {(&jwtAuthority{td: partner, kid: strings.Repeat("é", 4000), key: foreign.key}).token(t, claims(subject)), codes.InvalidArgument, "no JWT authority"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := api.ValidateJWTSVID(withHeader(testContext(t)), &workload.ValidateJWTSVIDRequest{Audience: "db", Svid: c.token})
			wantStatus(t, err, c.code, c.text)
			if m := status.Convert(err).Message(); len(m) > maxReasonBytes+200 || strings.Contains(m, c.token) && len(c.token) > 1 {
				t.Errorf("the error says too much: %d bytes", len(m))
			}
		})
	}
	t.Run("valid", func(t *testing.T) {
		r, err := api.ValidateJWTSVID(withHeader(testContext(t)), &workload.ValidateJWTSVIDRequest{Audience: "db", Svid: good})
		must(t, err)
		if r.SpiffeId != subject {
			t.Errorf("spiffe_id %q", r.SpiffeId)
		}
		got := r.Claims.AsMap()
		if exp, ok := got["exp"].(float64); !ok || time.Until(time.Unix(int64(exp), 0)) < 59*time.Minute {
			t.Errorf("exp %v", got["exp"])
		}
		delete(got, "exp")
		// What else a foreign trust domain asserts ("role") is not passed on.
		if d := cmp.Diff(map[string]any{"sub": subject, "aud": []any{"db"}}, got); d != "" {
			t.Errorf("claims (-want +got):\n%s", d)
		}
	})
	if strings.Contains(s.log.String(), good) {
		t.Error("a token is in the log")
	}
}

func TestClaimsOfTheOwnTrustDomainAreAllReturned(t *testing.T) {
	issuer := newJWTAuthority(t, trustDomain, "k")
	i := Identity{Status: Entitled, TrustDomain: trustDomain, JWTBundles: jwtbundle.NewSet(issuer.bundle())}
	r, err := validateJWTSVID(i, issuer.token(t, claims("spiffe://cluster.local/b", func(c map[string]any) { c["aud"] = "db" })), "db")
	must(t, err)
	got := r.Claims.AsMap()
	if got["role"] != "admin" || !slices.Equal(got["aud"].([]any), []any{"db"}) {
		t.Errorf("claims %v", got)
	}
}

func TestJWTCallersWithoutIdentity(t *testing.T) {
	issuer := newJWTAuthority(t, trustDomain, "k")
	token := issuer.token(t, claims("spiffe://cluster.local/a"))
	for name, c := range map[string]struct {
		source JWTSource
		state  Status
		fetch  codes.Code
		judge  codes.Code
	}{
		"off, not entitled": {nil, NotEntitled, codes.PermissionDenied, codes.PermissionDenied},
		"off, initializing": {nil, Initializing, codes.Unavailable, codes.Unavailable},
		"off, pending":      {nil, Pending, codes.Unimplemented, codes.DeadlineExceeded}, // held
		"on, not entitled":  {issuer, NotEntitled, codes.PermissionDenied, codes.PermissionDenied},
		"on, initializing":  {issuer, Initializing, codes.Unavailable, codes.Unavailable},
		"on, pending":       {issuer, Pending, codes.DeadlineExceeded, codes.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			s := newTestServer(t, Options{JWT: c.source})
			api := workload.NewSpiffeWorkloadAPIClient(dial(t, s.start("a", newScripted(Identity{Status: c.state, TrustDomain: trustDomain}))))
			short := func() context.Context {
				ctx, cancel := context.WithTimeout(withHeader(t.Context()), 300*time.Millisecond)
				t.Cleanup(cancel)
				if c.fetch != codes.DeadlineExceeded && c.judge != codes.DeadlineExceeded {
					return withHeader(testContext(t))
				}
				return ctx
			}
			_, err := api.FetchJWTSVID(short(), &workload.JWTSVIDRequest{Audience: []string{"db"}})
			wantStatus(t, err, c.fetch, "")
			_, err = api.ValidateJWTSVID(short(), &workload.ValidateJWTSVIDRequest{Audience: "db", Svid: token})
			wantStatus(t, err, c.judge, "")
		})
	}
}

// FuzzValidateJWTSVID validates any token against a bundle that can verify none of them: nothing is valid, nothing panics, no
// error is long or holds the token.
func FuzzValidateJWTSVID(f *testing.F) {
	foreign, forger := newJWTAuthority(f, partner, "k"), newJWTAuthority(f, partner, "k")
	f.Add(forger.token(f, claims("spiffe://partner.example/app")), "db")
	f.Add(forger.token(f, claims("spiffe://cluster.local/app")), "db")
	f.Add("eyJhbGciOiJub25lIn0.e30.", "")
	f.Add("..", "db")
	i := Identity{Status: Entitled, TrustDomain: trustDomain, JWTBundles: jwtbundle.NewSet(foreign.bundle())}
	f.Fuzz(func(t *testing.T, token, audience string) {
		r, err := validateJWTSVID(i, token, audience)
		if err == nil {
			t.Fatalf("valid: %v", r)
		}
		s := status.Convert(err)
		if s.Code() != codes.InvalidArgument && s.Code() != codes.Unimplemented {
			t.Errorf("code %s", s.Code())
		}
		if len(s.Message()) > maxReasonBytes+200 || len(token) > 40 && strings.Contains(s.Message(), token) {
			t.Errorf("the error says too much: %q", s.Message())
		}
	})
}
