// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"errors"
	"net"
	"sync"
	"syscall"
	"time"
)

// front is the one listener that gRPC serves: it hands over what the sockets of all workloads have accepted. A node has a
// socket for each volume, nearly all of them silent, and gRPC would keep a goroutine waiting at each.
type front struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newFront() *front {
	return &front{conns: make(chan net.Conn), closed: make(chan struct{})}
}

// deliver hands c to gRPC, or closes it when the server has ended. gRPC takes a connection at once: the handshake has a
// goroutine of its own.
func (f *front) deliver(c net.Conn) {
	select {
	case f.conns <- c:
	case <-f.closed:
		_ = c.Close()
	}
}

// Accept implements net.Listener.
func (f *front) Accept() (net.Conn, error) {
	select {
	case c := <-f.conns:
		return c, nil
	case <-f.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (f *front) Close() error {
	f.once.Do(func() { close(f.closed) })
	return nil
}

// Addr implements net.Listener. There is no one address.
func (f *front) Addr() net.Addr { return &net.UnixAddr{Net: "unix"} }

// How long accepting pauses when the process or the machine has no room for another connection.
const (
	firstPause   = 5 * time.Millisecond
	longestPause = time.Second
)

// pause waits after accept errors that pass by themselves, longer each time in a row.
type pause struct{ next time.Duration }

// wait returns early when closed is closed.
func (p *pause) wait(closed <-chan struct{}) {
	p.next = min(max(p.next*2, firstPause), longestPause)
	sleep(p.next, closed)
}

func sleep(d time.Duration, closed <-chan struct{}) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-closed:
	}
}

func (p *pause) reset() { p.next = 0 }

// passing reports whether an accept error says that there is no room at present (accept(2)); the connection stays in the
// socket's queue meanwhile.
func passing(err error) bool {
	for _, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// fleeting reports whether an accept error concerns one connection only, which is gone.
func fleeting(err error) bool {
	return errors.Is(err, syscall.ECONNABORTED) || errors.Is(err, syscall.EINTR) || errors.Is(err, syscall.EAGAIN)
}

// acceptAll accepts on one listener in the calling goroutine until the listener ends. It is for listeners that the shared
// acceptor cannot watch.
func acceptAll(l *listener, f *front) error {
	var p pause
	for {
		c, err := l.Accept()
		switch {
		case err == nil:
			p.reset()
			f.deliver(c)
			l.endpoint.slow(func(wait time.Duration) { sleep(wait, l.closed) })
		case passing(err):
			p.wait(f.closed)
		case errors.Is(err, errCrowded):
			l.endpoint.slow(func(wait time.Duration) { sleep(wait, l.closed) })
		case !fleeting(err):
			return err
		}
	}
}
