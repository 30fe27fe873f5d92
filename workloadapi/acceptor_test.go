// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/status"
)

// A node has a socket for every volume; those that nobody connects to must cost next to nothing.
func TestIdleSocketsCostNoGoroutine(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	recv(t, fetchStream(t, dial(t, s.start("first", newScripted(ca.identity(t, "/first"))))))
	before := runtime.NumGoroutine()
	const sockets = 200
	for i := range sockets {
		s.start(fmt.Sprint(i), newScripted(ca.identity(t, "/idle")))
	}
	if more := runtime.NumGoroutine() - before; more > sockets/10 {
		t.Errorf("%d idle sockets run %d more goroutines", sockets, more)
	}
	// They are served all the same.
	last := fmt.Sprintf("unix://%s/%d", s.dir, sockets-1)
	if got := recv(t, fetchStream(t, dial(t, last))); got.ID.Path() != "/idle" {
		t.Errorf("got %s", got.ID)
	}
}

// A process without a free file descriptor cannot accept. The client waits in the socket's queue and is served as soon as
// there is room.
func TestAcceptGoesOnAfterDescriptorsRanOut(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	addr := strings.TrimPrefix(s.start("a", newScripted(ca.identity(t, "/a"))), "unix://")
	recv(t, fetchStream(t, dial(t, "unix://"+addr)))

	release := exhaustDescriptors(t)
	var client net.Conn
	var err error
	// One descriptor for the client's own end, none for the server's. What else runs in this process may take it.
	for client == nil {
		release(1)
		if client, err = net.Dial("unix", addr); err != nil && !errors.Is(err, syscall.EMFILE) {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = client.Close() })
	release(-1)
	_, err = client.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"))
	must(t, err)
	if _, err := client.Read(make([]byte, 9)); err != nil { // the server's own SETTINGS frame
		t.Errorf("the connection was not taken up when there was room again: %v", err)
	}
	recv(t, fetchStream(t, dial(t, "unix://"+addr)))
}

// exhaustDescriptors opens files until there is no descriptor left, and returns what closes some of them; -1 closes all.
func exhaustDescriptors(t *testing.T) (release func(n int)) {
	t.Helper()
	var limit syscall.Rlimit
	must(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit))
	low := limit
	low.Cur = 256
	must(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &low))
	var held []*os.File
	for {
		f, err := os.Open(os.DevNull)
		if errors.Is(err, syscall.EMFILE) {
			break
		}
		must(t, err)
		held = append(held, f)
	}
	release = func(n int) {
		for range held {
			if n == 0 {
				return
			}
			_ = held[0].Close()
			held = held[1:]
			n--
		}
	}
	t.Cleanup(func() {
		release(-1)
		must(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit))
	})
	return release
}

// brokenListener has no descriptor and fails.
type brokenListener struct{ net.Listener }

var errBroken = errors.New("broken")

func (brokenListener) Accept() (net.Conn, error) { return nil, errBroken }

func (l brokenListener) Close() error { return l.Listener.Close() }

func TestAListenerThatFailsIsReported(t *testing.T) {
	s := newTestServer(t, Options{})
	w := newScripted(Identity{})
	if err := s.Serve(brokenListener{s.listen("a")}, w); !errors.Is(err, errBroken) {
		t.Errorf("serve on a listener that fails: %v", err)
	}
}

// A listener without a descriptor is served as well, as tests and other systems need it.
func TestListenersWithoutADescriptor(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	w := newScripted(ca.identity(t, "/a"))
	lis := s.listen("a")
	must(t, s.Start(struct{ net.Listener }{lis}, w))
	if got := recv(t, fetchStream(t, dial(t, "unix://"+lis.Addr().String()))); got.ID.Path() != "/a" {
		t.Errorf("got %s", got.ID)
	}
}

// A client that comes back at once, without a pause, is not turned away over and over by a server that shuts down: it is told
// that the connection ends, too.
func TestShutdownTurnsNobodyAwayOverAndOver(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	const workloads = 100
	turnedAway := make(chan int, workloads)
	for i := range workloads {
		cc := dial(t, s.start(fmt.Sprint(i), newScripted(ca.identity(t, "/a"))))
		stream := fetchStream(t, cc)
		recv(t, stream)
		go func() {
			_, err := stream.Recv()
			n := 0
			for ; strings.Contains(status.Convert(err).Message(), "shutting down"); n++ {
				err = fetchOnce(t, cc)
			}
			turnedAway <- n
		}()
	}
	must(t, s.Shutdown(t.Context()))
	total := 0
	for range workloads {
		total += <-turnedAway
	}
	// Once each, and some that were quicker than the word about their connection.
	if total > 2*workloads {
		t.Errorf("%d clients were turned away %d times", workloads, total)
	}
}
