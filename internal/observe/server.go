// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// NewRegistry makes a metrics registry with the Go runtime's and the process's
// own metrics.
func NewRegistry() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return registry
}

// Check says what is wrong, or nil. Checks are called for each probe and must be
// quick: they report state, they do not go and look.
type Check func() error

// Server answers /healthz, /readyz and /metrics on one port.
type Server struct {
	listener net.Listener
	http     *http.Server
	log      *slog.Logger
}

// ServerOptions configure a Server. Every field is needed.
type ServerOptions struct {
	// Address to listen on, "host:port" or ":port".
	Address  string
	Registry *prometheus.Registry
	// Ready says whether the process can do its work; Live, whether it should be
	// restarted.
	Ready, Live Check
	Log         *slog.Logger
}

// NewServer listens at once, so that a port that is taken is an error at start.
func NewServer(o ServerOptions) (*Server, error) {
	listener, err := net.Listen("tcp", o.Address)
	if err != nil {
		return nil, fmt.Errorf("listen for health and metrics on %q: %w", o.Address, err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(o.Registry, promhttp.HandlerOpts{Registry: o.Registry}))
	mux.Handle("GET /healthz", handler(o.Live))
	mux.Handle("GET /readyz", handler(o.Ready))
	return &Server{
		listener: listener,
		http:     &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10},
		log:      o.Log,
	}, nil
}

// Addr is where the server listens.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if err := s.http.Shutdown(grace); err != nil {
			_ = s.http.Close()
		}
	})
	defer stop()
	s.log.Info("serving health and metrics", "address", s.listener.Addr().String())
	if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve health and metrics: %w", err)
	}
	return nil
}

func handler(check Check) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if err := check(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ok\n"))
	})
}
