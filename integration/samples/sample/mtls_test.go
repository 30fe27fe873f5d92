// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// recorder collects printed events and hands them on as they come.
type recorder struct {
	mu     sync.Mutex
	buffer bytes.Buffer
	events chan event
}

func newRecorder() (*recorder, *printer) {
	r := &recorder{events: make(chan event, 1000)}
	return r, &printer{out: r, now: time.Now}
}

func (r *recorder) Write(line []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var e event
	if err := json.Unmarshal(line, &e); err != nil {
		return 0, err
	}
	r.events <- e
	return r.buffer.Write(line)
}

// next returns the next event of a kind.
func (r *recorder) next(t *testing.T, kind string) event {
	t.Helper()
	for {
		select {
		case e := <-r.events:
			if e.Event == kind {
				return e
			}
		case <-time.After(20 * time.Second):
			r.mu.Lock()
			defer r.mu.Unlock()
			t.Fatalf("no event %q in 20 s; there were:\n%s", kind, r.buffer.String())
		}
	}
}

// startServer serves until the test ends.
func startServer(t *testing.T, identity source, peers ...spiffeid.ID) (url string, events *recorder) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	events, p := newRecorder()
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, l, identity, peers, p) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return "https://" + l.Addr().String() + "/", events
}

func idOf(t *testing.T, s source) spiffeid.ID {
	t.Helper()
	svid, err := s.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	return svid.ID
}

func ownSerial(t *testing.T, s source) string {
	t.Helper()
	svid, err := s.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	return serialOf(svid.Certificates[0])
}

// One client outlives the certificates of both sides: a new connection uses the
// newest ones, a kept connection goes on.
func TestCallsFollowRotation(t *testing.T) {
	for name, keep := range map[string]bool{"new connections": false, "one connection": true} {
		t.Run(name, func(t *testing.T) {
			ca := newTestCA(t)
			server, client := ca.source("/server"), ca.source("/client")
			url, served := startServer(t, server, idOf(t, client))
			called, p := newRecorder()
			c := newCaller(client, []spiffeid.ID{idOf(t, server)}, callOptions{url: url, keep: keep}, p)

			before := [2]string{ownSerial(t, client), ownSerial(t, server)}
			if err := c.request(t.Context()); err != nil {
				t.Fatal(err)
			}
			client.rotate(ca.issue("/client", time.Now().Add(time.Hour)))
			server.rotate(ca.issue("/server", time.Now().Add(time.Hour)))
			if err := c.request(t.Context()); err != nil {
				t.Fatal(err)
			}
			after := [2]string{ownSerial(t, client), ownSerial(t, server)}
			if keep {
				after = before
			}
			for n, want := range [][2]string{before, after} {
				e := called.next(t, "request")
				if got := [2]string{e.OwnSerial, e.PeerSerial}; got != want {
					t.Errorf("request %d: client saw serials %v, want %v", n+1, got, want)
				}
				if wantNew := n == 0 || !keep; e.NewConn != wantNew {
					t.Errorf("request %d: new connection is %t, want %t", n+1, e.NewConn, wantNew)
				}
				s := served.next(t, "request")
				if got := [2]string{s.PeerSerial, s.OwnSerial}; got != want {
					t.Errorf("request %d: server saw serials %v, want %v", n+1, got, want)
				}
			}
		})
	}
}

func TestWrongIdentitiesAreRefused(t *testing.T) {
	ca, otherCA := newTestCA(t), newTestCA(t)
	server, client, stranger := ca.source("/server"), ca.source("/client"), ca.source("/stranger")
	impostor := otherCA.source("/client")
	tests := map[string]struct {
		caller source
		peer   spiffeid.ID // whom the caller expects
		by     string
	}{
		"server refuses a stranger":                 {stranger, idOf(t, server), byPeer},
		"client refuses a server with another name": {client, idOf(t, stranger), byUs},
		"each refuses a certificate of another CA":  {impostor, idOf(t, server), byUs},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			url, served := startServer(t, server, idOf(t, client))
			for _, expect := range []bool{true, false} {
				events, p := newRecorder()
				o := callOptions{url: url, count: 2, interval: time.Millisecond, patience: 10 * time.Second, expectRefused: expect}
				err := newCaller(test.caller, []spiffeid.ID{test.peer}, o, p).run(t.Context())
				if (err == nil) != expect {
					t.Errorf("with expect-refused=%t run returned %v", expect, err)
				}
				if e := events.next(t, "refused"); e.Code != test.by {
					t.Errorf("refused %q (%s), want %q", e.Code, e.Error, test.by)
				}
			}
			if test.by == byPeer {
				if e := served.next(t, "refused"); e.PeerID != idOf(t, stranger).String() {
					t.Errorf("server refused %q, want the stranger", e.PeerID)
				}
			}
		})
	}
}

func TestExpectRefusedFailsWhenLetIn(t *testing.T) {
	ca := newTestCA(t)
	server, client := ca.source("/server"), ca.source("/client")
	url, _ := startServer(t, server, idOf(t, client))
	_, p := newRecorder()
	o := callOptions{url: url, count: 2, interval: time.Millisecond, patience: 10 * time.Second, expectRefused: true}
	if err := newCaller(client, []spiffeid.ID{idOf(t, server)}, o, p).run(t.Context()); err == nil {
		t.Error("run succeeded although the server let the client in")
	}
}

// A server that is not there is no refusal.
func TestUnreachableServerIsNoRefusal(t *testing.T) {
	ca := newTestCA(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	_ = l.Close()
	_, p := newRecorder()
	o := callOptions{url: "https://" + address, count: 1, patience: 100 * time.Millisecond, expectRefused: true}
	client := ca.source("/client")
	err = newCaller(client, []spiffeid.ID{idOf(t, client)}, o, p).run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "not reachable after 100ms") {
		t.Errorf("error is %v, want one that says the server was not reachable", err)
	}
}
