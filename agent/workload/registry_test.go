// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/signet-spiffe/signet/agent/issue"
	"github.com/signet-spiffe/signet/internal/conformance"
	"github.com/signet-spiffe/signet/internal/pki"
)

var (
	td      = spiffeid.RequireTrustDomainFromString("example.org")
	cartPod = issue.Pod{Namespace: "shop", Name: "cart-0", UID: "u-0", ServiceAccount: "cart"}
)

// scriptedIssuer answers each request with what the test puts in, or signs.
type scriptedIssuer struct {
	// edit, if not nil, changes what is signed. Set it before the first request.
	edit func(*x509.Certificate)

	ca   *x509.Certificate
	key  pki.PrivateKey
	life time.Duration
	name string // Of the issuer, as it names itself.

	mu       sync.Mutex
	requests []issue.IssueRequest
	running  int
	most     int
	signed   int
	finished int
	answers  []func(ctx context.Context, r issue.IssueRequest) (issue.Issued, error) // Used up first.
}

func newIssuer(t testing.TB, life time.Duration) *scriptedIssuer {
	t.Helper()
	key, err := pki.GenerateKey(pki.P256)
	if err != nil {
		t.Fatal(err)
	}
	i := &scriptedIssuer{key: key, life: life}
	i.ca = i.certificate(t, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour),
	}, key.Public())
	return i
}

func (i *scriptedIssuer) certificate(t testing.TB, template *x509.Certificate, public crypto.PublicKey) *x509.Certificate {
	t.Helper()
	parent := i.ca
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, i.key.Signer())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func (i *scriptedIssuer) bundle() *x509bundle.Bundle {
	return x509bundle.FromX509Authorities(td, []*x509.Certificate{i.ca})
}

func (i *scriptedIssuer) then(answer func(ctx context.Context, r issue.IssueRequest) (issue.Issued, error)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.answers = append(i.answers, answer)
}

func (i *scriptedIssuer) fail(err error) {
	i.then(func(context.Context, issue.IssueRequest) (issue.Issued, error) { return issue.Issued{}, err })
}

func (i *scriptedIssuer) Issue(ctx context.Context, r issue.IssueRequest) (issue.Issued, error) {
	i.mu.Lock()
	i.requests = append(i.requests, r)
	i.running++
	i.most = max(i.most, i.running)
	answer := i.sign
	if len(i.answers) > 0 {
		answer, i.answers = i.answers[0], i.answers[1:]
	}
	i.mu.Unlock()
	defer func() { i.mu.Lock(); defer i.mu.Unlock(); i.running-- }()
	return answer(ctx, r)
}

func (i *scriptedIssuer) sign(_ context.Context, r issue.IssueRequest) (issue.Issued, error) {
	block, _ := pem.Decode(r.CSR)
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return issue.Issued{}, err
	}
	i.mu.Lock()
	i.signed++
	serial, ca, key, name := int64(i.signed)+1, i.ca, i.key, i.name
	i.mu.Unlock()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), URIs: csr.URIs, DNSNames: csr.DNSNames, NotBefore: time.Now(), NotAfter: time.Now().Add(i.life),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if i.edit != nil {
		i.edit(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, csr.PublicKey, key.Signer())
	if err != nil {
		return issue.Issued{}, err
	}
	return issue.Issued{
		Chain: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		CA:    pki.MarshalCertificates([]*x509.Certificate{ca}), Request: r.Pod.Namespace + "/request", Issuer: name,
		Done: func(context.Context) { i.mu.Lock(); defer i.mu.Unlock(); i.finished++ },
	}, nil
}

func (i *scriptedIssuer) count() (requests, finished, most int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return len(i.requests), i.finished, i.most
}

// recorder is Volumes that remembers.
type recorder struct {
	mu       sync.Mutex
	calls    []string
	stored   map[string]Content
	pushed   map[string]Content
	storeErr error
	block    chan struct{} // If not nil, Store of volume "slow" waits for it.
}

