// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package certmanager

import (
	"errors"
	"fmt"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"

	"github.com/signet-spiffe/signet/agent/issue"
	"github.com/signet-spiffe/signet/internal/request"
)

// createError says what a failed create means. Its text is what the operator
// reads in the pod's Event.
func createError(err error, name types.NamespacedName, requester request.Requester, serviceAccount string) error {
	kind, hint := issue.ErrUnavailable, "is the API server reachable?"
	words := issue.Quote(err.Error())
	switch {
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		kind, hint = issue.ErrFailed, "the namespace is being deleted"
	case apierrors.IsUnauthorized(err) && requester == request.RequesterPod:
		kind = issue.ErrNoToken
		hint = fmt.Sprintf("the API server no longer accepts the token of service account %s/%s; a fresh one comes with the next publish", name.Namespace, serviceAccount)
	case apierrors.IsUnauthorized(err):
		hint = "the API server does not accept the agent's own credentials"
	case apierrors.IsForbidden(err) && requester == request.RequesterPod:
		kind = issue.ErrDenied
		hint = fmt.Sprintf("grant service account %s/%s the right to create certificaterequests.cert-manager.io, or run the agent with --requester=agent", name.Namespace, serviceAccount)
	case apierrors.IsForbidden(err):
		kind, hint = issue.ErrDenied, "the agent's service account needs the right to create certificaterequests.cert-manager.io"
	case refusedAsInvalid(err):
		kind, hint = issue.ErrFailed, "the API server does not take the request as it is"
	case apierrors.IsNotFound(err):
		hint = "is cert-manager installed, and does the namespace exist?"
	case answered(err):
		hint = "the API server could not take the request; is cert-manager's webhook running?"
	}
	return fmt.Errorf("create CertificateRequest %s: %w: %s (%s)", name, kind, words, hint)
}

func refusedAsInvalid(err error) bool {
	return apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) || apierrors.IsNotAcceptable(err) ||
		apierrors.IsRequestEntityTooLargeError(err) || apierrors.IsMethodNotSupported(err)
}

// answered says that err is the API server's own answer.
func answered(err error) bool {
	var status apierrors.APIStatus
	return errors.As(err, &status)
}

// mayExist says whether a create that failed may have made its object all the
// same: the answer was lost, or the server gave up waiting for itself.
func mayExist(err error) bool {
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		return status.Status().Code >= http.StatusInternalServerError
	}
	return !utilnet.IsConnectionRefused(err)
}
