// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package conformance

import "slices"

// Level is how strongly a standard demands a rule, in RFC 2119's words.
type Level string

// The levels. A Fact is what the standard says without demanding anything, where
// that decided something here.
const (
	Must      Level = "MUST"
	MustNot   Level = "MUST NOT"
	Should    Level = "SHOULD"
	ShouldNot Level = "SHOULD NOT"
	May       Level = "MAY"
	Fact      Level = "fact"
)

// Rule is one rule of a standard.
type Rule struct {
	// ID is the number by which tests and the page name the rule: a letter for
	// the standard and a number.
	ID string
	// Level is the strongest word in the rule.
	Level Level
	// Source is the standard's section.
	Source string
	// Text is the rule in our own words.
	Text string
	// NotApplicable says why the rule asks nothing of Signet; "" if it does.
	NotApplicable string
	// DoesNotHold says why Signet does not follow the rule; "" if it does.
	DoesNotHold string
}

// Demanded says whether the rule needs a test: it is no MAY and no fact, it
// concerns Signet, and Signet claims to follow it.
func (r Rule) Demanded() bool {
	return r.Level != May && r.Level != Fact && r.NotApplicable == "" && r.DoesNotHold == ""
}

// Group is the rules of one standard.
type Group struct {
	// Letter begins the IDs of the group's rules.
	Letter string
	// Title names the standard.
	Title string
	Rules []Rule
}

// Groups are all rules, in the page's order. The caller owns the outer slice.
func Groups() []Group { return slices.Clone(groups) }

// Find returns the rule with the ID.
func Find(id string) (Rule, bool) {
	for _, g := range groups {
		for _, r := range g.Rules {
			if r.ID == id {
				return r, true
			}
		}
	}
	return Rule{}, false
}

// Why some rules ask nothing of Signet.
const (
	noDocuments = "Signet writes and reads no SPIFFE bundle documents: X.509 bundles are DER on the socket and PEM in files"
	noWIT       = "the WIT profile is optional and not offered"
)

