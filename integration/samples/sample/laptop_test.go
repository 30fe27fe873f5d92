// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/signet-spiffe/signet/agent/cli"
	"github.com/signet-spiffe/signet/agent/dev"
)

// asSample makes this test binary the sample itself.
const asSample = "SIGNET_TEST_SAMPLE"

func TestMain(m *testing.M) {
	if os.Getenv(asSample) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// startDev runs "signet-agent dev" and returns the address of each identity's socket,
// by name, as a developer would copy them into a shell.
func startDev(t *testing.T, args ...string) map[string]string {
	t.Helper()
	base, err := os.MkdirTemp("", "sd") // Short enough for a socket.
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	ctx, stop := context.WithCancel(context.Background())
	r, out := io.Pipe()
	root := cli.New("v1", dev.Command())
	root.SetOut(out)
	root.SetErr(io.Discard)
	ended := make(chan error, 1)
	go func() {
		err := cli.Execute(ctx, root, append([]string{"dev", "--dir", filepath.Join(base, "d")}, args...))
		_ = out.CloseWithError(err)
		ended <- err
	}()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("signet-agent dev: %v", err)
		}
	})
	sockets := map[string]string{}
	lines := bufio.NewScanner(r)
	for len(sockets) < strings.Count(strings.Join(args, " "), "--id") && lines.Scan() {
		name, _, _ := strings.Cut(strings.TrimPrefix(lines.Text(), "# "), ":")
		lines.Scan()
		sockets[name] = strings.TrimPrefix(lines.Text(), "export SPIFFE_ENDPOINT_SOCKET=")
	}
	return sockets
}

// sample prepares the program as a container runs it: arguments, and the variable.
func sample(t *testing.T, socket string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), self, args...)
	c.Env = []string{asSample + "=1", "SPIFFE_ENDPOINT_SOCKET=" + socket}
	c.Cancel = func() error { return c.Process.Signal(os.Interrupt) }
	c.WaitDelay = 10 * time.Second
	return c
}

// The programs of deploy/examples/mtls.yaml, unchanged, with the identities that they
// have in the cluster, against "signet-agent dev": mTLS, a stranger who is refused,
// and rotation under one client.
func TestTheSampleRunsOnALaptop(t *testing.T) {
	const domain = "spiffe://cluster.local/ns/spiffe-demo/sa/"
	sockets := startDev(t, "--id", domain+"server", "--id", domain+"client", "--id", domain+"stranger", "--lifetime", "10s")
	server := sample(t, sockets["server"], "serve", "--listen=127.0.0.1:0", "--peer="+domain+"client")
	out, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	server.Stderr = os.Stderr
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Process.Kill(); _ = server.Wait() })
	served := bufio.NewScanner(out)
	if !served.Scan() {
		t.Fatal("the server does not listen")
	}
	listening := parseEvent(t, served.Bytes())
	go func() { _, _ = io.Copy(io.Discard, out) }()
	url := "--url=https://" + listening.Address + "/"

	stranger, err := sample(t, sockets["stranger"], "call", url, "--count=1", "--expect-refused", "--peer="+domain+"server").CombinedOutput()
	if err != nil || !strings.Contains(string(stranger), `"refused"`) {
		t.Errorf("a stranger: %v: %s", err, stranger)
	}

	var problems bytes.Buffer
	client := sample(t, sockets["client"], "call", url, "--interval=50ms", "--peer="+domain+"server")
	client.Stderr = &problems
	requests, err := client.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Start(); err != nil {
		t.Fatal(err)
	}
	own, peer := map[string]bool{}, map[string]bool{}
	lines := bufio.NewScanner(requests)
	for (len(own) < 2 || len(peer) < 2) && lines.Scan() {
		e := parseEvent(t, lines.Bytes())
		if e.Event != "request" || e.OwnID != domain+"client" || e.PeerID != domain+"server" {
			t.Fatalf("got %s", lines.Bytes())
		}
		own[e.OwnSerial], peer[e.PeerSerial] = true, true
	}
	if len(own) < 2 || len(peer) < 2 {
		t.Errorf("the client ended before both sides had a new SVID: %s", problems.String())
	}
	_ = client.Process.Kill()
	_ = client.Wait()
}

func parseEvent(t *testing.T, line []byte) (e event) {
	t.Helper()
	if err := json.Unmarshal(line, &e); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return e
}
