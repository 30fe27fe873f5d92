// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package dev

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/signet-spiffe/signet/agent/cli"
)

// nobody runs the command under test where the tests run as root: it needs no
// privilege.
const nobody = 65534

// patience is how long anything may take on a busy machine.
const patience = 30 * time.Second

// Variables that make this test binary something else than a test.
const (
	asCommand = "SIGNET_DEV_TEST_COMMAND" // "signet-agent" with the subcommand dev.
	asClient  = "SIGNET_DEV_TEST_CONNECT" // A client that connects to the socket named here.
)

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(asCommand) != "":
		_ = os.Unsetenv(asCommand) // The program that is run is not to be one, too.
		os.Exit(runCommand(os.Args[1:]))
	case os.Getenv(asClient) != "":
		if _, err := net.Dial("unix", os.Getenv(asClient)); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	if shared != "" {
		_ = os.RemoveAll(shared)
	}
	os.Exit(code)
}

// runCommand is what signet-agent's main does with a subcommand.
func runCommand(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := cli.Execute(ctx, cli.New("v1", Command()), args)
	var exit *cli.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.Code
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// shared holds this test binary where every user may run it: go test keeps it in a
// directory that is its own. Made by commandPath, removed by TestMain.
var (
	shared     string
	makeShared sync.Once
)

func commandPath(t *testing.T) string {
	t.Helper()
	makeShared.Do(func() {
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(self)
		if err != nil {
			t.Fatal(err)
		}
		if shared, err = os.MkdirTemp("", "signet-dev-test"); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(shared, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(shared, "dev.test"), content, 0o755); err != nil {
			t.Fatal(err)
		}
	})
	return filepath.Join(shared, "dev.test")
}

// newBase makes a directory that belongs to the user who runs the command. Its path
// is short enough for sockets below it.
func newBase(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if os.Geteuid() == 0 {
		if err := os.Chown(dir, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// newCommand prepares the command; env is added to its environment.
func newCommand(t *testing.T, env []string, args ...string) *exec.Cmd {
	t.Helper()
	c := exec.CommandContext(t.Context(), commandPath(t), args...)
	c.Env = append(os.Environ(), append([]string{asCommand + "=1"}, env...)...)
	c.SysProcAttr = &syscall.SysProcAttr{}
	if os.Geteuid() == 0 {
		c.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	}
	return c
}

// process is a running "signet-agent dev".
type process struct {
	*exec.Cmd
	t       *testing.T
	exports map[string]string // Name → address, as printed.
	stderr  *bytes.Buffer
	ended   chan error
}

// start runs dev with args until all its sockets are announced.
func start(t *testing.T, env []string, args ...string) *process {
	t.Helper()
	c := newCommand(t, env, append([]string{"dev"}, args...)...)
	p := &process{Cmd: c, t: t, exports: map[string]string{}, stderr: &bytes.Buffer{}, ended: make(chan error, 1)}
	c.Stderr = p.stderr
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for i := 0; i < max(1, countIDs(args)); i++ {
		if !lines.Scan() {
			_ = c.Wait()
			t.Fatalf("it ended before it was ready: %s", p.stderr)
		}
		name, _, _ := strings.Cut(strings.TrimPrefix(lines.Text(), "# "), ":")
		if !lines.Scan() {
			t.Fatal("no export")
		}
		p.exports[name] = strings.TrimPrefix(lines.Text(), "export SPIFFE_ENDPOINT_SOCKET=")
	}
	go func() {
		_, _ = io.Copy(io.Discard, out)
		p.ended <- c.Wait()
	}()
	t.Cleanup(func() {
		_ = c.Process.Kill()
		<-p.ended
	})
	return p
}

func countIDs(args []string) (n int) {
	for _, arg := range args {
		if strings.TrimLeft(arg, "-") == "id" {
			n++
		}
	}
	return n
}

// stop sends a signal and returns the exit code.
func (p *process) stop(sig os.Signal) int {
	p.t.Helper()
	if err := p.Process.Signal(sig); err != nil {
		p.t.Fatal(err)
	}
	select {
	case err := <-p.ended:
		p.ended <- err // For the clean-up.
	case <-time.After(patience):
		p.t.Fatal("it does not stop")
	}
	return p.ProcessState.ExitCode()
}

func wantEmpty(t *testing.T, dir string) {
	t.Helper()
	var left []string
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if path != dir {
			left = append(left, path)
		}
		return err
	})
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
