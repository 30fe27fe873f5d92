// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package podevents

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/flowcontrol"

	"github.com/signet-spiffe/signet/agent/workload"
)

const (
	// The budget of all volumes of a node for what went wrong: a node's worth of
	// pods at once, then some every second. kubelet's own Events have five times
	// that.
	perSecond = 10
	burst     = 110
	// The budget for good news, which can wait: while a node's pods come all at
	// once, an Event for each would cost the API server a fifth of what the SVIDs
	// themselves cost it.
	newsPerSecond = 2
	newsBurst     = 10
	// maxQueued bounds what waits for its budget or the API server, of either.
	maxQueued = 512
	// sendTimeout bounds one call to the API server.
	sendTimeout = 5 * time.Second
	// component is the source of the Events.
	component = "signet-agent"
)

// Sink is where Events go. Errors are the caller's to count.
type Sink interface {
	// Send creates the Event, or, if its count says that it is a repetition,
	// brings count, time and message of the existing one up to date.
	Send(ctx context.Context, event *corev1.Event) error
}

// Options are what a Recorder is made of. All are needed.
type Options struct {
	Sink Sink
	// Node is the name of this node.
	Node       string
	Log        *slog.Logger
	Registerer prometheus.Registerer
}

// Recorder makes Events of notifications. Safe for concurrent use.
type Recorder struct {
	sink  Sink
	node  string
	log   *slog.Logger
	total *prometheus.CounterVec
	// Bad news do not wait behind good ones.
	warnings, news lane

	mu     sync.Mutex // Guards ledger; never held during I/O.
	ledger *ledger
}

var _ workload.Notifier = (*Recorder)(nil)

// lane is Events that are sent one after the other within one budget.
type lane struct {
	budget flowcontrol.RateLimiter
	queue  chan *corev1.Event
}

func newLane(perSecond float32, burst int) lane {
	return lane{flowcontrol.NewTokenBucketRateLimiter(perSecond, burst), make(chan *corev1.Event, maxQueued)}
}

// New makes a Recorder. Nothing is sent until Run is called.
func New(o Options) (*Recorder, error) {
	r := &Recorder{
		sink: o.Sink, node: o.Node, log: o.Log, ledger: newLedger(),
		warnings: newLane(perSecond, burst), news: newLane(newsPerSecond, newsBurst),
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "signet_agent_pod_events_total",
			Help: "Occurrences worth an Event on a pod, by reason and result: sent, held (counted in the volume's next Event), dropped (too many waited), failed (the API server did not take it).",
		}, []string{"reason", "result"}),
	}
	if err := o.Registerer.Register(r.total); err != nil {
		return nil, fmt.Errorf("register metrics of pods' events: %w", err)
	}
	for _, reason := range reasons {
		for _, result := range results {
			r.total.WithLabelValues(reason, result)
		}
	}
	return r, nil
}

const (
	resultSent    = "sent"
	resultHeld    = "held"
	resultDropped = "dropped"
	resultFailed  = "failed"
)

var results = []string{resultSent, resultHeld, resultDropped, resultFailed}

// Notify implements workload.Notifier.
func (r *Recorder) Notify(n workload.Notification) {
	now := time.Now()
	w := describe(n, now)
	if w.reason == "" {
		return // A notice that this package has no words for.
	}
	k := key{n.Volume, w.reason}
	s, send := r.enter(k, now, func() string { return name(n, k, now) })
	if !send {
		r.total.WithLabelValues(w.reason, resultHeld).Inc()
		return
	}
	to := r.warnings
	if w.kind == corev1.EventTypeNormal {
		to = r.news
	}
	select {
	case to.queue <- r.event(n, w, s):
	default:
		r.total.WithLabelValues(w.reason, resultDropped).Inc()
	}
}

func (r *Recorder) enter(k key, now time.Time, name func() string) (series, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ledger.enter(k, now, name)
}

// maxNamePrefix leaves room for the suffix in the 253 bytes of an object name.
const maxNamePrefix = 200

// name is unique to the series. What is told once in the life of a volume, or of
// an SVID, gets the same name from every life of the agent, so that a restart does
// not tell it again.
func name(n workload.Notification, k key, now time.Time) string {
	var at time.Time
	switch n.Notice {
	case workload.NoticeFailed:
		at = now
	case workload.NoticeOverdue, workload.NoticeExpired:
		at = n.NotAfter
	}
	pod := n.Pod.Name
	if len(pod) > maxNamePrefix {
		pod = strings.TrimRight(pod[:maxNamePrefix], "-.")
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %s %s %d", n.Pod.UID, k.volume, k.reason, at.UnixMilli()))
	return pod + "." + hex.EncodeToString(sum[:8])
}

func (r *Recorder) event(n workload.Notification, w words, s series) *corev1.Event {
	return &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: n.Pod.Namespace, Name: s.name},
		InvolvedObject: corev1.ObjectReference{
			APIVersion: "v1", Kind: "Pod", Namespace: n.Pod.Namespace, Name: n.Pod.Name, UID: types.UID(n.Pod.UID),
		},
		Type: w.kind, Reason: w.reason, Message: w.message, Count: s.count,
		FirstTimestamp: metav1.NewTime(s.first), LastTimestamp: metav1.NewTime(s.last),
		Source:              corev1.EventSource{Component: component, Host: r.node},
		ReportingController: component, ReportingInstance: r.node,
	}
}

// Run sends until ctx ends. What waits then is lost.
func (r *Recorder) Run(ctx context.Context) {
	var lanes sync.WaitGroup
	for _, l := range []lane{r.warnings, r.news} {
		lanes.Go(func() { r.drive(ctx, l) })
	}
	lanes.Wait()
}

func (r *Recorder) drive(ctx context.Context, l lane) {
	for {
		select {
		case <-ctx.Done():
			return
		case event := <-l.queue:
			if l.budget.Wait(ctx) != nil {
				return
			}
			r.send(ctx, event)
		}
	}
}

func (r *Recorder) send(ctx context.Context, event *corev1.Event) {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	err := r.sink.Send(ctx, event)
	switch {
	case err == nil:
		r.total.WithLabelValues(event.Reason, resultSent).Inc()
	case !errors.Is(err, context.Canceled):
		r.total.WithLabelValues(event.Reason, resultFailed).Inc()
		r.log.Debug("an Event on a pod was lost", "namespace", event.Namespace, "pod", event.InvolvedObject.Name,
			"reason", event.Reason, "error", err)
	}
}
