// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"google.golang.org/grpc"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

const (
	registrationSuffix = "-reg.sock"
	// csiVersion is the CSI version to register: kubelet knows v1 and nothing else.
	csiVersion = "1.0.0"

	firstRetry = time.Second
	lastRetry  = time.Minute
	// lookEvery is how often the socket is looked at where it cannot be watched.
	lookEvery = 10 * time.Second
)

// RegistrationOptions say how kubelet finds the driver.
type RegistrationOptions struct {
	// Dir is kubelet's plugins_registry directory.
	Dir string
	// DriverName is the CSI driver's name.
	DriverName string
	// Endpoint is the path of the CSI socket as kubelet sees it, which may differ from where it is in our
	// own mount namespace.
	Endpoint string
	// Log takes what happens; nil discards.
	Log *slog.Logger
}

// Registration offers the driver to kubelet's plugin watcher
// (k8s.io/kubelet/pkg/apis/pluginregistration/v1). Kubelet finds the socket when it appears and whenever it
// starts itself, so the socket has to be there all the time.
type Registration struct {
	registerapi.UnimplementedRegistrationServer
	path     string
	driver   string
	endpoint string
	log      *slog.Logger
	// watcher watches a directory; lookEvery takes its place where it fails. Tests change both.
	watcher   func(dir string) (*fsnotify.Watcher, error)
	lookEvery time.Duration

	refused chan struct{} // capacity 1: kubelet said no since the last attempt

	mu         sync.Mutex
	registered bool
}

// NewRegistration checks the options.
func NewRegistration(o RegistrationOptions) (*Registration, error) {
	switch {
	case !driverNamePattern.MatchString(o.DriverName):
		return nil, fmt.Errorf("%w: CSI driver name %q must be at most 63 letters, digits, '-' and '.'", ErrInvalid, o.DriverName)
	case !filepath.IsAbs(o.Dir):
		return nil, fmt.Errorf("%w: registration directory %q must be an absolute path", ErrInvalid, o.Dir)
	case !filepath.IsAbs(o.Endpoint):
		return nil, fmt.Errorf("%w: CSI socket path for kubelet %q must be absolute", ErrInvalid, o.Endpoint)
	}
	path := filepath.Join(o.Dir, o.DriverName+registrationSuffix)
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("%w: registration socket %s is too long for a socket: %d bytes, at most %d", ErrInvalid, path, len(path), maxSocketPath)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Registration{
		path:     path,
		driver:   o.DriverName,
		endpoint: o.Endpoint,
		log:      o.Log,
		watcher:  watchDir, lookEvery: lookEvery,
		refused: make(chan struct{}, 1),
	}, nil
}

// Registered reports whether kubelet's last word was that the driver is registered.
func (r *Registration) Registered() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.registered
}

// GetInfo is kubelet's question what is offered here.
func (r *Registration) GetInfo(context.Context, *registerapi.InfoRequest) (*registerapi.PluginInfo, error) {
	return &registerapi.PluginInfo{
		Type:              registerapi.CSIPlugin,
		Name:              r.driver,
		Endpoint:          r.endpoint,
		SupportedVersions: []string{csiVersion},
	}, nil
}

// NotifyRegistrationStatus is kubelet's answer.
func (r *Registration) NotifyRegistrationStatus(_ context.Context, s *registerapi.RegistrationStatus) (*registerapi.RegistrationStatusResponse, error) {
	r.mu.Lock()
	r.registered = s.GetPluginRegistered()
	r.mu.Unlock()
	if s.GetPluginRegistered() {
		r.log.Info("driver registered with kubelet", "driver", r.driver)
		return &registerapi.RegistrationStatusResponse{}, nil
	}
	r.log.Error("kubelet refused to register the driver", "driver", r.driver, "error", s.GetError())
	select {
	case r.refused <- struct{}{}:
	default:
	}
	return &registerapi.RegistrationStatusResponse{}, nil
}

// Run keeps the driver registered until ctx ends. Whatever fails is logged and tried again, ever more
// slowly; the result is ctx's error.
func (r *Registration) Run(ctx context.Context) error {
	for retry := firstRetry; ; retry = min(2*retry, lastRetry) {
		err := r.offer(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, errSocketRemoved) {
			r.log.Warn("registration socket was removed, making it anew", "path", r.path)
			retry = firstRetry
			continue
		}
		if r.Registered() {
			retry = firstRetry // it had worked
		}
		wait := retry/2 + rand.N(retry/2)
		r.log.Error("registration with kubelet failed, trying again", "error", err, "after", wait)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

var (
	errSocketRemoved = errors.New("registration socket was removed")
	errRefused       = errors.New("kubelet refused the registration")
)

// offer serves one registration socket until ctx ends, the socket is removed, or kubelet refuses.
func (r *Registration) offer(ctx context.Context) error {
	select {
	case <-r.refused: // about a socket that is no more
	default:
	}
	l, at, remove, err := listenPath(r.path, endpointMode)
	if err != nil {
		return fmt.Errorf("offer registration: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	server := grpc.NewServer()
	registerapi.RegisterRegistrationServer(server, r)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		cancel(r.watch(ctx, at))
	}()
	err = serve(ctx, server, l)
	cancel(err)
	<-watched
	// What ended the watch is the reason, unless the server itself failed.
	if err == nil {
		err = context.Cause(ctx)
	}
	return errors.Join(err, remove())
}

// watch returns when the socket is not there any more or kubelet refused it. A socket that another agent
// put in its place (a rolling update) is there.
//
// A node may have no inotify instance left (fs.inotify.max_user_instances is 128 on many, for all that runs
// as root). That must not keep pods from starting: then the socket is looked at now and again.
func (r *Registration) watch(ctx context.Context, at place) error {
	var look <-chan time.Time
	w, err := r.watcher(filepath.Dir(r.path))
	if err != nil {
		r.log.Warn("cannot watch the registration directory, looking at it now and again instead; is fs.inotify.max_user_instances too low on this node?",
			"path", filepath.Dir(r.path), "every", r.lookEvery, "error", err)
		ticker := time.NewTicker(r.lookEvery)
		defer ticker.Stop()
		look, w = ticker.C, &fsnotify.Watcher{}
	} else {
		defer w.Close()
	}
	for {
		if _, err := lookAt(r.path); isNotExist(err) { // also what happened before the watch began
			r.mu.Lock()
			r.registered = false
			r.mu.Unlock()
			return errSocketRemoved
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.refused:
			return errRefused
		case <-look:
		case err := <-w.Errors:
			return fmt.Errorf("watch registration directory: %w", err)
		case _, open := <-w.Events:
			if !open {
				return fmt.Errorf("watch registration directory: ended")
			}
		}
	}
}

// watchDir watches a directory.
func watchDir(path string) (*fsnotify.Watcher, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, err
	}
	if err := w.Add(path); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}
