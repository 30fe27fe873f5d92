// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/klog/v2"
)

func TestNewLogger(t *testing.T) {
	var out bytes.Buffer
	log, err := NewLogger(&out, LogOptions{Level: "2", Format: "json"})
	if err != nil {
		t.Fatal(err)
	}
	log.Debug("hidden")
	log.Info("seen", "pod", "cart-0")
	klog.Background().Info("from the client library")
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 2 {
		t.Fatalf("log has %d lines, want 2:\n%s", len(lines), out.String())
	}
	var entry map[string]any
	if err := json.Unmarshal([]byte(lines[0]), &entry); err != nil {
		t.Fatal(err)
	}
	if entry["msg"] != "seen" || entry["pod"] != "cart-0" {
		t.Errorf("entry %v", entry)
	}
	if !strings.Contains(lines[1], "client-go") {
		t.Errorf("klog's line %s does not name its subsystem", lines[1])
	}
}

func TestLogOptionsRefused(t *testing.T) {
	for _, o := range []LogOptions{{Level: "0", Format: "text"}, {Level: "6", Format: "text"}, {Level: "info", Format: "xml"}, {Level: "", Format: "text"}} {
		_, err := NewLogger(io.Discard, o)
		var usage *UsageError
		if !errors.As(err, &usage) || !strings.HasPrefix(err.Error(), "--log-") {
			t.Errorf("%+v: %v, want a usage error that names the flag", o, err)
		}
	}
	for s, want := range map[string]slog.Level{"error": slog.LevelError, "warn": slog.LevelWarn, "1": slog.LevelInfo, "5": slog.LevelDebug} {
		if got, err := parseLevel(s); err != nil || got != want {
			t.Errorf("parseLevel(%q) = %v, %v, want %v", s, got, err, want)
		}
	}
}

func TestServer(t *testing.T) {
	var notReady atomic.Pointer[error]
	registry := prometheus.NewRegistry()
	registry.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: "signet_test", Help: "x"}))
	server, err := NewServer(ServerOptions{
		Address: "127.0.0.1:0", Registry: registry, Log: slog.New(slog.DiscardHandler),
		Ready: func() error {
			if p := notReady.Load(); p != nil {
				return *p
			}
			return nil
		},
		Live: func() error { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()

	get := func(path string) (int, string) {
		t.Helper()
		resp, err := http.Get("http://" + server.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	if code, body := get("/readyz"); code != http.StatusOK || body != "ok\n" {
		t.Errorf("/readyz: %d %q", code, body)
	}
	missing := errors.New("not registered with kubelet yet")
	notReady.Store(&missing)
	if code, body := get("/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "kubelet") {
		t.Errorf("/readyz: %d %q, want 503 and the reason", code, body)
	}
	if code, _ := get("/healthz"); code != http.StatusOK {
		t.Errorf("/healthz: %d, want 200: readiness must not decide it", code)
	}
	if _, body := get("/metrics"); !strings.Contains(body, "signet_test 0") {
		t.Errorf("/metrics does not show the registry: %s", body)
	}
	if _, err := NewServer(ServerOptions{Address: server.Addr().String(), Registry: registry}); err == nil {
		t.Error("a second server on the same port: want an error")
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
}

// The level can be changed while the process logs, and goes back to where it began;
// Kubernetes' log follows.
func TestAdjustableLogger(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		var out strings.Builder
		log, level, err := NewAdjustableLogger(&out, LogOptions{Level: "warn", Format: format})
		if err != nil {
			t.Fatal(err)
		}
		derived := log.With("part", "x")
		derived.Info("quiet")
		level.Set(slog.LevelDebug)
		derived.Debug("loud")
		klog.Info("klog is loud")
		klog.Flush()
		level.Reset()
		derived.Info("quiet")
		if got := out.String(); strings.Contains(got, "quiet") || !strings.Contains(got, "loud") || !strings.Contains(got, "klog is loud") {
			t.Errorf("%s: logged %q", format, got)
		}
		if level.Level() != slog.LevelWarn || level.Launch() != slog.LevelWarn {
			t.Errorf("%s: level %s, launched with %s", format, level.Level(), level.Launch())
		}
	}
}
