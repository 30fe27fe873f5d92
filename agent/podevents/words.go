// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package podevents

import (
	"errors"
	"fmt"
	"regexp"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/signet-spiffe/signet/agent/issue"
	"github.com/signet-spiffe/signet/agent/workload"
)

// The reasons of Events.
const (
	ReasonIssued         = "SVIDIssued"
	ReasonDenied         = "SVIDDenied"
	ReasonIssuanceFailed = "SVIDIssuanceFailed"
	ReasonRenewalOverdue = "SVIDRenewalOverdue"
	ReasonExpired        = "SVIDExpired"
)

var reasons = []string{ReasonIssued, ReasonDenied, ReasonIssuanceFailed, ReasonRenewalOverdue, ReasonExpired}

// Of a message of at most 1024 bytes (what events.k8s.io allows a note), foreign
// words get most. A SPIFFE ID may have 2048 bytes (SPIFFE-ID section 2.4).
const (
	maxWords = 640
	maxID    = 256
)

// words are what an Event says.
type words struct{ kind, reason, message string }

func describe(n workload.Notification, now time.Time) words {
	id := issue.Clip(n.ID.String(), maxID)
	until := n.NotAfter.UTC().Format(time.RFC3339)
	switch n.Notice {
	case workload.NoticeIssued:
		return words{corev1.EventTypeNormal, ReasonIssued, fmt.Sprintf("%s, valid until %s", id, until)}
	case workload.NoticeFailed:
		return words{corev1.EventTypeWarning, failureReason(n.Err), failureMessage(id, until, n, now)}
	case workload.NoticeOverdue:
		left := n.NotAfter.Sub(now).Round(time.Second)
		return words{corev1.EventTypeWarning, ReasonRenewalOverdue,
			fmt.Sprintf("%s expires at %s (in %s) and is not renewed yet%s", id, until, left, because(n.Status))}
	case workload.NoticeExpired:
		return words{corev1.EventTypeWarning, ReasonExpired,
			fmt.Sprintf("%s expired at %s and is not renewed yet%s", id, until, because(n.Status))}
	}
	return words{}
}

func failureReason(err error) string {
	if errors.Is(err, issue.ErrDenied) {
		return ReasonDenied
	}
	return ReasonIssuanceFailed
}

func failureMessage(id, until string, n workload.Notification, now time.Time) string {
	why := "no reason was given"
	if n.Err != nil {
		why = foreign(n.Err.Error())
	}
	switch {
	case n.NotAfter.IsZero():
		return fmt.Sprintf("no SVID %s for this pod: %s", id, why)
	case !now.Before(n.NotAfter):
		return fmt.Sprintf("%s, expired at %s, could not be renewed: %s", id, until, why)
	}
	return fmt.Sprintf("%s, valid until %s, could not be renewed: %s", id, until, why)
}

// because is the end of a sentence; nothing if there is nothing to say.
func because(status string) string {
	if status == "" {
		return ""
	}
	return ": " + foreign(status)
}

// secret is what a private key or a bearer token looks like. None should ever be
// here; who echoes a request in an error message is not ours to know.
var secret = regexp.MustCompile(`-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*(-----END [A-Z ]*PRIVATE KEY-----)?|eyJ[\w-]{8,}\.[\w-]+(\.[\w-]*)?`)

func foreign(s string) string {
	return issue.Clip(secret.ReplaceAllString(s, "[removed]"), maxWords)
}
