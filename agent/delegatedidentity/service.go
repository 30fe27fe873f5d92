// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package delegatedidentity

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	delegatedidentityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/delegatedidentity/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Workload is one volume of a pod, and the SVID in it. It prints without the key,
// since pki's keys do; nothing here prints it.
type Workload struct {
	Namespace, ServiceAccount string
	Pod, PodUID               string
	// Volume is kubelet's ID of the volume.
	Volume string
	// SVID is nil as long as none is issued. It is immutable: a renewal is another
	// pointer.
	SVID *x509svid.SVID
}

// Source is what the agent knows of its node. Both methods return a state and a
// channel that is closed once the state has been superseded; both are read at the
// same moment. They must not wait for I/O.
type Source interface {
	// Workloads returns every volume of the node, in any order. The slice is the
	// caller's.
	Workloads() ([]Workload, <-chan struct{})
	// Bundles returns the bundles of the own trust domain and of federated ones; nil
	// as long as there are none.
	Bundles() (*x509bundle.Set, <-chan struct{})
}

// Service implements spire.api.agent.delegatedidentity.v1.DelegatedIdentity. It does
// not ask who calls: whoever registers it sees to that (admin.Service).
type Service struct {
	delegatedidentityv1.UnsafeDelegatedIdentityServer
	source      Source
	trustDomain spiffeid.TrustDomain
}

// New makes a Service of what the agent knows and its own trust domain.
func New(source Source, own spiffeid.TrustDomain) *Service {
	return &Service{source: source, trustDomain: own}
}

// Register adds the service to a gRPC server.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	delegatedidentityv1.RegisterDelegatedIdentityServer(r, s)
}

var (
	errByPID = status.Error(codes.InvalidArgument, "this agent looks into no processes: subscribe by selectors (k8s:ns, k8s:sa, k8s:pod-name, k8s:pod-uid), not by PID")
	errNoJWT = status.Error(codes.Unimplemented, "JWT functionality is disabled")
)

// noKeys is a JWKS without keys.
var noKeys = []byte(`{"keys":[]}`)

// SubscribeToX509SVIDs sends the SVIDs of the pods that all selectors are true of.
func (s *Service) SubscribeToX509SVIDs(r *delegatedidentityv1.SubscribeToX509SVIDsRequest, stream grpc.ServerStreamingServer[delegatedidentityv1.SubscribeToX509SVIDsResponse]) error {
	if r.GetPid() != 0 {
		return errByPID
	}
	wanted, err := parse(r.GetSelectors())
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	var sent state
	for first := true; ; first = false {
		workloads, changed := s.source.Workloads()
		bundles, bundlesChanged := s.source.Bundles()
		now := state{svids: matching(workloads, wanted), federated: s.federated(bundles)}
		if first || !now.equal(sent) {
			message, err := now.message()
			if err != nil {
				return err
			}
			if err := stream.Send(message); err != nil {
				return err
			}
			sent = now
		}
		if err := wait(stream.Context(), changed, bundlesChanged); err != nil {
			return err
		}
	}
}

// SubscribeToX509Bundles sends the X.509 authorities of every trust domain, keyed by
// the trust domain's SPIFFE ID.
func (s *Service) SubscribeToX509Bundles(_ *delegatedidentityv1.SubscribeToX509BundlesRequest, stream grpc.ServerStreamingServer[delegatedidentityv1.SubscribeToX509BundlesResponse]) error {
	var sent map[string][]byte
	for {
		set, changed := s.source.Bundles()
		// A delegate that is told of no bundle would trust nobody. It is held, as a
		// pod's stream is, until there is one.
		if now := authorities(set); len(now) > 0 && !equalBundles(now, sent) {
			if err := stream.Send(&delegatedidentityv1.SubscribeToX509BundlesResponse{CaCertificates: now}); err != nil {
				return err
			}
			sent = now
		}
		if err := wait(stream.Context(), changed, nil); err != nil {
			return err
		}
	}
}

// FetchJWTSVIDs refuses: the JWT profile is disabled.
func (s *Service) FetchJWTSVIDs(_ context.Context, _ *delegatedidentityv1.FetchJWTSVIDsRequest) (*delegatedidentityv1.FetchJWTSVIDsResponse, error) {
	return nil, errNoJWT
}

