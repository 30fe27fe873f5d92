// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package certmanager

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"github.com/cert-manager/cert-manager/pkg/client/clientset/versioned"
	cmclient "github.com/cert-manager/cert-manager/pkg/client/clientset/versioned/typed/certmanager/v1"
	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/signet-spiffe/signet/agent/issue"
	"github.com/signet-spiffe/signet/internal/failpoint"
	"github.com/signet-spiffe/signet/internal/request"
)

const (
	// createTimeout bounds one POST. The API server itself gives up on a
	// webhook after at most 30 s.
	createTimeout = 45 * time.Second
	// stopGrace bounds what Run does after it was told to stop.
	stopGrace = 5 * time.Second
)

// Options configure an Issuer.
type Options struct {
	// Client is the agent's own. See NewClient.
	Client versioned.Interface
	// RESTConfig says where the API server is and whom to trust there, for
	// requests in a pod's name. Needed for requester "pod" only. Credentials in
	// it are not used.
	RESTConfig *rest.Config
	// WrapTransport, if not nil, is put around the transport of requests in a
	// pod's name, to count them. RESTConfig's own is not used for these, since it
	// may add credentials.
	WrapTransport func(http.RoundTripper) http.RoundTripper
	// Driver and Node name this agent: its requests are labelled with both.
	Driver, Node string
	// IssuerRef says who is to sign. It is asked for each request. Where that is
	// not known yet it may wait for a while, not beyond the end of ctx, and tells
	// report in plain words what it waits for.
	IssuerRef func(ctx context.Context, report func(what string)) (cmmeta.IssuerReference, error)
	// Requester says whose credentials create the requests.
	Requester request.Requester
	// Annotations are added to every request.
	Annotations map[string]string
	// Retention is how many finished requests of each volume, the newest, are
	// left undeleted for audit. They go with their pod.
	Retention int
	// Log and Registerer may be nil.
	Log        *slog.Logger
	Registerer prometheus.Registerer
}

// StaticIssuer is an Options.IssuerRef that never changes.
func StaticIssuer(name, kind, group string) func(context.Context, func(string)) (cmmeta.IssuerReference, error) {
	ref := cmmeta.IssuerReference{Name: name, Kind: kind, Group: group}
	return func(context.Context, func(string)) (cmmeta.IssuerReference, error) { return ref, nil }
}

func (o *Options) validate() error {
	switch {
	case o.Client == nil:
		return errors.New("no client")
	case o.Driver == "" || o.Node == "":
		return errors.New("driver and node name are needed to tell this agent's requests from others'")
	case o.Retention < 0:
		return fmt.Errorf("retention of %d requests", o.Retention)
	case o.IssuerRef == nil:
		return errors.New("no issuer reference")
	case o.Requester == request.RequesterPod && o.RESTConfig == nil:
		return errors.New("requester \"pod\" needs a REST configuration")
	}
	_, err := request.ParseRequester(string(o.Requester))
	return err
}

// Issuer obtains certificates by CertificateRequest. Run must be running for
// Issue to see results.
type Issuer struct {
	options Options
	pods    *podClients // nil unless requester is "pod"
	log     *slog.Logger
	metrics *metrics

	board  *board
	tasks  *tasks
	synced atomic.Bool
	// lastCall is how the newest list or watch call began.
	lastCall atomic.Pointer[error]
	// heard is when a call last began well, or the first failed after one that did, as
	// Unix time in nanoseconds.
	heard atomic.Int64
	trash *trash
	// life ends, with issue.ErrStopping as cause, when Run is told to stop.
	life context.Context
	stop context.CancelCauseFunc
}

var (
	_ issue.Issuer    = (*Issuer)(nil)
	_ issue.Forgetter = (*Issuer)(nil)
)

