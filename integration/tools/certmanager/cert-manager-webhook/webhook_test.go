// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Package webhook hosts cert-manager's real admission webhook. cert-manager
// exports its constructor only to tests (it takes a *testing.T), so this
// package is compiled with `go test -c` and the result is run as a server:
//
//	CERT_MANAGER_WEBHOOK_PORT=10250 cert-manager-webhook -test.run='^TestServe$' -test.timeout=0 -- \
//	    --kubeconfig=… --tls-cert-file=… --tls-private-key-file=…
//
// Every argument after the double dash goes to the webhook unchanged. It
// stops at SIGTERM or SIGINT.
package webhook

import (
	"context"
	"flag"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"testing"

	webhooktesting "github.com/cert-manager/cert-manager/test/webhook"

	"github.com/cert-manager/cert-manager/pkg/webhook/server"
)

const portVariable = "CERT_MANAGER_WEBHOOK_PORT"

// TestServe serves the webhook until it is told to stop.
func TestServe(t *testing.T) {
	value := os.Getenv(portVariable)
	if value == "" {
		t.Skipf("this is a server, not a test: %s is not set", portVariable)
	}
	port, err := strconv.ParseUint(value, 10, 16)
	if err != nil || port == 0 {
		t.Fatalf("%s=%q is not a port number", portVariable, value)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	// The test starter always picks a random port. A restarted webhook must
	// come back where the API server looks for it.
	fixedPort := func(s *server.Server) { s.ListenAddr = int(port) }
	serving, shutdown := webhooktesting.StartWebhookServer(t, flag.Args(), fixedPort)
	t.Logf("serving on %s", serving.URL)
	<-ctx.Done()
	shutdown()
}
