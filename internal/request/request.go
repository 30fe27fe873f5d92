// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package request

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"strings"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// DefaultDriverName is csi-driver-spiffe's, so that pod specs written for it
// work unchanged.
const DefaultDriverName = "spiffe.csi.cert-manager.io"

// Prefix begins every annotation and label of ours. It does not follow the CSI
// driver's name: requests of two drivers are told apart by AnnotationDriver.
const Prefix = "spiffe.csi.cert-manager.io/"

const (
	// AnnotationIdentity holds the SPIFFE ID that is asked for. Its presence is
	// what makes a request a matter for the approver.
	AnnotationIdentity = Prefix + "identity"
	// AnnotationDriver holds the name of the CSI driver that asks. A request of
	// another driver is left to that driver's approver.
	AnnotationDriver = Prefix + "driver"
	// LabelAgent is Hash(driver name, node name): an agent watches its own
	// requests by it.
	LabelAgent = Prefix + "agent"
	// LabelVolume is Hash(volume ID).
	LabelVolume = Prefix + "volume"
)

// Keys of CertificateRequest.spec.extra, copied by cert-manager's webhook from
// what the API server proved about the requester's service account token
// (Kubernetes 1.32 and later fill the node's).
const (
	ExtraNodeName = "authentication.kubernetes.io/node-name"
	ExtraNodeUID  = "authentication.kubernetes.io/node-uid"
	ExtraPodName  = "authentication.kubernetes.io/pod-name"
	ExtraPodUID   = "authentication.kubernetes.io/pod-uid"
)

// Requester says whose credentials create the CertificateRequest.
type Requester string

const (
	// RequesterAgent is the agent's own service account: the token names the
	// node, and the approver checks that the pod runs there.
	RequesterAgent Requester = "agent"
	// RequesterPod is the pod's service account, as csi-driver-spiffe does it:
	// each service account needs the right to create CertificateRequests.
	RequesterPod Requester = "pod"
)

// ParseRequester accepts "agent" and "pod".
func ParseRequester(s string) (Requester, error) {
	switch r := Requester(s); r {
	case RequesterAgent, RequesterPod:
		return r, nil
	}
	return "", fmt.Errorf("requester %q is unknown (want %q or %q)", s, RequesterAgent, RequesterPod)
}

// Usages are the usages of every request: exactly these, in any order. The
// caller owns the slice.
func Usages() []cmapi.KeyUsage {
	return []cmapi.KeyUsage{
		cmapi.UsageDigitalSignature, cmapi.UsageKeyEncipherment, cmapi.UsageServerAuth, cmapi.UsageClientAuth,
	}
}

// Pod is the pod that the SVID is for.
type Pod struct {
	Namespace, Name, UID, ServiceAccount string
}

// Spec is all that varies between requests.
type Spec struct {
	// Driver and Node name the agent that asks.
	Driver, Node string
	// VolumeID is the CSI volume's.
	VolumeID string
	Pod      Pod
	// ID is the SPIFFE ID in CSR.
	ID spiffeid.ID
	// CSR is PEM.
	CSR      []byte
	Issuer   cmmeta.IssuerReference
	Duration time.Duration
	// Annotations are the operator's; those under Prefix are dropped, so that
	// configuration cannot change what the approver reads.
	Annotations map[string]string
}

// New makes a request object ready to be created in the pod's namespace. The
// name is chosen here and unique, so that a create that is sent twice creates one
// object. The pod owns the request: when all else fails it goes when the pod goes.
func New(s Spec) *cmapi.CertificateRequest {
	annotations := maps.Clone(s.Annotations)
	maps.DeleteFunc(annotations, func(key, _ string) bool { return strings.HasPrefix(key, Prefix) })
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[AnnotationIdentity] = s.ID.String()
	annotations[AnnotationDriver] = s.Driver
	return &cmapi.CertificateRequest{
		ObjectMeta: metav1.ObjectMeta{
			Name:        name(s.Pod.Name),
			Namespace:   s.Pod.Namespace,
			Annotations: annotations,
			Labels:      map[string]string{LabelAgent: Hash(s.Driver, s.Node), LabelVolume: Hash(s.VolumeID)},
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: "v1", Kind: "Pod", Name: s.Pod.Name, UID: types.UID(s.Pod.UID),
			}},
		},
		Spec: cmapi.CertificateRequestSpec{
			Duration:  &metav1.Duration{Duration: s.Duration},
			IssuerRef: s.Issuer,
			Request:   s.CSR,
			Usages:    Usages(),
		},
	}
}

// maxNamePrefix leaves room for the suffix in the 253 bytes of an object name.
const maxNamePrefix = 200

func name(pod string) string {
	if len(pod) > maxNamePrefix {
		pod = strings.TrimRight(pod[:maxNamePrefix], "-.")
	}
	var random [5]byte
	_, _ = rand.Read(random[:]) // Never fails (crypto/rand).
	return pod + "-" + hex.EncodeToString(random[:])
}

// Hash turns parts into a label value: 40 hexadecimal digits. Parts are kept
// apart, so ("a","bc") and ("ab","c") differ.
func Hash(parts ...string) string {
	h := sha256.New()
	for _, part := range parts {
		fmt.Fprintf(h, "%d:%s", len(part), part)
	}
	return hex.EncodeToString(h.Sum(nil)[:20])
}