func newRecorder() *recorder {
	return &recorder{stored: map[string]Content{}, pushed: map[string]Content{}}
}

func (r *recorder) note(call, volume string) {
	r.calls = append(r.calls, call+" "+volume)
}

func (r *recorder) Prepare(v Volume) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.note("prepare", v.ID)
	return nil
}

func (r *recorder) Store(v Volume, c Content) error {
	if v.ID == "slow" && r.block != nil {
		<-r.block
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.note("store", v.ID)
	if r.storeErr != nil {
		return r.storeErr
	}
	r.stored[v.ID] = c
	return nil
}

func (r *recorder) Push(v Volume, c Content) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.note("push", v.ID)
	r.pushed[v.ID] = c
}

func (r *recorder) Remove(id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.note("remove", id)
	delete(r.stored, id)
	delete(r.pushed, id)
	return nil
}

func (r *recorder) serial(id string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, ok := r.stored[id]
	if !ok {
		return ""
	}
	return c.SVID.Chain[0].SerialNumber.String()
}

func (r *recorder) log() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.calls, ", ")
}

// fixedTrust is a bundle that the test may replace.
type fixedTrust struct {
	mu      sync.Mutex
	bundle  *x509bundle.Bundle
	changed chan struct{}
}

func newTrust(b *x509bundle.Bundle) *fixedTrust {
	return &fixedTrust{bundle: b, changed: make(chan struct{})}
}

func (f *fixedTrust) Bundle() (*x509bundle.Bundle, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.bundle, f.changed
}

func (f *fixedTrust) replace(b *x509bundle.Bundle) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bundle = b
	close(f.changed)
	f.changed = make(chan struct{})
}

type world struct {
	*Registry
	issuer  *scriptedIssuer
	volumes *recorder
	trust   *fixedTrust
	metrics *prometheus.Registry
}

// run plays test in a bubble of fake time, with a Registry that runs.
func run(t *testing.T, test func(t *testing.T, w *world)) {
	t.Helper()
	runWith(t, func(*Options, *world) {}, test)
}

// runWith lets edit change the Registry's options first.
func runWith(t *testing.T, edit func(*Options, *world), test func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		issuer := newIssuer(t, time.Minute)
		w := &world{issuer: issuer, volumes: newRecorder(), trust: newTrust(issuer.bundle()), metrics: prometheus.NewRegistry()}
		o := Options{
			Issuer: issuer, Trust: w.trust, Volumes: w.volumes, KeyType: pki.P256, Duration: time.Minute, PublishTimeout: 10 * time.Second,
			ID: func(p issue.Pod) (spiffeid.ID, error) {
				return spiffeid.FromSegments(td, "ns", p.Namespace, "sa", p.ServiceAccount)
			},
			Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Registerer: w.metrics,
		}
		edit(&o, w)
		w.Registry = New(o)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); w.Run(ctx) }()
		test(t, w)
		cancel()
		<-ended
	})
}

func cart(id string) Volume { return Volume{ID: id, Pod: cartPod} }

func TestPublishRenewUnpublish(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		if err := w.Publish(t.Context(), cart("v")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got, want := w.volumes.log(), "prepare v, store v, push v"; got != want {
			t.Errorf("first publish did %q, want %q", got, want)
		}
		first := w.volumes.serial("v")
		time.Sleep(41 * time.Second) // Two thirds of a minute have passed.
		synctest.Wait()
		if w.volumes.serial("v") == first {
			t.Error("not renewed at two thirds of its life")
		}
		requests, finished, _ := w.issuer.count()
		if requests != 2 || finished != 2 {
			t.Errorf("%d requests, %d cleaned up, want 2 of each", requests, finished)
		}
		if n := testutil.ToFloat64(w.Registry.metrics.issuances.WithLabelValues("renewal", "issued")); n != 1 {
			t.Errorf("%v renewals counted, want 1", n)
		}
		if err := w.Unpublish(t.Context(), "v"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if w.volumes.serial("v") != "" || len(w.all()) != 0 || len(w.timers.queue) != 0 {
			t.Error("something is left after unpublish")
		}
		time.Sleep(time.Hour)
		if requests, _, _ := w.issuer.count(); requests != 2 {
			t.Errorf("an unpublished volume was renewed")
		}
	})
}