// SubscribeToJWTBundles says that the own trust domain has no JWT keys and stays
// open, as the Workload API does: a proxy may wait for a first message before it
// does anything.
func (s *Service) SubscribeToJWTBundles(_ *delegatedidentityv1.SubscribeToJWTBundlesRequest, stream grpc.ServerStreamingServer[delegatedidentityv1.SubscribeToJWTBundlesResponse]) error {
	err := stream.Send(&delegatedidentityv1.SubscribeToJWTBundlesResponse{Bundles: map[string][]byte{s.trustDomain.IDString(): noKeys}})
	if err != nil {
		return err
	}
	return wait(stream.Context(), nil, nil)
}

// wait returns nil once one of the channels is closed, or why the stream must end:
// the cause of its context's end. A nil channel never closes.
func wait(ctx context.Context, a, b <-chan struct{}) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-a:
	case <-b:
	}
	return nil
}

// state is what a subscriber to SVIDs is told.
type state struct {
	svids     []*x509svid.SVID
	federated []string
}

func (s state) equal(o state) bool {
	return slices.Equal(s.svids, o.svids) && slices.Equal(s.federated, o.federated)
}

// matching returns the SVIDs of the workloads that are wanted, in a fixed order.
func matching(workloads []Workload, wanted conditions) []*x509svid.SVID {
	workloads = slices.DeleteFunc(workloads, func(w Workload) bool { return w.SVID == nil || !wanted.match(w) })
	slices.SortFunc(workloads, func(a, b Workload) int {
		return cmp.Or(
			cmp.Compare(a.SVID.ID.String(), b.SVID.ID.String()),
			cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Pod, b.Pod), cmp.Compare(a.Volume, b.Volume))
	})
	svids := make([]*x509svid.SVID, 0, len(workloads))
	for _, w := range workloads {
		svids = append(svids, w.SVID)
	}
	return svids
}

// federated names the trust domains other than the own one, in order.
func (s *Service) federated(set *x509bundle.Set) []string {
	if set == nil {
		return nil
	}
	var names []string
	for _, b := range set.Bundles() { // Sorted by name.
		if b.TrustDomain() != s.trustDomain && !b.Empty() {
			names = append(names, b.TrustDomain().IDString())
		}
	}
	return names
}

func (s state) message() (*delegatedidentityv1.SubscribeToX509SVIDsResponse, error) {
	m := &delegatedidentityv1.SubscribeToX509SVIDsResponse{FederatesWith: s.federated}
	for _, svid := range s.svids {
		_, key, err := svid.MarshalRaw()
		if err != nil {
			return nil, status.Error(codes.Internal, fmt.Sprintf("encode SVID %s: %v", svid.ID, err))
		}
		document := &types.X509SVID{
			Id:        &types.SPIFFEID{TrustDomain: svid.ID.TrustDomain().Name(), Path: svid.ID.Path()},
			ExpiresAt: svid.Certificates[0].NotAfter.Unix(),
			Hint:      svid.Hint,
		}
		for _, certificate := range svid.Certificates {
			document.CertChain = append(document.CertChain, certificate.Raw)
		}
		m.X509Svids = append(m.X509Svids, &delegatedidentityv1.X509SVIDWithKey{X509Svid: document, X509SvidKey: key})
	}
	return m, nil
}

// authorities returns the DER of every trust domain's authorities. Trust domains
// without any are left out.
func authorities(set *x509bundle.Set) map[string][]byte {
	if set == nil {
		return nil
	}
	all := map[string][]byte{}
	for _, b := range set.Bundles() {
		var der []byte
		for _, authority := range b.X509Authorities() {
			der = append(der, authority.Raw...)
		}
		if len(der) > 0 {
			all[b.TrustDomain().IDString()] = der
		}
	}
	return all
}

func equalBundles(a, b map[string][]byte) bool {
	if len(a) != len(b) {
		return false
	}
	for name, der := range a {
		if other, ok := b[name]; !ok || !slices.Equal(der, other) {
			return false
		}
	}
	return true
}
