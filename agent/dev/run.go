// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package dev

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/signet-spiffe/signet/agent/cli"
	"github.com/signet-spiffe/signet/agent/trust"
	"github.com/signet-spiffe/signet/internal/observe"
	"github.com/signet-spiffe/signet/workloadapi"
)

const banner = `
  *** signet-agent dev: FOR DEVELOPMENT ONLY ***
  Its CA lives in the memory of this process and signs whatever the command line
  asks for. Nobody approves, and nobody else should trust these identities.

`

// How long the end may take, in all.
const (
	shutdownGrace = 2 * time.Second
	removalGrace  = 5 * time.Second
)

// session is one run, from the first socket to the last.
type session struct {
	options *options
	log     *slog.Logger
	place   *place
	server  *workloadapi.Server
	bundles *trust.Bundles
	volumes *volumes
	domains []*domain
}

// run serves until ctx ends or, if there is a program, until that has ended, whose
// exit code is in an *cli.ExitError then. Nothing of it is left when it returns.
func run(ctx context.Context, o *options, stdout, stderr io.Writer) (err error) {
	log, err := observe.NewLogger(stderr, o.log)
	if err != nil {
		return err
	}
	log = log.With("mode", "for development only")
	if _, err := io.WriteString(stderr, banner); err != nil {
		return err
	}
	s, err := open(o, log)
	if err != nil {
		return err
	}
	// A terminal that is closed is an end like Ctrl-C.
	ctx, forget := signal.NotifyContext(ctx, syscall.SIGHUP)
	defer forget()
	// What serves goes on until nobody is to be served: a program that was told to end
	// may take its time.
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	var running errgroup.Group
	defer func() {
		stop()
		problem := errors.Join(s.close(), running.Wait())
		if problem != nil && err != nil { // Whose exit code may be all that is told.
			log.Error("something may be left behind", "dir", s.place.path, "error", problem)
		}
		err = cmp.Or(err, problem)
	}()
	s.start(serving, &running)
	if err := s.publish(ctx); err != nil {
		if ctx.Err() != nil {
			return o.interrupted()
		}
		return err
	}
	if o.program != nil {
		return s.runProgram(ctx)
	}
	if err := s.announce(stdout); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// interrupted is the result when a signal came before anything was served: nothing is
// wrong with that, but a program that has not run has not succeeded.
func (o *options) interrupted() error {
	if o.program == nil {
		return nil
	}
	return &cli.ExitError{Code: exitSignalled + int(syscall.SIGTERM)}
}

func open(o *options, log *slog.Logger) (*session, error) {
	dir := o.dir
	if !o.flags.Changed("dir") {
		dir = defaultPlace(o.program != nil)
	}
	p, err := openPlace(dir)
	if err != nil {
		return nil, err
	}
	s := &session{options: o, log: log, place: p, server: workloadapi.NewServer(workloadapi.Options{Log: log}), bundles: trust.NewBundles()}
	s.volumes = newVolumes(p, s.server, o.files, s.bundles)
	for _, f := range o.federated {
		if _, err := s.bundles.Put(f.bundle); err != nil {
			return nil, errors.Join(err, s.close())
		}
	}
	for _, td := range o.trustDomains() {
		d, err := newDomain(td, o, s.volumes, log)
		if err != nil {
			return nil, errors.Join(err, s.close())
		}
		s.bundles.Sync(d.trust) // Before the first SVID is shown.
		s.domains = append(s.domains, d)
	}
	return s, nil
}

// start starts what runs until ctx ends.
func (s *session) start(ctx context.Context, running *errgroup.Group) {
	for _, d := range s.domains {
		running.Go(func() error { d.registry.Run(ctx); return nil })
		running.Go(func() error { s.bundles.Follow(ctx, d.trust); return nil })
		if every := s.options.rotateCA; every > 0 {
			running.Go(func() error { d.rotate(ctx, every); return nil })
		}
	}
	running.Go(func() error { s.refresh(ctx); return nil })
}

// refresh shows each workload the bundles of the trust domains that it is federated
// with, until ctx ends.
func (s *session) refresh(ctx context.Context) {
	for {
		_, superseded := s.bundles.Set()
		// After the channel was fetched: a change in between is not missed.
		s.volumes.refresh()
		select {
		case <-ctx.Done():
			return
		case <-superseded:
		}
	}
}

func (s *session) publish(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, d := range s.domains {
		group.Go(func() error { return d.publish(ctx, s.options.identities) })
	}
	return group.Wait()
}

// announce says where the sockets are, in words that a shell understands.
func (s *session) announce(w io.Writer) error {
	for _, i := range s.options.identities {
		if _, err := fmt.Fprintf(w, "# %s: %s\nexport SPIFFE_ENDPOINT_SOCKET=%s\n", i.name, i.id, s.address(i)); err != nil {
			return err
		}
	}
	return nil
}

// address is a socket as SPIFFE_ENDPOINT_SOCKET has it (Workload Endpoint section
// 4). checkPath lets nothing in that would have to be escaped.
func (s *session) address(i identity) string {
	return "unix://" + filepath.Join(s.place.path, i.name, socketName)
}

// close ends the streams, wipes the keys and removes what was made.
func (s *session) close() error {
	grace, cancel := context.WithTimeout(context.Background(), shutdownGrace)
	defer cancel()
	var problems []error
	if err := s.server.Shutdown(grace); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		problems = append(problems, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), removalGrace)
	defer cancel()
	for _, d := range s.domains {
		for _, i := range s.options.identities {
			if i.id.TrustDomain() == d.name {
				problems = append(problems, d.registry.Unpublish(ctx, i.name))
			}
		}
		d.trust.Close()
	}
	return errors.Join(append(problems, s.place.close())...)
}