// Overlapping publishes share one issuance and end after the files exist; more
// publishes of a published volume ask for nothing.
func TestOverlappingPublishes(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		release := make(chan struct{})
		w.issuer.then(func(ctx context.Context, r issue.IssueRequest) (issue.Issued, error) {
			<-release
			return w.issuer.sign(ctx, r)
		})
		results := make(chan error, 10)
		for range 10 {
			go func() { results <- w.Publish(t.Context(), cart("v")) }()
		}
		synctest.Wait()
		select {
		case err := <-results:
			t.Fatalf("a publish ended before there was an SVID: %v", err)
		default:
		}
		close(release)
		for range 10 {
			if err := <-results; err != nil {
				t.Error(err)
			}
			if w.volumes.serial("v") == "" {
				t.Error("a publish ended before the files exist")
			}
		}
		for range 1000 {
			if err := w.Publish(t.Context(), cart("v")); err != nil {
				t.Fatal(err)
			}
		}
		if requests, _, _ := w.issuer.count(); requests != 1 {
			t.Errorf("%d requests, want 1", requests)
		}
	})
}

// kubelet goes away mid-publish and comes back: the same request is resumed.
func TestPublishResumes(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		release := make(chan struct{})
		w.issuer.then(func(ctx context.Context, r issue.IssueRequest) (issue.Issued, error) {
			r.Report("waiting for approval of CertificateRequest shop/x")
			select {
			case <-release:
			case <-ctx.Done():
				return issue.Issued{}, ctx.Err()
			}
			return w.issuer.sign(ctx, r)
		})
		gone, leave := context.WithTimeout(t.Context(), time.Second)
		defer leave()
		if err := w.Publish(gone, cart("v")); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("publish whose caller left: %v", err)
		}
		err := w.Publish(t.Context(), cart("v"))
		if !errors.Is(err, ErrPending) || !strings.Contains(err.Error(), "waiting for approval of CertificateRequest shop/x") {
			t.Fatalf("publish that waited too long: %v, want ErrPending and what it waits for", err)
		}
		close(release)
		if err := w.Publish(t.Context(), cart("v")); err != nil {
			t.Fatal(err)
		}
		if requests, _, _ := w.issuer.count(); requests != 1 {
			t.Errorf("%d requests, want 1", requests)
		}
	})
}

func TestDeniedMountLeavesNothing(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.issuer.fail(fmt.Errorf("%w: wrong duration", issue.ErrDenied))
		err := w.Publish(t.Context(), cart("v"))
		if !errors.Is(err, issue.ErrDenied) || !strings.Contains(err.Error(), "wrong duration") {
			t.Fatalf("%v, want the denial", err)
		}
		synctest.Wait()
		if got, want := w.volumes.log(), "prepare v, remove v"; got != want {
			t.Errorf("did %q, want %q", got, want)
		}
		if len(w.all()) != 0 {
			t.Error("an entry is left")
		}
		if err := w.Publish(t.Context(), cart("v")); err != nil {
			t.Errorf("the next try: %v", err)
		}
	})
}

func TestUnavailableIsRetriedWhileKubeletWaits(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		for range 3 {
			w.issuer.fail(fmt.Errorf("%w: connection refused", issue.ErrUnavailable))
		}
		if err := w.Publish(t.Context(), cart("v")); err != nil {
			t.Fatal(err)
		}
		if requests, _, _ := w.issuer.count(); requests != 4 {
			t.Errorf("%d requests, want 4", requests)
		}
	})
}

