// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package certmanager

import (
	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// phase is how far a CertificateRequest has come.
type phase int

const (
	undecided phase = iota // no approver has spoken
	approved               // the issuer has it
	issued
	denied
	failed
	gone // deleted, or no longer ours
)

// final says that nothing that may still happen to the request matters.
func (p phase) final() bool { return p >= issued }

// verdict is what one state of a CertificateRequest means to the attempt.
type verdict struct {
	uid   types.UID
	phase phase
	// reason and message are the words of the condition that decided.
	reason, message string
	// chain and ca are set when issued. They alias the object.
	chain, ca []byte
}

// judge reads the status of a CertificateRequest as cert-manager's API types
// define it. A denial counts whatever else is there: a denied request must
// never be signed. A ready request without a certificate is not ready yet.
func judge(cr *cmapi.CertificateRequest) verdict {
	v := verdict{uid: cr.UID}
	for _, c := range cr.Status.Conditions {
		if c.Status != cmmeta.ConditionTrue {
			continue
		}
		if c.Type == cmapi.CertificateRequestConditionDenied {
			return v.with(denied, c)
		}
	}
	ready, hasReady := condition(cr, cmapi.CertificateRequestConditionReady)
	if hasReady && ready.Status == cmmeta.ConditionTrue && len(cr.Status.Certificate) > 0 {
		v = v.with(issued, ready)
		v.chain, v.ca = cr.Status.Certificate, cr.Status.CA
		return v
	}
	if c, ok := condition(cr, cmapi.CertificateRequestConditionInvalidRequest); ok && c.Status == cmmeta.ConditionTrue {
		return v.with(failed, c)
	}
	if hasReady && ready.Status == cmmeta.ConditionFalse {
		switch ready.Reason {
		case cmapi.CertificateRequestReasonFailed:
			return v.with(failed, ready)
		case cmapi.CertificateRequestReasonDenied:
			return v.with(denied, ready)
		}
	}
	if c, ok := condition(cr, cmapi.CertificateRequestConditionApproved); ok && c.Status == cmmeta.ConditionTrue {
		// What the issuer says meanwhile is worth more than who approved.
		if hasReady {
			c = ready
		}
		return v.with(approved, c)
	}
	return v
}

func (v verdict) with(p phase, c cmapi.CertificateRequestCondition) verdict {
	v.phase, v.reason, v.message = p, c.Reason, c.Message
	return v
}

func condition(cr *cmapi.CertificateRequest, t cmapi.CertificateRequestConditionType) (cmapi.CertificateRequestCondition, bool) {
	for _, c := range cr.Status.Conditions {
		if c.Type == t {
			return c, true
		}
	}
	return cmapi.CertificateRequestCondition{}, false
}