// New makes an Issuer. It does no I/O.
func New(o Options) (*Issuer, error) {
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("cert-manager issuer: %w", err)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	i := &Issuer{
		options: o,
		log:     o.Log,
		board:   newBoard(o.Retention),
		tasks:   newTasks(),
	}
	i.life, i.stop = context.WithCancelCause(context.Background())
	var err error
	if i.metrics, err = newMetrics(o.Registerer, i.Synced); err != nil {
		return nil, fmt.Errorf("cert-manager issuer: %w", err)
	}
	i.trash = newTrash(o.Client, o.Log, i.metrics)
	if o.Requester == request.RequesterPod {
		if i.pods, err = newPodClients(o.RESTConfig, o.WrapTransport); err != nil {
			return nil, fmt.Errorf("cert-manager issuer: %w", err)
		}
	}
	return i, nil
}

// Synced says whether the API server has listed this agent's requests at least
// once since the start. It never becomes false again: a watch that drops is
// resumed without the caller's help.
func (i *Issuer) Synced() bool { return i.synced.Load() }

// Run watches this agent's requests and deletes those no longer needed, until
// ctx ends. An API server that cannot be reached is tried again and again. After
// ctx has ended, attempts that are still waiting are cut short and their requests
// deleted, for up to five seconds, but for those that the next agent can resume.
// Call it once.
func (i *Issuer) Run(ctx context.Context) {
	var watching sync.WaitGroup
	watching.Go(func() { i.watch(ctx) })
	// Deleting goes on for a moment after ctx has ended.
	deleting, giveUp := context.WithCancel(context.WithoutCancel(ctx))
	defer giveUp()
	deleted := i.trash.run(deleting)

	<-ctx.Done()
	grace := time.AfterFunc(stopGrace, giveUp)
	defer grace.Stop()
	i.stop(fmt.Errorf("%w: %w", issue.ErrUnavailable, issue.ErrStopping))
	select {
	case <-i.tasks.close():
	case <-deleting.Done():
	}
	i.trash.close()
	<-deleted
	watching.Wait()
}

// Issue implements issue.Issuer. When ctx ends before the result the request is
// deleted, in the background, even if the create is still under way. When the
// agent ends, a request that was kept is left to the next one.
func (i *Issuer) Issue(ctx context.Context, r issue.IssueRequest) (issue.Issued, error) {
	if !i.tasks.begin() {
		return issue.Issued{}, fmt.Errorf("%w: %w", issue.ErrUnavailable, issue.ErrStopping)
	}
	defer i.tasks.end()
	ctx, cancel := i.untilStopping(ctx)
	defer cancel()

	if r.Resume != "" {
		finish := i.metrics.resume()
		issued, err := i.resume(ctx, r)
		finish(err)
		return issued, err
	}
	finish := i.metrics.begin()
	issued, err := i.issue(ctx, r)
	finish(err)
	return issued, err
}

// untilStopping ends ctx when the agent stops as well.
func (i *Issuer) untilStopping(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	unhook := context.AfterFunc(i.life, func() { cancel(context.Cause(i.life)) })
	return ctx, func() { unhook(); cancel(nil) }
}

func (i *Issuer) issue(ctx context.Context, r issue.IssueRequest) (issue.Issued, error) {
	cr, err := i.newRequest(ctx, r)
	if err != nil {
		return issue.Issued{}, err
	}
	client, err := i.clientFor(r)
	if err != nil {
		return issue.Issued{}, fmt.Errorf("create CertificateRequest in namespace %s: %w", r.Pod.Namespace, err)
	}
	kept := r.Sending != nil && r.Sending(issue.Sent{Request: nameOf(cr).String(), Issuer: request.IssuerName(cr.Spec.IssuerRef)})
	if ctx.Err() != nil {
		return issue.Issued{}, fmt.Errorf("withdrawn before CertificateRequest %s was sent: %w", nameOf(cr), context.Cause(ctx))
	}
	w, left := i.board.expect(nameOf(cr), r.Volume)
	w.kept = kept
	i.trash.add(left...)
	if err := i.create(ctx, client, w, cr, r); err != nil {
		return issue.Issued{}, err
	}
	return i.await(ctx, w, cr.Spec.IssuerRef, r)
}