// What an issuer must not get away with: each answer is refused, the old SVID
// stays, and the next good answer is taken.
func TestWrongCertificatesAreRefused(t *testing.T) {
	stranger := newIssuer(t, time.Minute)
	wrongs := map[string]func(w *world) func(context.Context, issue.IssueRequest) (issue.Issued, error){
		"garbage": func(*world) func(context.Context, issue.IssueRequest) (issue.Issued, error) {
			return func(context.Context, issue.IssueRequest) (issue.Issued, error) {
				return issue.Issued{Chain: []byte("not PEM")}, nil
			}
		},
		"nothing": func(*world) func(context.Context, issue.IssueRequest) (issue.Issued, error) {
			return func(context.Context, issue.IssueRequest) (issue.Issued, error) { return issue.Issued{}, nil }
		},
		"another authority": func(*world) func(context.Context, issue.IssueRequest) (issue.Issued, error) {
			return stranger.sign
		},
		"another key and name": func(w *world) func(context.Context, issue.IssueRequest) (issue.Issued, error) {
			return func(ctx context.Context, r issue.IssueRequest) (issue.Issued, error) {
				key, err := pki.GenerateKey(pki.P256)
				if err != nil {
					return issue.Issued{}, err
				}
				if r.CSR, err = pki.NewCSR(key, spiffeid.RequireFromString("spiffe://example.org/ns/shop/sa/admin"), ""); err != nil {
					return issue.Issued{}, err
				}
				return w.issuer.sign(ctx, r)
			}
		},
	}
	for name, wrong := range wrongs {
		t.Run(name, func(t *testing.T) {
			run(t, func(t *testing.T, w *world) {
				if err := w.Publish(t.Context(), cart("v")); err != nil {
					t.Fatal(err)
				}
				first := w.volumes.serial("v")
				w.issuer.then(wrong(w))
				release := make(chan struct{})
				w.issuer.then(func(ctx context.Context, r issue.IssueRequest) (issue.Issued, error) {
					<-release
					return w.issuer.sign(ctx, r)
				})
				time.Sleep(45 * time.Second)
				synctest.Wait()
				if w.volumes.serial("v") != first {
					t.Fatal("the wrong certificate was stored")
				}
				if n := testutil.ToFloat64(w.Registry.metrics.issuances.WithLabelValues("renewal", "refused")); n != 1 {
					t.Errorf("%v refusals counted, want 1", n)
				}
				close(release)
				synctest.Wait()
				if w.volumes.serial("v") == first {
					t.Error("the good certificate after it was not stored")
				}
			})
			run(t, func(t *testing.T, w *world) {
				w.issuer.then(wrong(w))
				var broken *pki.RuleError
				if err := w.Publish(t.Context(), cart("v")); !errors.As(err, &broken) {
					t.Errorf("mount: %v, want a RuleError", err)
				}
			})
		})
	}
}

func TestUnpublishDuringIssuance(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		withdrawn := make(chan struct{})
		w.issuer.then(func(ctx context.Context, r issue.IssueRequest) (issue.Issued, error) {
			<-ctx.Done()
			close(withdrawn)
			return issue.Issued{}, ctx.Err()
		})
		result := make(chan error, 1)
		go func() { result <- w.Publish(t.Context(), cart("v")) }()
		synctest.Wait()
		if err := w.Unpublish(t.Context(), "v"); err != nil {
			t.Fatal(err)
		}
		if err := <-result; !errors.Is(err, ErrUnpublished) {
			t.Errorf("the publish ended with %v, want ErrUnpublished", err)
		}
		<-withdrawn
		synctest.Wait()
		if got, want := w.volumes.log(), "prepare v, remove v"; got != want {
			t.Errorf("did %q, want %q", got, want)
		}
		if len(w.all()) != 0 {
			t.Error("an entry is left")
		}
	})
}

