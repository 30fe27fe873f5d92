// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	apiutil "github.com/cert-manager/cert-manager/pkg/api/util"
	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	cmclient "github.com/cert-manager/cert-manager/pkg/client/clientset/versioned"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"

	"github.com/signet-spiffe/signet/integration/install"
	"github.com/signet-spiffe/signet/internal/pki"
	"github.com/signet-spiffe/signet/internal/request"
)

// floorLabel selects the floor's requests. It is not Signet's.
const floorLabel = "bench.signet-spiffe.io/floor"

// floor is the least that a client of cert-manager has to do, and an approver that
// asks nothing. Client and approver have a connection each, as agent and approver
// of Signet have.
type floor struct {
	client cmclient.Interface
	signer cmmeta.IssuerReference

	// approvals waits for the approver's workers.
	approvals chan *cmapi.CertificateRequest
	running   sync.WaitGroup
	deletes   sync.WaitGroup

	mu      sync.Mutex // guards the rest
	waiting map[types.NamespacedName]chan *cmapi.CertificateRequest
	failed  error // of a delete or an approval, the first
}

// newFloor starts the watches and the approver, which end with ctx. approvers is
// how many requests are approved at the same time.
func newFloor(ctx context.Context, config *rest.Config, approvers int) (*floor, error) {
	client, err := ownConnection(config)
	if err != nil {
		return nil, err
	}
	approver, err := ownConnection(config)
	if err != nil {
		return nil, err
	}
	f := &floor{
		client:    client,
		signer:    cmmeta.IssuerReference{Name: install.IssuerName, Kind: "ClusterIssuer", Group: "cert-manager.io"},
		approvals: make(chan *cmapi.CertificateRequest, 10_000),
		waiting:   map[types.NamespacedName]chan *cmapi.CertificateRequest{},
	}
	if err := f.follow(ctx, client, f.seen); err != nil {
		return nil, err
	}
	if err := f.follow(ctx, approver, f.toApprove); err != nil {
		return nil, err
	}
	for range approvers {
		f.running.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case cr := <-f.approvals:
					f.fail(approve(ctx, approver, cr))
				}
			}
		})
	}
	return f, nil
}

// ownConnection makes a client that shares its connection with no other: client-go
// shares those of equal configurations.
func ownConnection(config *rest.Config) (cmclient.Interface, error) {
	config = rest.CopyConfig(config)
	config.Dial = (&net.Dialer{Timeout: 10 * time.Second}).DialContext
	client, err := cmclient.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make a client for the floor: %w", err)
	}
	return client, nil
}

// follow watches the floor's requests.
func (f *floor) follow(ctx context.Context, client cmclient.Interface, seen func(*cmapi.CertificateRequest)) error {
	requests := client.CertmanagerV1().CertificateRequests(metav1.NamespaceAll)
	list, err := requests.List(ctx, metav1.ListOptions{LabelSelector: floorLabel})
	if err != nil {
		return fmt.Errorf("list the floor's requests: %w", err)
	}
	watcher, err := watchtools.NewRetryWatcherWithContext(ctx, list.ResourceVersion, &cache.ListWatch{
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.LabelSelector = floorLabel
			return requests.Watch(ctx, o)
		},
	})
	if err != nil {
		return fmt.Errorf("watch the floor's requests: %w", err)
	}
	f.running.Go(func() {
		defer watcher.Stop()
		for event := range watcher.ResultChan() {
			if cr, ok := event.Object.(*cmapi.CertificateRequest); ok && event.Type != watch.Deleted {
				seen(cr)
			}
		}
	})
	return nil
}

func nameOf(cr *cmapi.CertificateRequest) types.NamespacedName {
	return types.NamespacedName{Namespace: cr.Namespace, Name: cr.Name}
}

// seen hands an issued request to whoever waits for it.
func (f *floor) seen(cr *cmapi.CertificateRequest) {
	if len(cr.Status.Certificate) == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if waiter, ok := f.waiting[nameOf(cr)]; ok {
		delete(f.waiting, nameOf(cr))
		waiter <- cr
	}
}

func (f *floor) toApprove(cr *cmapi.CertificateRequest) {
	if !apiutil.CertificateRequestIsApproved(cr) && len(cr.Status.Conditions) == 0 {
		f.approvals <- cr
	}
}

// approve is one status patch, of the version that was seen.
func approve(ctx context.Context, client cmclient.Interface, cr *cmapi.CertificateRequest) error {
	now := metav1.Now()
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": cr.UID, "resourceVersion": cr.ResourceVersion},
		"status": map[string]any{"conditions": []cmapi.CertificateRequestCondition{{
			Type: cmapi.CertificateRequestConditionApproved, Status: cmmeta.ConditionTrue, LastTransitionTime: &now,
			Reason: "Floor", Message: "approved unseen",
		}}},
	})
	if err != nil {
		return err
	}
	_, err = client.CertmanagerV1().CertificateRequests(cr.Namespace).Patch(ctx, cr.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	if err != nil {
		return fmt.Errorf("approve %s: %w", nameOf(cr), err)
	}
	return nil
}

// request is Signet's own, but for the annotations that make it one.
func (f *floor) request(v volume, csr []byte, id spiffeid.ID) *cmapi.CertificateRequest {
	cr := request.New(request.Spec{
		Driver: "floor", Node: nodeID, VolumeID: v.id, ID: id, CSR: csr, Issuer: f.signer, Duration: lifetime,
		Pod: request.Pod{Namespace: v.namespace, Name: v.pod.name, UID: v.uid, ServiceAccount: v.account},
	})
	cr.Annotations = map[string]string{"bench.signet-spiffe.io/identity": id.String()}
	cr.Labels[floorLabel] = "true"
	return cr
}

// obtain returns when the certificate is there. The request is deleted in the
// background, as Signet does it.
func (f *floor) obtain(ctx context.Context, v volume) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	id, err := spiffeid.FromString("spiffe://" + trustDomain + "/ns/" + v.namespace + "/sa/" + v.account)
	if err != nil {
		return err
	}
	key, err := pki.GenerateKey(pki.P256)
	if err != nil {
		return err
	}
	csr, err := pki.NewCSR(key, id, "")
	if err != nil {
		return err
	}
	cr := f.request(v, csr, id)
	issued := make(chan *cmapi.CertificateRequest, 1)
	f.mu.Lock()
	f.waiting[nameOf(cr)] = issued
	f.mu.Unlock()
	requests := f.client.CertmanagerV1().CertificateRequests(cr.Namespace)
	if _, err := requests.Create(ctx, cr, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("create the floor's request: %w", err)
	}
	select {
	case <-issued:
	case <-ctx.Done():
		return fmt.Errorf("wait for the floor's request: %w", context.Cause(ctx))
	}
	f.deletes.Go(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
		defer cancel()
		f.fail(requests.Delete(ctx, cr.Name, metav1.DeleteOptions{}))
	})
	return nil
}

// fail remembers the first error of what runs in the background.
func (f *floor) fail(err error) {
	if err == nil || errors.Is(err, context.Canceled) {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failed == nil {
		f.failed = err
	}
}

// rest waits until every request is deleted.
func (f *floor) rest() error {
	f.deletes.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.failed
}
