// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/signet-spiffe/signet/agent/workload"
	agentv1 "github.com/signet-spiffe/signet/proto/signet/agent/v1"
)

// maxPage bounds the workloads in one message: with the longest errors and names they
// stay below what gRPC clients take (4 MB).
const maxPage = 1000

// maxRenewing bounds how many volumes are told at the same time that they are to be
// renewed. How many are renewed at the same time is the lifecycle's business.
const maxRenewing = 64

// agentService is signet.agent.v1's AgentService.
type agentService struct {
	agentv1.UnimplementedAgentServiceServer
	about     About
	workloads Workloads
}

// GetVersion implements agentv1.AgentServiceServer.
func (s *agentService) GetVersion(context.Context, *agentv1.GetVersionRequest) (*agentv1.GetVersionResponse, error) {
	return &agentv1.GetVersionResponse{
		Version: s.about.Version, GoVersion: runtime.Version(), Node: s.about.Node, Driver: s.about.Driver,
		TrustDomain: s.about.TrustDomain, StartedAt: timestamppb.New(s.about.Started),
	}, nil
}

// ListWorkloads implements agentv1.AgentServiceServer. A page's token is the last
// volume ID of the page before: volumes that come and go move no page.
func (s *agentService) ListWorkloads(_ context.Context, r *agentv1.ListWorkloadsRequest) (*agentv1.ListWorkloadsResponse, error) {
	if err := check(r.GetSelector()); err != nil {
		return nil, err
	}
	size := int(min(cmp.Or(r.GetPageSize(), maxPage), maxPage))
	var page agentv1.ListWorkloadsResponse
	for _, w := range s.workloads.List() {
		if w.Volume <= r.GetPageToken() || !selects(r.GetSelector(), w) {
			continue
		}
		if len(page.Workloads) == size {
			page.NextPageToken = page.Workloads[size-1].VolumeId
			break
		}
		page.Workloads = append(page.Workloads, message(w))
	}
	return &page, nil
}

// WatchWorkloads implements agentv1.AgentServiceServer.
func (s *agentService) WatchWorkloads(r *agentv1.WatchWorkloadsRequest, stream grpc.ServerStreamingServer[agentv1.WatchWorkloadsResponse]) error {
	if err := check(r.GetSelector()); err != nil {
		return err
	}
	watcher := s.workloads.Watch()
	defer watcher.Close()
	w := &watch{selector: r.GetSelector(), stream: stream, sent: map[string]bool{}}
	for {
		changed, gone, err := watcher.Next(stream.Context())
		if err != nil {
			return err
		}
		if err := w.send(changed, gone); err != nil {
			return err
		}
	}
}

// watch is one stream of WatchWorkloads.
type watch struct {
	selector *agentv1.WorkloadSelector
	stream   grpc.ServerStreamingServer[agentv1.WatchWorkloadsResponse]
	sent     map[string]bool // Volume IDs that the caller knows.
	synced   bool
}

// send tells the caller what concerns it, in messages of bounded size.
func (w *watch) send(changed []workload.Standing, gone []string) error {
	changed = slices.DeleteFunc(changed, func(s workload.Standing) bool { return !selects(w.selector, s) })
	gone = slices.DeleteFunc(gone, func(id string) bool { return !w.sent[id] })
	for len(changed) > maxPage {
		if err := w.message(changed[:maxPage], nil, w.synced); err != nil {
			return err
		}
		changed = changed[maxPage:]
	}
	if w.synced && len(changed)+len(gone) == 0 {
		return nil
	}
	w.synced = true
	return w.message(changed, gone, true)
}

func (w *watch) message(changed []workload.Standing, gone []string, synced bool) error {
	m := &agentv1.WatchWorkloadsResponse{Workloads: messages(changed), RemovedVolumeIds: gone, Synced: synced}
	for _, s := range changed {
		w.sent[s.Volume] = true
	}
	for _, id := range gone {
		delete(w.sent, id)
	}
	return w.stream.Send(m)
}

