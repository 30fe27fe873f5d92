// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// acceptor watches the sockets of all workloads with one epoll and one goroutine.
type acceptor struct {
	front *front
	epoll *os.File // an epoll descriptor can itself be waited for, by Go's poller
	fd    int      // of epoll, valid until that is closed

	mu       sync.Mutex // guards what follows; held for map operations only
	watched  map[int32]*socket
	lastName int32
}

// socket is one listener as the acceptor sees it.
type socket struct {
	*listener
	raw    syscall.RawConn
	failed func(error) // called once, from the acceptor's goroutine, if the listener fails
}

func newAcceptor(f *front) (*acceptor, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make epoll: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // so that os.File uses Go's poller
		return nil, fmt.Errorf("make epoll: %w", errors.Join(err, unix.Close(fd)))
	}
	return &acceptor{front: f, epoll: os.NewFile(uintptr(fd), "epoll"), fd: fd, watched: map[int32]*socket{}}, nil
}

// watch has l accepted on until it is closed. It reports false for a listener that has no descriptor. After an error l is to
// be closed.
func (a *acceptor) watch(l *listener, failed func(error)) (ok bool, err error) {
	conn, ok := l.Listener.(syscall.Conn)
	if !ok {
		return false, nil
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return true, fmt.Errorf("watch workload socket %s: %w", l.Addr(), err)
	}
	name := a.add(&socket{listener: l, raw: raw, failed: failed})
	l.unwatch = func() { a.remove(name) } // closing the descriptor takes it out of the epoll (epoll(7))
	err = onDescriptor(raw, func(fd int) error {
		return unix.EpollCtl(a.fd, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: name})
	})
	if err != nil {
		return true, fmt.Errorf("watch workload socket %s: %w", l.Addr(), err)
	}
	return true, nil
}

// onDescriptor runs f on the descriptor, which is not closed meanwhile.
func onDescriptor(raw syscall.RawConn, f func(fd int) error) error {
	var err error
	if closed := raw.Control(func(fd uintptr) { err = f(int(fd)) }); closed != nil {
		return closed
	}
	return err
}

func (a *acceptor) add(s *socket) (name int32) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for {
		a.lastName++
		if _, taken := a.watched[a.lastName]; !taken {
			a.watched[a.lastName] = s
			return a.lastName
		}
	}
}

func (a *acceptor) remove(name int32) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.watched, name)
}

func (a *acceptor) find(name int32) *socket {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.watched[name]
}

// run accepts until close.
func (a *acceptor) run() {
	raw, err := a.epoll.SyscallConn()
	if err != nil {
		return // closed already
	}
	var p pause
	events := make([]unix.EpollEvent, 64)
	for {
		var n int
		// Waiting is left to Go's poller, which wants to be told by false that there is nothing yet.
		closed := raw.Read(func(fd uintptr) bool {
			n, err = unix.EpollWait(int(fd), events, 0)
			return n > 0 || err != nil
		})
		if closed != nil {
			return
		}
		for _, event := range events[:max(n, 0)] {
			a.accept(event.Fd, &p)
		}
	}
}

// accept takes one connection off a socket, so that a busy one holds up no other. The epoll reports what is left again.
func (a *acceptor) accept(name int32, p *pause) {
	s := a.find(name)
	if s == nil {
		return // closed meanwhile
	}
	c, err := s.take(func() (net.Conn, error) { return acceptOn(s.raw) })
	switch {
	case err == nil:
		p.reset()
		a.front.deliver(c)
		s.endpoint.slow(func(wait time.Duration) { a.mute(name, s, wait) })
	case errors.Is(err, errCrowded):
		s.endpoint.slow(func(wait time.Duration) { a.mute(name, s, wait) })
	case passing(err):
		p.wait(a.front.closed)
	case fleeting(err):
	default:
		a.remove(name)
		s.failed(err)
	}
}

// mute takes no connections off a socket for some time; they wait in its queue, at the cost of those who made them.
func (a *acceptor) mute(name int32, s *socket, wait time.Duration) {
	listen := func(events uint32) {
		_ = onDescriptor(s.raw, func(fd int) error { // which fails once the listener is closed
			return unix.EpollCtl(a.fd, unix.EPOLL_CTL_MOD, fd, &unix.EpollEvent{Events: events, Fd: name})
		})
	}
	listen(0)
	time.AfterFunc(wait, func() {
		if a.find(name) == s {
			listen(unix.EPOLLIN)
		}
	})
}

// acceptOn is accept4(2) without waiting: EAGAIN if there is nothing to accept.
func acceptOn(raw syscall.RawConn) (net.Conn, error) {
	accepted := -1
	err := onDescriptor(raw, func(fd int) (err error) {
		accepted, _, err = unix.Accept4(fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		return os.NewSyscallError("accept4", err)
	})
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(accepted), "workload connection")
	defer file.Close()
	return net.FileConn(file) // has a descriptor of its own
}

// close ends run.
func (a *acceptor) close() { _ = a.epoll.Close() }
