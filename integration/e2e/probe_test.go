// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/wait"
)

// agentPort is where agents serve probes and metrics.
const agentPort = "9809"

// get asks an agent over its node's network, which needs no API server.
func (n onNode) get(ctx context.Context, agent *corev1.Pod, path string) (status int, body string, err error) {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: n.dialTCP}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(agent.Status.PodIP, agentPort)+path, nil)
	if err != nil {
		return 0, "", err
	}
	response, err := (&http.Client{Transport: transport, Timeout: 10 * time.Second}).Do(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	return response.StatusCode, string(content), err
}

// dialTCP connects from inside the node's network namespace.
func (n onNode) dialTCP(ctx context.Context, _, address string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		// Never unlocked: the thread has left this process's network and ends with
		// the goroutine. A socket stays where it was made.
		runtime.LockOSThread()
		conn, err := n.enterAndDial(ctx, address)
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}

func (n onNode) enterAndDial(ctx context.Context, address string) (net.Conn, error) {
	network, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", n.pid))
	if err != nil {
		return nil, err
	}
	defer network.Close()
	if err := unix.Setns(int(network.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("enter the network of %s: %w", n.Name, err)
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", address)
}

// metrics are an agent's, by name with labels, as in its answer.
type metrics map[string]float64

func (n onNode) metrics(ctx context.Context, t *testing.T, agent *corev1.Pod) metrics {
	t.Helper()
	status, body, err := n.get(ctx, agent, "/metrics")
	if err != nil || status != http.StatusOK {
		t.Fatalf("metrics of %s: %d, %v", agent.Name, status, err)
	}
	return parseMetrics([]byte(body))
}

// parseMetrics reads the text format, in which a line is a name, labels and a
// value.
func parseMetrics(text []byte) metrics {
	m := metrics{}
	for line := range bytes.Lines(text) {
		line := strings.TrimSpace(string(line))
		at := strings.LastIndexByte(line, ' ')
		if at < 0 || strings.HasPrefix(line, "#") {
			continue
		}
		if value, err := strconv.ParseFloat(line[at+1:], 64); err == nil {
			m[line[:at]] = value
		}
	}
	return m
}

// waitMetrics waits until an agent's metrics are as wanted. Nothing announces
// them; asking is all there is.
func (n onNode) waitMetrics(ctx context.Context, t *testing.T, agent *corev1.Pod, what string, done func(metrics) error) metrics {
	t.Helper()
	var last metrics
	var missing error
	err := wait.PollUntilContextCancel(ctx, 250*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		last = n.metrics(ctx, t, agent)
		missing = done(last)
		return missing == nil, nil
	})
	if err != nil {
		t.Fatalf("wait for %s: %v: %v", what, context.Cause(ctx), missing)
	}
	return last
}

// waitUnready waits until an agent says that it is alive and not ready, and for
// which reason. Asking is all there is.
func (n onNode) waitUnready(ctx context.Context, t *testing.T, agent *corev1.Pod, reason string) {
	t.Helper()
	var said string
	err := wait.PollUntilContextCancel(ctx, 100*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		status, body, err := n.get(ctx, agent, "/readyz")
		said = fmt.Sprint(status, " ", strings.TrimSpace(body), " ", err)
		return err == nil && status == http.StatusServiceUnavailable && strings.Contains(body, reason), nil
	})
	if err != nil {
		t.Errorf("/readyz never said %q, last: %s", reason, said)
	}
	n.checkHealthy(ctx, t, agent)
}

// checkHealthy asks /healthz, which depends on nobody.
func (n onNode) checkHealthy(ctx context.Context, t *testing.T, agent *corev1.Pod) {
	t.Helper()
	if status, body, err := n.get(ctx, agent, "/healthz"); err != nil || status != http.StatusOK {
		t.Errorf("/healthz of %s says %d: %s (%v), want 200", agent.Name, status, body, err)
	}
}

// Metrics are read with their labels.
func TestMetricsAreParsed(t *testing.T) {
	got := parseMetrics([]byte("# HELP a b\n# TYPE a gauge\na{x=\"y z\"} 3\nb 1.5e+06\n\nbroken\n"))
	if len(got) != 2 || got[`a{x="y z"}`] != 3 || got["b"] != 1.5e6 {
		t.Errorf("got %v", got)
	}
}