// RenewWorkloads implements agentv1.AgentServiceServer.
func (s *agentService) RenewWorkloads(ctx context.Context, r *agentv1.RenewWorkloadsRequest) (*agentv1.RenewWorkloadsResponse, error) {
	if err := checkRenewal(r); err != nil {
		return nil, err
	}
	chosen := slices.DeleteFunc(s.workloads.List(), func(w workload.Standing) bool { return !selects(r.GetSelector(), w) })
	renewals := make([]*agentv1.Renewal, len(chosen))
	group := errgroup.Group{}
	group.SetLimit(maxRenewing)
	for i, w := range chosen {
		group.Go(func() (err error) {
			renewals[i], err = s.renew(ctx, w)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	renewals = slices.DeleteFunc(renewals, func(r *agentv1.Renewal) bool { return r == nil })
	if len(renewals) == 0 {
		return nil, fmt.Errorf("%w that matches: this agent knows of %d", workload.ErrUnknown, len(s.workloads.List()))
	}
	return &agentv1.RenewWorkloadsResponse{Renewals: renewals}, nil
}

// renew is nil for a volume that has gone meanwhile.
func (s *agentService) renew(ctx context.Context, w workload.Standing) (*agentv1.Renewal, error) {
	renewal, err := s.workloads.Renew(ctx, w.Volume)
	if errors.Is(err, workload.ErrUnknown) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &agentv1.Renewal{
		VolumeId: w.Volume, Namespace: w.Pod.Namespace, PodName: w.Pod.Name,
		Serial: renewal.Serial, Joined: renewal.Joined, LastErrorAt: timestamp(renewal.LastErrorAt),
	}, nil
}

func check(s *agentv1.WorkloadSelector) error {
	if s.GetPodName() != "" && s.GetNamespace() == "" {
		return fmt.Errorf("%w: pod_name %q needs a namespace", errInvalid, s.GetPodName())
	}
	return nil
}

func checkRenewal(r *agentv1.RenewWorkloadsRequest) error {
	s := r.GetSelector()
	empty := s.GetVolumeId() == "" && s.GetNamespace() == "" && s.GetPodName() == ""
	switch {
	case empty && !r.GetAll():
		return fmt.Errorf("%w: say which workloads (selector), or all", errInvalid)
	case !empty && r.GetAll():
		return fmt.Errorf("%w: a selector and all contradict each other; give one", errInvalid)
	}
	return check(s)
}

// selects says whether w has all that s asks for.
func selects(s *agentv1.WorkloadSelector, w workload.Standing) bool {
	matches := func(want, is string) bool { return want == "" || want == is }
	return matches(s.GetVolumeId(), w.Volume) && matches(s.GetNamespace(), w.Pod.Namespace) && matches(s.GetPodName(), w.Pod.Name)
}

func messages(list []workload.Standing) []*agentv1.Workload {
	all := make([]*agentv1.Workload, len(list))
	for i, s := range list {
		all[i] = message(s)
	}
	return all
}

func message(s workload.Standing) *agentv1.Workload {
	return &agentv1.Workload{
		VolumeId: s.Volume, Namespace: s.Pod.Namespace, PodName: s.Pod.Name, PodUid: s.Pod.UID, ServiceAccount: s.Pod.ServiceAccount,
		SpiffeId: s.ID.String(), State: state(s), Serial: s.Serial, NotBefore: timestamp(s.NotBefore), NotAfter: timestamp(s.NotAfter),
		KeyType: string(s.KeyType), Issuer: s.Issuer, NextRenewal: timestamp(s.Next), InFlight: s.InFlight, WaitsFor: s.WaitsFor,
		Failures: uint32(s.Failures), LastError: s.LastError, LastErrorAt: timestamp(s.LastErrorAt),
	}
}

func state(s workload.Standing) agentv1.WorkloadState {
	switch {
	case s.Phase == workload.Pending:
		return agentv1.WorkloadState_WORKLOAD_STATE_PENDING
	case s.Lateness == workload.Expired:
		return agentv1.WorkloadState_WORKLOAD_STATE_EXPIRED
	case s.Lateness == workload.Overdue:
		return agentv1.WorkloadState_WORKLOAD_STATE_OVERDUE
	}
	return agentv1.WorkloadState_WORKLOAD_STATE_READY
}

// timestamp is nil for the zero time.
func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
