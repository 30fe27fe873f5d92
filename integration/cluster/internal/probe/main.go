// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Command probe is what the tests of the cluster package run in pods.
//
//	probe serve          asks the API server for its version with the pod's
//	                     token, prints the answer, then serves its host name
//	                     on port 8080 until it is told to stop
//	probe get URL        prints what a URL answers
//	probe mount DIR...   mounts a tmpfs at each DIR, writes DIR/probe into it,
//	                     prints "mounted" and waits until it is told to stop
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

const credentials = "/var/run/secrets/kubernetes.io/serviceaccount"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("say what to do: serve, get URL, or mount and directories")
	}
	switch command := args[0]; {
	case command == "serve":
		return serve(ctx)
	case command == "get" && len(args) == 2:
		return get(ctx, http.DefaultClient, args[1], "")
	case command == "mount" && len(args) > 1:
		return mount(ctx, args[1:])
	default:
		return fmt.Errorf("unknown command %q", args)
	}
}

func serve(ctx context.Context) error {
	if err := askAPIServer(ctx); err != nil {
		return fmt.Errorf("ask the API server: %w", err)
	}
	server := &http.Server{Addr: ":8080", Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		name, err := os.Hostname()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(w, name)
	})}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// askAPIServer is what an in-cluster client does: the service's address from
// the environment, the token and the CA from the projected volume.
func askAPIServer(ctx context.Context) error {
	ca, err := os.ReadFile(filepath.Join(credentials, "ca.crt"))
	if err != nil {
		return err
	}
	token, err := os.ReadFile(filepath.Join(credentials, "token"))
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return errors.New("no certificate in ca.crt")
	}
	client := &http.Client{
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}},
		Timeout:   10 * time.Second,
	}
	host := net.JoinHostPort(os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT"))
	return get(ctx, client, "https://"+host+"/version", string(token))
}

func get(ctx context.Context, client *http.Client, url, token string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, response.Status)
	}
	_, err = io.Copy(os.Stdout, response.Body)
	return err
}

func mount(ctx context.Context, dirs []string) error {
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
			return fmt.Errorf("mount at %s: %w", dir, err)
		}
		// Unmounting fails while somebody uses it; the node's end will do.
		defer func() { _ = syscall.Unmount(dir, 0) }()
		if err := os.WriteFile(filepath.Join(dir, "probe"), []byte("probe\n"), 0o644); err != nil {
			return err
		}
	}
	fmt.Println("mounted")
	<-ctx.Done()
	return nil
}
