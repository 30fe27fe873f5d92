// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package certmanager

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/flowcontrol"

	"github.com/signet-spiffe/signet/agent/issue"
	"github.com/signet-spiffe/signet/internal/request"
)

// clientCertificate is a key pair as a kubeconfig may hold one.
func clientCertificate(t *testing.T) (certPEM, keyPEM []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

// Requester "pod": every create carries exactly the pod's own token and nothing
// of the agent's, whatever credentials the agent has. Watches and deletes are
// the agent's.
func TestRequestsInThePodsName(t *testing.T) {
	cert, key := clientCertificate(t)
	for name, arm := range map[string]func(*rest.Config){
		"token":              func(*rest.Config) {},
		"client certificate": func(c *rest.Config) { c.BearerToken = ""; c.CertData, c.KeyData = cert, key },
		"password":           func(c *rest.Config) { c.BearerToken = ""; c.Username, c.Password = "agent", "pw" },
		"impersonation":      func(c *rest.Config) { c.Impersonate.UserName = "somebody" },
		"wrapped transport": func(c *rest.Config) {
			c.Wrap(func(rt http.RoundTripper) http.RoundTripper { return adding{rt} })
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newAPIServer(t)
			config := s.config()
			arm(config)
			var counted atomic.Int64
			f := start(t, s, func(o *Options) {
				o.Requester = request.RequesterPod
				o.RESTConfig = config
				o.WrapTransport = func(rt http.RoundTripper) http.RoundTripper {
					return roundTripper(func(r *http.Request) (*http.Response, error) { counted.Add(1); return rt.RoundTrip(r) })
				}
				client, err := NewClient(config)
				if err != nil {
					t.Fatal(err)
				}
				o.Client = client
			})
			s.with(func() {
				s.onCreate = func(cr *cmapi.CertificateRequest) *metav1.Status {
					s.put(cr)
					go s.update(nameOf(cr), sign)
					return nil
				}
			})
			const pods = 20
			var all sync.WaitGroup
			for n := range pods {
				all.Go(func() {
					r := wish(fmt.Sprintf("v%d", n))
					r.Pod.Namespace = fmt.Sprintf("ns-%d", n)
					r.Token = issue.NewToken(fmt.Sprintf("pod-token-%d", n))
					res, err := f.Issue(t.Context(), r)
					if err != nil {
						t.Error(err)
						return
					}
					res.Done(t.Context())
				})
			}
			all.Wait()
			s.awaitEmpty(t)

			posts := 0
			for _, r := range s.seen() {
				if r.method != http.MethodPost {
					if strings.Contains(r.authorization, "pod-token") {
						t.Errorf("%s %s uses a pod's token", r.method, r.path)
					}
					continue
				}
				posts++
				namespace := strings.Split(r.path, "/")[5]
				want := "Bearer pod-token-" + strings.TrimPrefix(namespace, "ns-")
				if r.authorization != want {
					t.Errorf("create in %s is authorized by %q, want %q", namespace, r.authorization, want)
				}
				if r.clientCert || r.impersonate != "" {
					t.Errorf("create in %s carries the agent's client certificate (%t) or impersonates %q", namespace, r.clientCert, r.impersonate)
				}
			}
			if posts != pods || counted.Load() != pods {
				t.Errorf("%d creates, %d counted by the wrapper, want %d", posts, counted.Load(), pods)
			}
			if name == "client certificate" && !s.anyClientCert() {
				t.Error("the agent's client certificate was never seen: the test proves nothing")
			}
		})
	}
}

func (s *apiServer) anyClientCert() bool {
	for _, r := range s.seen() {
		if r.clientCert {
			return true
		}
	}
	return false
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// adding authorizes what is not authorized yet, as exec plugins and cloud
// providers' wrappers do.
type adding struct{ http.RoundTripper }

func (a adding) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer agent-by-wrapper")
	return a.RoundTripper.RoundTrip(r)
}

// Without a token nothing is asked in anybody's name.
func TestNoTokenNoRequest(t *testing.T) {
	s := newAPIServer(t)
	f := start(t, s, func(o *Options) { o.Requester = request.RequesterPod })
	_, err := f.Issue(t.Context(), wish("v1"))
	wantError(t, err, issue.ErrNoToken, "tokenRequests", "shop")
	if n := s.count(http.MethodPost); n != 0 {
		t.Errorf("%d creates without a token", n)
	}
}

// Requester "agent" never uses a pod's token, even if kubelet sent one.
func TestAgentIgnoresPodToken(t *testing.T) {
	s := newAPIServer(t)
	f := start(t, s, nil)
	r := wish("v1")
	r.Token = issue.NewToken("pod-token")
	got := f.ask(t.Context(), r)
	s.update(s.one(t), sign)
	if res := await(t, "the result", got); res.err != nil {
		t.Fatal(res.err)
	}
	for _, r := range s.seen() {
		if r.authorization != "Bearer "+agentToken {
			t.Errorf("%s %s is authorized by %q", r.method, r.path, r.authorization)
		}
	}
}

func TestClientsAreNotLimited(t *testing.T) {
	base := &rest.Config{Host: "https://127.0.0.1:1", QPS: 3, Burst: 4, RateLimiter: flowcontrol.NewTokenBucketRateLimiter(1, 1)}
	client, err := NewClient(base)
	if err != nil {
		t.Fatal(err)
	}
	if l := client.CertmanagerV1().RESTClient().GetRateLimiter(); l != nil {
		t.Errorf("the agent's client is limited: %v", l)
	}
	pods, err := newPodClients(base, nil)
	if err != nil {
		t.Fatal(err)
	}
	if pods.config.RateLimiter != nil || pods.config.QPS >= 0 {
		t.Error("pods' clients are limited")
	}
	if base.QPS != 3 || base.RateLimiter == nil {
		t.Error("the caller's configuration was changed")
	}
}