func (i *Issuer) newRequest(ctx context.Context, r issue.IssueRequest) (*cmapi.CertificateRequest, error) {
	signer, err := i.options.IssuerRef(ctx, r.Report)
	if ctx.Err() != nil {
		return nil, fmt.Errorf("withdrawn while finding out which issuer to ask: %w", context.Cause(ctx))
	}
	if err != nil {
		return nil, fmt.Errorf("%w: find out which issuer to ask: %w", issue.ErrUnavailable, err)
	}
	return request.New(request.Spec{
		Driver:      i.options.Driver,
		Node:        i.options.Node,
		VolumeID:    r.Volume,
		Pod:         request.Pod(r.Pod),
		ID:          r.ID,
		CSR:         r.CSR,
		Issuer:      signer,
		Duration:    r.Duration,
		Annotations: i.options.Annotations,
	}), nil
}

func (i *Issuer) clientFor(r issue.IssueRequest) (cmclient.CertificateRequestsGetter, error) {
	if i.options.Requester == request.RequesterPod {
		return i.pods.with(r.Token)
	}
	return i.options.Client.CertmanagerV1(), nil
}

// create sends the request. On error the attempt is off the board.
func (i *Issuer) create(ctx context.Context, client cmclient.CertificateRequestsGetter, w *waiter, cr *cmapi.CertificateRequest, r issue.IssueRequest) error {
	r.Report(fmt.Sprintf("creating CertificateRequest %s", w.name))
	type answer struct {
		made *cmapi.CertificateRequest
		err  error
	}
	answers := make(chan answer, 1)
	// The POST outlives ctx: cut off half-way it might still make the object,
	// after the delete that was to undo it.
	go func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), createTimeout)
		defer cancel()
		failpoint.Here("request/before-create")
		made, err := client.CertificateRequests(cr.Namespace).Create(ctx, cr, metav1.CreateOptions{})
		failpoint.Here("request/created")
		answers <- answer{made, err}
	}()
	undo := func(a answer) {
		i.board.drop(w)
		switch {
		case a.err == nil:
			i.trash.add(refOf(a.made))
		case mayExist(a.err):
			i.trash.add(ref{NamespacedName: w.name})
		}
	}
	select {
	case a := <-answers:
		if a.err != nil {
			undo(a)
			return createError(a.err, w.name, i.options.Requester, r.Pod.ServiceAccount)
		}
		i.board.created(w, a.made.UID, a.made.ResourceVersion)
		i.log.Debug("CertificateRequest created", "certificate_request", w.name.String(),
			"pod", r.Pod.Name, "namespace", r.Pod.Namespace, "uid", r.Pod.UID, "volume", r.Volume, "spiffe_id", r.ID.String())
		return nil
	case <-ctx.Done():
		leaves := w.leaves(ctx)
		i.tasks.fork()
		go func() {
			defer i.tasks.end()
			if a := <-answers; !leaves {
				undo(a)
			}
		}()
		return fmt.Errorf("withdrawn while creating CertificateRequest %s: %w", w.name, context.Cause(ctx))
	}
}

// await waits for the watch to show an end. The attempt is off the board when
// it returns, unless it leaves its request to the next agent.
func (i *Issuer) await(ctx context.Context, w *waiter, signer cmmeta.IssuerReference, r issue.IssueRequest) (issue.Issued, error) {
	var said string
	for {
		v := i.board.look(w)
		if v.phase.final() {
			return i.conclude(w, v, signer, r)
		}
		if now := waitingFor(v, w, signer); now != said {
			said = now
			r.Report(now)
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			if w.leaves(ctx) {
				return issue.Issued{}, fmt.Errorf("left to the next agent while %s: %w", said, context.Cause(ctx))
			}
			i.withdraw(w)
			return issue.Issued{}, fmt.Errorf("withdrawn while %s: %w", said, context.Cause(ctx))
		}
	}
}

