// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	apiutil "github.com/cert-manager/cert-manager/pkg/api/util"
	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/signet-spiffe/signet/integration/install"
)

// What is in deploy/examples/mtls.yaml.
const (
	exampleFile = "mtls.yaml"
	namespace   = "spiffe-demo"
	server      = "server"
	client      = "client"
	stranger    = "stranger"
)

// places puts the two services on different nodes.
var places = map[string]string{server: "node-1", client: "node-2", stranger: "node-2"}

// show is what is watched: three pods, their identities and their traffic.
type show struct {
	options
	screen    *screen
	installer *install.Installer
	results   *results
}

func (w *show) run(ctx context.Context) error {
	address, err := w.prepare(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, time.Duration(w.rotations+2)*w.life+2*time.Minute,
		errors.New("the rotations did not come in time"))
	defer cancel()
	// Watches begin before there are pods, so that times are those of the events.
	starting, running := errgroup.WithContext(ctx)
	pods := map[string]*podStart{}
	for _, name := range []string{server, client, stranger} {
		start := &podStart{name: name}
		pods[name] = start
		starting.Go(func() error { return w.watchPod(running, start) })
		starting.Go(func() error { return w.watchRequest(running, start) })
	}
	if err := w.deploy(ctx, address); err != nil {
		return err
	}
	if err := starting.Wait(); err != nil {
		return err
	}
	for _, name := range []string{server, client, stranger} {
		w.results.starts = append(w.results.starts, pods[name])
	}
	return w.watchTraffic(ctx, pods)
}

// prepare applies all of the example but its pods and returns the server's
// address. This cluster has no DNS.
func (w *show) prepare(ctx context.Context) (string, error) {
	err := w.installer.Example(ctx, exampleFile, func(o *unstructured.Unstructured) (bool, error) {
		return o.GetKind() != "Deployment", nil
	})
	if err != nil {
		return "", err
	}
	service, err := w.installer.Kube.CoreV1().Services(namespace).Get(ctx, server, metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("find the server's address: %w", err)
	}
	return service.Spec.ClusterIP, nil
}

func (w *show) deploy(ctx context.Context, address string) error {
	return w.installer.Example(ctx, exampleFile, func(o *unstructured.Unstructured) (bool, error) {
		if o.GetKind() != "Deployment" {
			return false, nil
		}
		selector := map[string]string{corev1.LabelHostname: places[o.GetName()]}
		if err := unstructured.SetNestedStringMap(o.Object, selector, "spec", "template", "spec", "nodeSelector"); err != nil {
			return false, err
		}
		if o.GetName() == server {
			return true, nil
		}
		return true, install.SetFlags(o, map[string]string{"--url": "https://" + address + ":8443/"})
	})
}

// podStart is how one pod came to be. Its times are of events as they arrived.
type podStart struct {
	name string

	mu      sync.Mutex
	pod     *corev1.Pod
	created time.Time
	issued  time.Time
	ready   time.Time
}

func (p *podStart) update(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

func (w *show) watchPod(ctx context.Context, start *podStart) error {
	pod, err := install.Await(ctx, install.Selection{
		Client: w.installer.Kube.CoreV1().RESTClient(), Resource: "pods", Namespace: namespace,
		What: "pod of " + start.name + " to be ready",
	}, func(pod *corev1.Pod, _ bool) error {
		if pod.Labels["app"] != start.name {
			return errors.New("there is no such pod")
		}
		start.update(func() {
			if start.created.IsZero() {
				start.created = time.Now()
			}
			start.pod = pod
		})
		if install.Ready(pod) {
			return nil
		}
		return fmt.Errorf("it is %s", pod.Status.Phase)
	})
	if err != nil {
		return w.explain(ctx, err, start)
	}
	start.update(func() { start.ready = time.Now() })
	w.screen.say(green, "pod", "%s is ready on %s, %s after it was created", w.screen.paint(bold, start.name), pod.Spec.NodeName, short(start.ready.Sub(start.created)))
	return nil
}

// explain adds how the pod is to an error.
func (w *show) explain(ctx context.Context, err error, start *podStart) error {
	if start.pod == nil || errors.Is(ctx.Err(), context.Canceled) {
		return err
	}
	reading, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return fmt.Errorf("%w\n%s", err, w.installer.Describe(reading, start.pod))
}

// watchRequest notes when cert-manager has signed the pod's first SVID.
func (w *show) watchRequest(ctx context.Context, start *podStart) error {
	_, err := install.Await(ctx, install.Selection{
		Client: w.installer.CertManager.CertmanagerV1().RESTClient(), Resource: "certificaterequests", Namespace: namespace,
		What: "the SVID of " + start.name + " to be issued",
	}, func(cr *cmapi.CertificateRequest, _ bool) error {
		ready := apiutil.CertificateRequestHasCondition(cr, cmapi.CertificateRequestCondition{
			Type: cmapi.CertificateRequestConditionReady, Status: cmmeta.ConditionTrue,
		})
		if !ready || !strings.HasPrefix(cr.Name, start.name+"-") {
			return errors.New("it is not issued")
		}
		return nil
	})
	if err != nil {
		return err
	}
	start.update(func() { start.issued = time.Now() })
	return nil
}

// line is a line of the sample's log.
type line struct {
	Event      string
	OwnID      string  `json:"own_id"`
	OwnSerial  string  `json:"own_serial"`
	PeerID     string  `json:"peer_id"`
	PeerSerial string  `json:"peer_serial"`
	Millis     float64 `json:"ms"`
	Error      string
}

// watchTraffic follows the client's log until both sides have been renewed as
// often as was asked for, and the stranger's beside it.
func (w *show) watchTraffic(ctx context.Context, pods map[string]*podStart) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group, watching := errgroup.WithContext(ctx)
	group.Go(func() error {
		err := w.follow(watching, pods[stranger].pod, w.onStranger)
		if ctx.Err() != nil {
			return nil // the client's traffic has been seen to its end
		}
		return err
	})
	group.Go(func() error {
		defer cancel()
		return w.follow(watching, pods[client].pod, w.onClient)
	})
	return group.Wait()
}

