// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package issue

import (
	"context"
	"errors"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Errors that Issue may wrap. Tell them apart with errors.Is. The message of
// the wrapping error names the request and carries the approver's or the
// issuer's own words.
var (
	// ErrDenied: somebody with the right to decide said no, the approver or
	// the API server's authorization. The same request would be denied again.
	ErrDenied = errors.New("request denied")

	// ErrFailed: the issuer, or the API server's validation, could not make a
	// certificate of this request. Whether another one fares better is up to
	// the issuer.
	ErrFailed = errors.New("request failed")

	// ErrUnavailable: no decision was made. The API server could not be
	// reached, did not answer in time, or the request was deleted while it was
	// pending. Try again.
	ErrUnavailable = errors.New("issuer unavailable")

	// ErrNoToken: the request must be made in the pod's name and there is no
	// token to do so, or the API server no longer accepts it. A fresh token
	// comes with kubelet's next publish of the volume.
	ErrNoToken = errors.New("no usable service account token")

	// ErrGone: there is no request of the name in Resume any more. Nothing was
	// decided and nothing is wrong; ask anew.
	ErrGone = errors.New("the request is gone")
)

// ErrStopping is the cause with which attempts are cut short because the agent
// ends, by the caller or by the issuer. One whose request the caller has kept (see
// IssueRequest.Sending) is not withdrawn then: the next agent resumes it.
var ErrStopping = errors.New("the agent is stopping")

// Outcome names what became of an attempt, for metrics and logs: issued, denied,
// failed, unavailable, no_token or gone; empty for an error that is none of the
// above.
func Outcome(err error) string {
	if err == nil {
		return "issued"
	}
	for _, known := range []struct {
		err  error
		name string
	}{{ErrDenied, "denied"}, {ErrFailed, "failed"}, {ErrNoToken, "no_token"}, {ErrGone, "gone"}, {ErrUnavailable, "unavailable"}} {
		if errors.Is(err, known.err) {
			return known.name
		}
	}
	return ""
}

// Issuer obtains certificates. Safe for concurrent use.
type Issuer interface {
	// Issue obtains a certificate for r.CSR. It blocks until the certificate
	// is issued, the request is refused, or ctx ends.
	//
	// ctx is the life of the attempt, not of whoever happens to wait for it: a
	// caller that wants to come back later keeps the attempt running and waits
	// for its result. When ctx ends before the result the request is withdrawn,
	// unless ErrStopping is the cause and the request was kept or resumed.
	//
	// The error is one of the five above or wraps ctx's cause.
	Issue(ctx context.Context, r IssueRequest) (Issued, error)
}

// Forgetter is what an Issuer implements when it keeps the last refused
// request of a volume for the operator to look at.
type Forgetter interface {
	// Forget drops whatever is left of earlier attempts for the volume. It
	// does not block on I/O. Attempts that are running end by their own ctx.
	Forget(volume string)
}

// Resumer is what an Issuer implements whose requests outlive the agent.
type Resumer interface {
	// Expect announces that a request that an agent before has kept will be
	// resumed or abandoned: until then it is nobody's leftover. It says whether
	// that can be: a name that is none, or that another volume has announced,
	// cannot. Call it before the issuer runs. It does no I/O.
	Expect(volume, request string) bool
	// Abandon says that nobody will resume an expected request. It is deleted, in
	// the background. A request that is not expected is left alone.
	Abandon(request string)
}

// Pod names the pod that the certificate is for.
type Pod struct {
	Namespace, Name, UID, ServiceAccount string
}

// IssueRequest is one wish for a certificate.
type IssueRequest struct {
	// Volume is kubelet's volume ID. One attempt per volume at a time.
	Volume string
	Pod    Pod
	// ID is the SPIFFE ID that the CSR asks for.
	ID spiffeid.ID
	// CSR is one PEM "CERTIFICATE REQUEST" block (RFC 7468 section 7).
	CSR []byte
	// Duration is the lifetime asked for.
	Duration time.Duration
	// Token is the pod's service account token for the API server. Needed only
	// where requests are made in the pod's name.
	Token Token
	// Progress, if not nil, is told in plain words what the attempt waits for
	// whenever that changes. It is called from the goroutine that called Issue
	// and must not block.
	Progress func(what string)
	// Sending, if not nil, is told of the request before it is sent, and says
	// whether it was kept where the next agent finds it: if so, that agent may
	// resume it. It may block on local I/O. It is not told of what is resumed.
	Sending func(Sent) (kept bool)
	// Resume, if not empty, is the name of a request that was kept and that
	// Resumer.Expect has taken. Its answer is waited for, and nothing is sent: CSR,
	// Duration and Token are not needed. The answer may be that of another object
	// that has taken the name: whoever verifies it against the key finds out.
	Resume string
}

// Sent names a request that is about to be sent.
type Sent struct {
	// Request is its name, in the issuer's own words ("namespace/name").
	Request string
	// Issuer is as in Issued.
	Issuer string
}

// Issued is what the issuer returned, not yet verified.
type Issued struct {
	// Chain is the leaf and its intermediates, PEM, leaf first.
	Chain []byte
	// CA is what the issuer says is the root, PEM. May be empty.
	CA []byte
	// Issuer names who was asked, so that it can be told from another one. May be
	// empty where there is only one, and for a request that was resumed.
	Issuer string
	// Request names the request for logs ("namespace/name"). May be empty.
	Request string
	// Done tells the issuer that the caller needs the request no more: call it
	// once, after the chain was stored, or after it was refused. It may block
	// on I/O up to the end of ctx and never fails for the caller. May be nil.
	Done func(ctx context.Context)
}

// Report passes what to r.Progress if there is one.
func (r IssueRequest) Report(what string) {
	if r.Progress != nil {
		r.Progress(what)
	}
}

// maxForeign bounds foreign words in an error message. A Kubernetes Event
// holds 1024 bytes and has to name the request and the pod as well.
const maxForeign = 512

// Quote makes words of a foreign party fit for an error message: one line, no
// control characters, valid UTF-8, at most 512 bytes with the ellipsis.
func Quote(s string) string { return Clip(s, maxForeign) }

// Clip is Quote with a limit, in bytes and at least 3.
func Clip(s string, limit int) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	s = strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return ' '
		}
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s)
	s = strings.TrimSpace(s)
	if len(s) <= limit {
		return s
	}
	cut := limit - len("…")
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}