// withdraw takes an attempt off the board and has its request deleted. One that
// nobody has seen yet is stale in the list to come.
func (i *Issuer) withdraw(w *waiter) {
	i.board.drop(w)
	if r, ok := i.board.identify(w); ok {
		i.trash.add(r)
	}
}

func waitingFor(v verdict, w *waiter, signer cmmeta.IssuerReference) string {
	if v.phase != approved {
		return fmt.Sprintf("waiting for approval of CertificateRequest %s", w.name)
	}
	who := "the issuer" // Of a request that was resumed.
	if signer.Name != "" {
		who = signer.Kind + " " + signer.Name
	}
	s := fmt.Sprintf("waiting for %s to sign CertificateRequest %s", who, w.name)
	if v.reason == cmapi.CertificateRequestReasonPending && v.message != "" {
		s += ": " + issue.Quote(v.message)
	}
	return s
}

// conclude turns a final verdict into the result of the attempt.
func (i *Issuer) conclude(w *waiter, v verdict, signer cmmeta.IssuerReference, r issue.IssueRequest) (issue.Issued, error) {
	switch v.phase {
	case issued:
		failpoint.Here("request/issued")
		i.trash.add(i.board.keep(w)...)
		result := issue.Issued{Chain: v.chain, CA: v.ca, Request: w.name.String(), Done: i.doneWith(w, r.Volume)}
		if signer.Name != "" {
			result.Issuer = request.IssuerName(signer)
		}
		return result, nil
	case denied:
		i.trash.add(i.board.keep(w)...)
		return issue.Issued{}, fmt.Errorf("CertificateRequest %s: %w by the approver: %s", w.name, issue.ErrDenied, words(v))
	case failed:
		i.trash.add(i.board.keep(w)...)
		return issue.Issued{}, fmt.Errorf("CertificateRequest %s: %w: %s", w.name, issue.ErrFailed, words(v))
	default:
		// Out of our sight is not yet deleted: its labels may have been changed.
		i.withdraw(w)
		if _, seen := i.board.identify(w); !seen {
			return issue.Issued{}, fmt.Errorf("CertificateRequest %s of the agent before was deleted meanwhile: %w", w.name, issue.ErrGone)
		}
		return issue.Issued{}, fmt.Errorf("CertificateRequest %s was deleted while it was pending: %w", w.name, issue.ErrUnavailable)
	}
}

// words are the condition's own, reason first.
func words(v verdict) string {
	reason, message := issue.Quote(v.reason), issue.Quote(v.message)
	switch {
	case reason == "" && message == "":
		return "no reason was given"
	case reason == "":
		return message
	case message == "":
		return reason
	}
	return reason + ": " + message
}

// doneWith deletes the request, or those that are too old where requests are
// retained, once. A first failure is not the caller's to wait for: the delete is
// tried again in the background.
func (i *Issuer) doneWith(w *waiter, volume string) func(context.Context) {
	var once sync.Once
	r, _ := i.board.identify(w)
	return func(ctx context.Context) {
		once.Do(func() { i.putAway(ctx, volume, r) })
	}
}

// putAway deletes what is no more of use once r is done with.
func (i *Issuer) putAway(ctx context.Context, volume string, r ref) {
	failpoint.Here("request/before-delete")
	for _, old := range i.board.done(volume, r) {
		if err := i.trash.remove(ctx, old); err != nil {
			i.trash.add(old)
		}
	}
	failpoint.Here("request/deleted")
	i.board.release(volume, r)
}

// Forget implements issue.Forgetter.
func (i *Issuer) Forget(volume string) { i.trash.add(i.board.forget(volume)...) }