// follow reads a pod's log as it is written until f returns true.
func (w *show) follow(ctx context.Context, pod *corev1.Pod, f func(line) (done bool)) error {
	stream, err := w.installer.Kube.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, &corev1.PodLogOptions{Follow: true}).Stream(ctx)
	if err != nil {
		return fmt.Errorf("read the log of %s: %w", pod.Name, err)
	}
	defer stream.Close()
	lines := bufio.NewScanner(stream)
	for lines.Scan() {
		var l line
		if json.Unmarshal(lines.Bytes(), &l) == nil && f(l) {
			return nil
		}
	}
	err = lines.Err()
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	return fmt.Errorf("log of %s: %w", pod.Name, err)
}

func (w *show) onClient(l line) (done bool) {
	r := w.results
	if l.Event != "request" {
		r.failed++
		w.screen.say(red, "failed", "%s: %s", l.Event, l.Error)
		return false
	}
	r.requests++
	if r.requests == 1 {
		r.firstRequest = time.Since(w.screen.began)
		w.screen.say(green, "mTLS", "%s %s → %s %s", l.OwnID, w.serial(l.OwnSerial), l.PeerID, w.serial(l.PeerSerial))
		w.screen.say(grey, "", "one client, never restarted; SVIDs live %s, so the next ones are due in about %s", w.life, (w.life * 2 / 3).Round(time.Second))
	}
	r.handshakes = append(r.handshakes, l.Millis)
	w.rotation(&r.clientSerials, l.OwnSerial, "client, by its files")
	w.rotation(&r.serverSerials, l.PeerSerial, "server, by its socket")
	w.screen.now("          %d requests over mTLS, %d failed; renewed: client %d, server %d of %d",
		r.requests, r.failed, len(r.clientSerials)-1, len(r.serverSerials)-1, w.rotations)
	return len(r.clientSerials) > w.rotations && len(r.serverSerials) > w.rotations
}

// rotation notes a serial and says when it has changed.
func (w *show) rotation(serials *[]string, serial, whose string) {
	if n := len(*serials); n > 0 {
		last := (*serials)[n-1]
		if last == serial {
			return
		}
		w.screen.say(yellow, "rotation", "%s: %s → %s after %d requests, %d failed",
			whose, w.serial(last), w.serial(serial), w.results.requests, w.results.failed)
	}
	*serials = append(*serials, serial)
}

func (w *show) onStranger(l line) (done bool) {
	r := w.results
	switch l.Event {
	case "refused":
		r.refused++
		if r.refused == 1 {
			w.screen.say(red, "refused", "the server turns away spiffe://cluster.local/ns/%s/sa/%s, whose SVID is as good as the client's: %s", namespace, stranger, reason(l.Error))
		}
	case "request":
		r.admitted++
		w.screen.say(red, "admitted", "the stranger got an answer from %s", l.PeerID)
	}
	return false
}

// reason is the end of an error, where the cause is.
func reason(err string) string {
	if at := strings.Index(err, "remote error: "); at >= 0 {
		return err[at:]
	}
	return err
}

// serial shortens a serial number for the eye.
func (w *show) serial(serial string) string {
	return w.screen.paint(bold, serial[:min(8, len(serial))])
}

func short(d time.Duration) string {
	if d < time.Second {
		return d.Round(time.Millisecond).String()
	}
	return d.Round(10 * time.Millisecond).String()
}
