// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package workloadapi

// acceptor watches nothing on systems without epoll: each listener has a goroutine there.
type acceptor struct{}

func newAcceptor(*front) (*acceptor, error) { return &acceptor{}, nil }

func (*acceptor) watch(*listener, func(error)) (ok bool, err error) { return false, nil }

func (*acceptor) run() {}

func (*acceptor) close() {}