// An issuer that answers although it was told to stop: the certificate is not
// stored, and the next attempt of the same volume waits its turn.
func TestLateAnswerIsDropped(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		release := make(chan struct{})
		w.issuer.then(func(ctx context.Context, r issue.IssueRequest) (issue.Issued, error) {
			<-release
			return w.issuer.sign(ctx, r)
		})
		go func() { _ = w.Publish(t.Context(), cart("v")) }()
		synctest.Wait()
		if err := w.Unpublish(t.Context(), "v"); err != nil {
			t.Fatal(err)
		}
		result := make(chan error, 1)
		go func() { result <- w.Publish(t.Context(), cart("v")) }()
		synctest.Wait()
		close(release)
		if err := <-result; err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		requests, finished, most := w.issuer.count()
		if requests != 2 || finished != 2 || most != 1 {
			t.Errorf("%d requests, %d cleaned up, %d at once; want 2, 2, 1", requests, finished, most)
		}
		if got, want := w.volumes.log(), "prepare v, remove v, prepare v, store v, push v"; got != want {
			t.Errorf("did %q, want %q", got, want)
		}
	})
}

func TestBundleChangeReachesAllButTheStuck(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		for _, id := range []string{"a", "slow", "z"} {
			if err := w.Publish(t.Context(), cart(id)); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		w.volumes.mu.Lock()
		w.volumes.block = make(chan struct{})
		w.volumes.mu.Unlock()
		both := x509bundle.FromX509Authorities(td, []*x509.Certificate{w.issuer.ca, newIssuer(t, time.Minute).ca})
		w.trust.replace(both)
		synctest.Wait()
		for id, want := range map[string]bool{"a": true, "slow": false, "z": true} {
			w.volumes.mu.Lock()
			got := w.volumes.pushed[id].Bundle.Equal(both)
			w.volumes.mu.Unlock()
			if got != want {
				t.Errorf("volume %s has the new bundle: %t, want %t", id, got, want)
			}
		}
		close(w.volumes.block)
		synctest.Wait()
		if !w.volumes.pushed["slow"].Bundle.Equal(both) {
			t.Error("the slow volume never got the new bundle")
		}
		before := w.volumes.log()
		w.trust.replace(both.Clone())
		synctest.Wait()
		if w.volumes.log() != before {
			t.Error("an equal bundle was stored again")
		}
	})
}

func TestRestore(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		key, err := pki.GenerateKey(pki.P256)
		if err != nil {
			t.Fatal(err)
		}
		id := spiffeid.RequireFromString("spiffe://example.org/ns/shop/sa/cart")
		leaf := w.issuer.certificate(t, &x509.Certificate{
			SerialNumber: big.NewInt(77), URIs: nil, NotBefore: time.Now().Add(-30 * time.Second), NotAfter: time.Now().Add(30 * time.Second),
		}, key.Public())
		w.Restore(cart("v"), &SVID{ID: id, Chain: []*x509.Certificate{leaf}, Key: key}, nil)
		synctest.Wait()
		if got, want := w.volumes.log(), "prepare v, store v, push v"; got != want {
			t.Errorf("restore did %q, want %q", got, want)
		}
		if err := w.Publish(t.Context(), cart("v")); err != nil {
			t.Fatal(err)
		}
		if requests, _, _ := w.issuer.count(); requests != 0 || w.volumes.serial("v") != "77" {
			t.Errorf("%d requests, serial %s: want none and the old one", requests, w.volumes.serial("v"))
		}
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if w.volumes.serial("v") == "77" {
			t.Error("not renewed on schedule after the restore")
		}
	})
}

func TestPublishOfAnotherPodIsRefused(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		if err := w.Publish(t.Context(), cart("v")); err != nil {
			t.Fatal(err)
		}
		other := cart("v")
		other.Pod.UID = "u-1"
		if err := w.Publish(t.Context(), other); !errors.Is(err, ErrInvalid) {
			t.Errorf("%v, want ErrInvalid", err)
		}
		bad := Volume{ID: "w", Pod: issue.Pod{Namespace: "a/b", ServiceAccount: "c"}}
		if err := w.Publish(t.Context(), bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("%v, want ErrInvalid", err)
		}
	})
}

