// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

// The supervisor and each node serve a few operations by HTTP on a Unix
// socket in the state directory: socket names reach across network
// namespaces, and only root can open them.

// stopGrace is how long a component has to leave after SIGTERM.
const stopGrace = 20 * time.Second

// serveControl serves the operations until the process ends.
func serveControl(socket string, mux *http.ServeMux) error {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("serve %s: %w", socket, err)
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return fmt.Errorf("serve %s: %w", socket, err)
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return fmt.Errorf("serve %s: %w", socket, errors.Join(err, listener.Close()))
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		err := server.Serve(listener)
		fmt.Fprintf(os.Stderr, "serve %s: %v\n", socket, err)
	}()
	return nil
}

// handleComponents adds the operations on a set of components: their status,
// and start, stop and kill of each.
func handleComponents(mux *http.ServeMux, set *componentSet, status func(context.Context) any) {
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		answer(w, status(r.Context()), nil)
	})
	mux.HandleFunc("POST /components/{name}/{operation}", func(w http.ResponseWriter, r *http.Request) {
		name := r.PathValue("name")
		var err error
		switch op := r.PathValue("operation"); op {
		case "start":
			err = set.start(name)
		case "stop":
			err = set.stop(r.Context(), name, stopGrace)
		case "kill":
			err = set.stop(r.Context(), name, 0)
		default:
			err = fmt.Errorf("%q is not something to do with a component", op)
		}
		answer(w, struct{}{}, err)
	})
}

// answer writes a result as JSON, or an error as text.
func answer(w http.ResponseWriter, result any, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	// An error here is the client's going away.
	_ = json.NewEncoder(w).Encode(result)
}

// controlClient talks to the socket of a supervisor or a node.
type controlClient struct{ socket string }

// call posts (or, without a body and with a result, gets) an operation.
func (c controlClient) call(ctx context.Context, method, path string, body io.Reader, result any) error {
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", c.socket)
		},
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://cluster"+path, body)
	if err != nil {
		return err
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return fmt.Errorf("call %s: %w", c.socket, err)
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		return fmt.Errorf("call %s: %w", c.socket, err)
	}
	if response.StatusCode != http.StatusOK {
		return errors.New(strings.TrimSpace(string(content)))
	}
	if result == nil {
		return nil
	}
	if err := json.NewDecoder(bytes.NewReader(content)).Decode(result); err != nil {
		return fmt.Errorf("call %s: decode answer: %w", c.socket, err)
	}
	return nil
}

func (c controlClient) post(ctx context.Context, path string, body io.Reader) error {
	return c.call(ctx, http.MethodPost, path, body, nil)
}