var groups = []Group{
	{Letter: "E", Title: "SPIFFE Workload Endpoint", Rules: []Rule{
		{ID: "E1", Level: Should, Source: "§2", Text: "The Workload API is exposed on an endpoint local to the host."},
		{ID: "E2", Level: ShouldNot, Source: "§2", Text: "One endpoint instance serves one host alone."},
		{ID: "E3", Level: Must, Source: "§3", Text: "The endpoint speaks gRPC."},
		{ID: "E4", Level: Should, Source: "§3", Text: "A Unix domain socket is preferred to TCP."},
		{ID: "E5", Level: MustNot, Source: "§3", Text: "TCP is not used where the network does not let the server authenticate a caller by its source address. Signet's API is on no network at all."},
		{ID: "E6", Level: Must, Source: "§3", Text: "Every request without the metadata `workload.spiffe.io: true`, spelt exactly so, is rejected."},
		{ID: "E7", Level: Must, Source: "§6", Text: "That rejection is `InvalidArgument`, which clients do not retry."},
		{ID: "E8", Level: MustNot, Source: "§3.1", Text: "The client needs no TLS."},
		{ID: "E9", Level: Must, Source: "§4", Text: "The socket can be named in the one form that clients take from `SPIFFE_ENDPOINT_SOCKET`: `unix:///absolute/path`, no authority, nothing after the path."},
		{ID: "E10", Level: MustNot, Source: "§5", Text: "The caller need not authenticate itself."},
		{ID: "E11", Level: Should, Source: "§5", Text: "The server checks who calls out of band, for instance by an orchestrator that places a socket where one workload alone can reach it."},
		{ID: "E12", Level: MustNot, Source: "§5", Text: "The workload need not take part in that check."},
		{ID: "E13", Level: Should, Source: "§6", Text: "`Unavailable` while the server starts or sheds load; clients may come back."},
		{ID: "E14", Level: Should, Source: "§6", Text: "`PermissionDenied` for a caller that has no identity."},
		{ID: "E15", Level: MustNot, Source: "§7", Text: "The standard's services are not extended. Others under names of their own may stand beside them."},
		{ID: "E16", Level: Must, Source: "§7", Text: "Every endpoint exposes the Workload API."},
		{ID: "E17", Level: Should, Source: "§7", Text: "gRPC server reflection is offered."},
		{ID: "E18", Level: Must, Source: "Appendix A", Text: "Errors have the codes that the standard gives them: `InvalidArgument`, `Unavailable`, `PermissionDenied`, `Unimplemented`."},
	}},
	{Letter: "W", Title: "SPIFFE Workload API", Rules: []Rule{
		{ID: "W1", Level: Must, Source: "§3", Text: "The X.509 and the JWT profile are supported; an operator may switch one off.",
			DoesNotHold: "both profiles are served, but an agent has nothing to sign JWTs with (cert-manager does not), so its JWT profile is off and cannot be switched on: workloads see what the standard foresees for an operator who has switched it off, and whoever embeds workloadapi can join a signer (W20, W21)"},
		{ID: "W2", Level: MustNot, Source: "§3", Text: "The API has no methods or fields but the standard's."},
		{ID: "W3", Level: Must, Source: "§4.3", Text: "Every message of a stream holds everything there is to say, never a difference."},
		{ID: "W4", Level: Must, Source: "§4.3", Text: "The first response comes as soon as there is one. While an SVID is being issued that is the moment at which it exists."},
		{ID: "W5", Level: Should, Source: "§4.3", Text: "Later responses are caused by what changes them, and nothing else causes one."},
		{ID: "W6", Level: May, Source: "§4.3", Text: "Updates that concern many workloads are spread in time."},
		{ID: "W7", Level: Must, Source: "§4.4", Text: "Clients take an empty field for a redaction, so none is sent by accident: no empty bundle, no federated bundle missing while it is known."},
		{ID: "W8", Level: Should, Source: "§4.5", Text: "A request whose mandatory field is unset is `InvalidArgument`."},
		{ID: "W9", Level: Must, Source: "§5.2.1", Text: "An X.509-SVID response holds at least one SVID."},
		{ID: "W10", Level: Must, Source: "§5.2.1", Text: "Each SVID has its SPIFFE ID, chain, key and bundle."},
		{ID: "W11", Level: Must, Source: "§5.2.1", Text: "The chain is DER, concatenated, leaf first."},
		{ID: "W12", Level: Must, Source: "§5.2.1", Text: "The key is unencrypted PKCS#8 DER."},
		{ID: "W13", Level: Must, Source: "§5.1", Text: "Bundles are concatenated DER of CA certificates, keyed by the SPIFFE ID of their trust domain."},
		{ID: "W14", Level: Must, Source: "§5.2.1", Text: "A hint that is set is unique in its response."},
		{ID: "W15", Level: ShouldNot, Source: "§8", Text: "Hints longer than 1024 bytes are not passed on."},
		{ID: "W16", Level: Should, Source: "§5.2.1", Text: "A caller without entitlement gets `PermissionDenied`, in the middle of a stream too."},
		{ID: "W17", Level: Must, Source: "§5.2.2", Text: "An X.509 bundles response holds at least the bundle of the own trust domain."},
		{ID: "W18", Level: Should, Source: "§5.2.2", Text: "A caller that may not have bundles gets `PermissionDenied`."},
		{ID: "W19", Level: Must, Source: "§6.2.1", Text: "A request for a JWT-SVID names an audience."},
		{ID: "W20", Level: Must, Source: "§6.2.1", Text: "A request for JWT-SVIDs without a SPIFFE ID is answered with those of all identities of the caller."},
		{ID: "W21", Level: Must, Source: "§6.2.1", Text: "A JWT-SVID response holds at least one SVID, hints are unique, an ID that the caller has not is `PermissionDenied`."},
		{ID: "W22", Level: Must, Source: "§6.2.2", Text: "A JWT bundles response holds at least the own trust domain, as a JWKS keyed by its SPIFFE ID."},
		{ID: "W23", Level: MustNot, Source: "§6.2.2", Text: "The JWKS of a JWT bundles response holds no keys of another use."},
		{ID: "W24", Level: Must, Source: "§6.2.3", Text: "`ValidateJWTSVID` validates as JWT-SVID says; token and audience are mandatory."},
		{ID: "W25", Level: Must, Source: "§7", Text: "WIT methods that are not supported answer `Unimplemented`."},
		{ID: "W26", Level: Must, Source: "§7.2", Text: "WIT responses hold at least one SVID, or the own trust domain's keys.", NotApplicable: noWIT},
		{ID: "W27", Level: Must, Source: "§8", Text: "The first SVID is the default identity, so their order is kept and is the same each time."},
		{ID: "W28", Level: Should, Source: "§4.2", Text: "Clients keep one connection open as long as they can; the server gives them no cause to come anew."},
		{ID: "W29", Level: Must, Source: "Appendix A", Text: "A stream checks, answers, waits, and on each change checks entitlement and cancellation again before it answers or ends with the right code."},
		{ID: "W30", Level: Fact, Source: "§5.2", Text: "The `crl` fields are optional. No known server sets them; neither does Signet."},
		{ID: "W31", Level: Fact, Source: "§5.2.1", Text: "Nothing demands that files be deleted when an identity ends. Signet's end with their volume."},
	}},
	{Letter: "X", Title: "X.509-SVID", Rules: []Rule{
		{ID: "X1", Level: Must, Source: "§2", Text: "There is exactly one URI SAN; SANs of other kinds may stand beside it."},
		{ID: "X2", Level: Must, Source: "§3.1", Text: "A leaf's SPIFFE ID has a path."},
		{ID: "X3", Level: Must, Source: "§3.1", Text: "With an empty subject the SAN extension is critical (RFC 5280 4.1.2.6)."},
		{ID: "X4", Level: MustNot, Source: "§3.2", Text: "A signing certificate's SPIFFE ID, if it has one, has no path and is of the leaf's trust domain."},
		{ID: "X5", Level: MustNot, Source: "§3.2", Text: "A signing certificate is not used for authentication."},
		{ID: "X6", Level: Must, Source: "§4.1", Text: "`cA` is true on signing certificates and false on leaves."},
		{ID: "X7", Level: May, Source: "§4.2", Text: "Signing certificates have name constraints."},
		{ID: "X8", Level: Must, Source: "§4.3", Text: "Key usage is there and critical."},
		{ID: "X9", Level: Must, Source: "§4.3", Text: "A signing certificate has `keyCertSign`; a leaf has `digitalSignature` and neither `keyCertSign` nor `cRLSign`."},
		{ID: "X10", Level: Must, Source: "§4.4", Text: "A leaf should have extended key usage, and then both `serverAuth` and `clientAuth`."},
		{ID: "X11", Level: Must, Source: "§5", Text: "A chain is validated by RFC 5280 against the bundle of the ID's trust domain, and its leaf by the rules above."},
		{ID: "X12", Level: Must, Source: "§6.1", Text: "A bundle's JWK has `use` `x509-svid`, one CA in `x5c` and no `kid`.", NotApplicable: noDocuments},
		{ID: "X13", Level: Must, Source: "§6.2", Text: "Readers of a bundle ignore entries without `x5c`, and all values of it but the first.", NotApplicable: noDocuments},
	}},
	{Letter: "I", Title: "SPIFFE-ID", Rules: []Rule{
		{ID: "I1", Level: Must, Source: "§2", Text: "An ID has the scheme `spiffe`, a trust domain, no query and no fragment."},
		{ID: "I2", Level: Must, Source: "§2.1", Text: "A trust domain is at most 255 bytes of lower case letters, digits, dots, dashes and underscores; no user, no port, no percent-encoding."},
		{ID: "I3", Level: MustNot, Source: "§2.1", Text: "A trust domain is not treated differently because it looks like an IP address or a DNS name."},
		{ID: "I4", Level: Must, Source: "§2.2", Text: "A path has no percent-encoding, no empty, `.` or `..` segment, no slash at its end, and of characters only letters, digits, dots, dashes and underscores."},
		{ID: "I5", Level: Must, Source: "§2.3", Text: "IDs of 2048 bytes are supported; longer ones should not be made."},
		{ID: "I6", Level: Must, Source: "§2", Text: "Paths are case-sensitive. Scheme and trust domain are not: another spelling is never another identity (Signet, like go-spiffe and SPIRE, refuses it)."},
		{ID: "I7", Level: Must, Source: "§3.1", Text: "A trust domain's signing authority carries an SVID of its own, whose ID should be in the trust domain and without a path.",
			DoesNotHold: "roots are the issuer's, and cert-manager's CA certificates, that of deploy/examples among them, mostly carry no SPIFFE ID; Signet takes them as they are, and refuses signing certificates with an ID that breaks X4"},
	}},
	{Letter: "B", Title: "SPIFFE Trust Domain and Bundle", Rules: []Rule{
		{ID: "B1", Level: MustNot, Source: "§4", Text: "Nothing is required of a bundle, which is a JWKS, that the standard does not define.", NotApplicable: noDocuments},
		{ID: "B2", Level: Should, Source: "§4.1.1", Text: "A bundle has a sequence number that changes with its contents.", NotApplicable: noDocuments},
		{ID: "B3", Level: Should, Source: "§4.1.2", Text: "A bundle has a refresh hint in seconds.", NotApplicable: noDocuments},
		{ID: "B4", Level: Must, Source: "§4.1.3", Text: "`keys` is there, also when it is empty, which revokes all keys of the trust domain."},
		{ID: "B5", Level: Must, Source: "§4.2", Text: "Each JWK has `kty` and `use`."},
		{ID: "B6", Level: Must, Source: "§5", Text: "A bundle map has `trust_domains`, keyed by unique names.", NotApplicable: "Signet writes and reads no bundle maps"},
		{ID: "B7", Level: ShouldNot, Source: "§5", Text: "Trust domains share no keys. Signet holds bundles apart: what is trusted for one is never trusted for another."},
	}},
}