func TestStoreFailureFailsTheMount(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		full := errors.New("no space left")
		w.volumes.storeErr = full
		if err := w.Publish(t.Context(), cart("v")); !errors.Is(err, full) {
			t.Errorf("%v, want the storage error", err)
		}
		synctest.Wait()
		if got, want := w.volumes.log(), "prepare v, store v, remove v"; got != want {
			t.Errorf("did %q, want %q", got, want)
		}
		if _, finished, _ := w.issuer.count(); finished != 1 {
			t.Error("the request was not cleaned up")
		}
	})
}

// A token comes once and may be needed long after; requests carry the newest.
func TestTokenIsKeptFresh(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		v := cart("v")
		v.Token = issue.NewToken("one")
		if err := w.Publish(t.Context(), v); err != nil {
			t.Fatal(err)
		}
		v.Token = issue.NewToken("two")
		if err := w.Publish(t.Context(), v); err != nil {
			t.Fatal(err)
		}
		time.Sleep(41 * time.Second)
		synctest.Wait()
		var got []string
		for _, r := range w.issuer.requests {
			got = append(got, r.Token.Reveal())
		}
		if strings.Join(got, ",") != "one,two" {
			t.Errorf("requests were made with tokens %q", got)
		}
		// The same token again is no news, however often kubelet sends it.
		for range 50 {
			w.issuer.fail(fmt.Errorf("%w: x", issue.ErrDenied))
		}
		time.Sleep(40 * time.Second)
		synctest.Wait()
		before, _, _ := w.issuer.count()
		for range 20 {
			v.Token = issue.NewToken("two")
			if err := w.Publish(t.Context(), v); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if after, _, _ := w.issuer.count(); after != before {
			t.Errorf("%d attempts for a token that was known", after-before)
		}
	})
}

func TestTimersFireInOrderAndForget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		timers := newTimers()
		fired := make(chan *entry, 10)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); timers.run(ctx, func(e *entry) { fired <- e }) }()
		a, b, c := &entry{}, &entry{}, &entry{}
		start := time.Now()
		timers.set(c, start.Add(3*time.Hour))
		timers.set(a, start.Add(time.Minute))
		timers.set(b, start.Add(2*time.Minute))
		timers.set(a, start.Add(3*time.Minute)) // Put off.
		timers.set(c, start.Add(time.Second))
		timers.unset(c)
		timers.unset(c)
		if e := <-fired; e != b || time.Since(start) != 2*time.Minute {
			t.Errorf("first after %s", time.Since(start))
		}
		if e := <-fired; e != a || time.Since(start) != 3*time.Minute {
			t.Errorf("second after %s", time.Since(start))
		}
		time.Sleep(4 * time.Hour)
		if len(fired) != 0 || len(timers.index) != 0 {
			t.Error("a timer that was unset fired or is still there")
		}
		cancel()
		<-ended
	})
}

// Volumes that were issued in the same moment renew spread over the jitter
// window, a tenth of the lifetime before two thirds of it.
func TestRenewalsAreSpread(t *testing.T) {
	conformance.Proves(t, "W6")
	run(t, func(t *testing.T, w *world) {
		const volumes = 110
		for i := range volumes {
			if err := w.Publish(t.Context(), cart(fmt.Sprintf("v%d", i))); err != nil {
				t.Fatal(err)
			}
		}
		start := time.Now()
		perSecond := map[int]int{}
		done := 0
		for done < volumes {
			time.Sleep(time.Second)
			synctest.Wait()
			requests, _, _ := w.issuer.count()
			second := int(time.Since(start).Seconds())
			if perSecond[second] = requests - volumes - done; requests-volumes > done {
				done = requests - volumes
			}
			if second > 41 {
				t.Fatalf("%d of %d renewed after %d s", done, volumes, second)
			}
		}
		for second, n := range perSecond {
			if n > 0 && (second < 34 || second > 41) {
				t.Errorf("%d renewals in second %d, outside the window", n, second)
			}
			if n > volumes/2 {
				t.Errorf("%d of %d renewals in one second: %v", n, volumes, perSecond)
			}
		}
	})
}
