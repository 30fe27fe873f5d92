// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package dev

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/signet-spiffe/signet/agent/issue/selfca"
)

var (
	web  = spiffeid.RequireFromString("spiffe://dev.local/ns/shop/sa/web")
	cart = spiffeid.RequireFromString("spiffe://dev.local/ns/shop/sa/cart")
	db   = spiffeid.RequireFromString("spiffe://b.test/ns/data/sa/db")
)

func newSource(t *testing.T, address string) *workloadapi.X509Source {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(address)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func svidOf(t *testing.T, s *workloadapi.X509Source) *x509svid.SVID {
	t.Helper()
	svid, err := s.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	return svid
}

// call has a client speak mTLS to a server, each with its own source, each expecting
// the other.
func call(t *testing.T, server, client *workloadapi.X509Source) {
	t.Helper()
	serverID, clientID := svidOf(t, server).ID, svidOf(t, client).ID
	l, err := tls.Listen("tcp", "127.0.0.1:0", tlsconfig.MTLSServerConfig(server, server, tlsconfig.AuthorizeID(clientID)))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			_, err = conn.Write([]byte("hello"))
			err = errors.Join(err, conn.Close())
		}
		served <- err
	}()
	conn, err := tls.Dial("tcp", l.Addr().String(), tlsconfig.MTLSClientConfig(client, client, tlsconfig.AuthorizeID(serverID)))
	if err != nil {
		t.Fatalf("%s calls %s: %v", clientID, serverID, err)
	}
	defer conn.Close()
	if got, err := io.ReadAll(conn); err != nil || string(got) != "hello" {
		t.Errorf("%s calls %s: read %q, %v", clientID, serverID, got, err)
	}
	if err := <-served; err != nil {
		t.Errorf("%s is called by %s: %v", serverID, clientID, err)
	}
}

// The command as a developer without root runs it, and go-spiffe as it is in every
// program.
func TestTwoServicesSpeakMTLS(t *testing.T) {
	t.Parallel()
	base := newBase(t)
	dir := filepath.Join(base, "d")
	p := start(t, nil, "--dir", dir, "--id", web.String(), "-id", "shop-cart="+cart.String(), "--id", db.String(), "--lifetime", "10s", "-rotate-ca=2s")
	if got := p.exports["shop-cart"]; got != "unix://"+filepath.Join(dir, "shop-cart", "spiffe.sock") {
		t.Errorf("printed %q", p.exports)
	}
	sources := map[string]*workloadapi.X509Source{}
	for name, want := range map[string]spiffeid.ID{"web": web, "shop-cart": cart, "db": db} {
		sources[name] = newSource(t, p.exports[name])
		if got := svidOf(t, sources[name]).ID; got != want {
			t.Errorf("%s is %s", name, got)
		}
	}
	call(t, sources["web"], sources["shop-cart"])
	call(t, sources["db"], sources["web"]) // Across trust domains.

	first := svidOf(t, sources["web"])
	now := awaitAnotherRoot(t, sources["web"], first)
	if bytes.Equal(now.Certificates[0].RawSubjectPublicKeyInfo, first.Certificates[0].RawSubjectPublicKeyInfo) {
		t.Error("the renewed SVID has the old key")
	}
	call(t, sources["web"], sources["shop-cart"])
	call(t, sources["db"], sources["web"])

	if code := p.stop(os.Interrupt); code != 0 {
		t.Errorf("exit code %d: %s", code, p.stderr)
	}
	wantEmpty(t, base)
	wantLoud(t, p.stderr.String())
}

// awaitAnotherRoot waits until the source has an SVID of another CA.
func awaitAnotherRoot(t *testing.T, s *workloadapi.X509Source, first *x509svid.SVID) *x509svid.SVID {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		svid := svidOf(t, s)
		if !bytes.Equal(svid.Certificates[0].AuthorityKeyId, first.Certificates[0].AuthorityKeyId) {
			return svid
		}
		if err := s.WaitUntilUpdated(ctx); err != nil {
			t.Fatalf("no SVID of another CA: %v", err)
		}
	}
}

// wantLoud checks that nobody can take it for something else, whatever part of the
// output he sees.
func wantLoud(t *testing.T, stderr string) {
	t.Helper()
	said, logged, ok := strings.Cut(stderr, "\n\n")
	if !ok || !strings.Contains(said, "FOR DEVELOPMENT ONLY") {
		t.Errorf("no banner: %s", stderr)
	}
	lines := strings.Split(strings.TrimSpace(logged), "\n")
	if len(lines) < 3 {
		t.Errorf("the log has %d lines", len(lines))
	}
	for _, line := range lines {
		if !strings.Contains(line, "for development only") {
			t.Errorf("a line of the log does not say it: %s", line)
		}
	}
	if strings.Contains(stderr, "PRIVATE KEY") {
		t.Error("a key in the log")
	}
}

func TestOthersCannotConnect(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to become another user")
	}
	p := start(t, nil, "--dir", filepath.Join(newBase(t), "d"))
	address := strings.TrimPrefix(p.exports["default"], "unix://")
	connect := func(uid uint32) (string, error) {
		c := newCommand(t, nil)
		c.Env = append(os.Environ(), asClient+"="+address)
		c.SysProcAttr.Credential = &syscall.Credential{Uid: uid, Gid: uid}
		out, err := c.CombinedOutput()
		return string(out), err
	}
	if out, err := connect(nobody); err != nil {
		t.Errorf("its own user cannot connect: %v: %s", err, out)
	}
	if out, err := connect(nobody - 1); err == nil || !strings.Contains(out, "permission denied") {
		t.Errorf("another user: %v: %s", err, out)
	}
}

func TestFilesAreAsInAVolume(t *testing.T) {
	t.Parallel()
	base := newBase(t)
	p := start(t, nil, "--dir", filepath.Join(base, "d"), "--id", web.String(), "--files", "--lifetime", "10s")
	dir := filepath.Join(base, "d", "web")
	load := func() *x509svid.SVID {
		t.Helper()
		current := filepath.Join(dir, currentLink)
		target, err := os.Readlink(current) // Once: all three of one set.
		if err != nil {
			t.Fatal(err)
		}
		svid, err := x509svid.Load(filepath.Join(dir, target, certificateName), filepath.Join(dir, target, keyName))
		if err != nil {
			t.Fatal(err)
		}
		bundle, err := x509bundle.Load(web.TrustDomain(), filepath.Join(dir, target, caName))
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := x509svid.Verify(svid.Certificates, bundle); err != nil {
			t.Error(err)
		}
		return svid
	}
	source := newSource(t, p.exports["web"])
	first := load()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for bytes.Equal(svidOf(t, source).Certificates[0].Raw, first.Certificates[0].Raw) {
		if err := source.WaitUntilUpdated(ctx); err != nil {
			t.Fatal(err)
		}
	}
	// Files come before the socket's message.
	if second := load(); bytes.Equal(second.Certificates[0].Raw, first.Certificates[0].Raw) {
		t.Error("the files were not renewed")
	}
	info, err := os.Stat(filepath.Join(dir, keyName))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key's file: %v, %v", info.Mode(), err)
	}
	if code := p.stop(syscall.SIGHUP); code != 0 { // The terminal was closed.
		t.Errorf("exit code %d", code)
	}
	wantEmpty(t, base)
}

func TestSecondStart(t *testing.T) {
	t.Parallel()
	base := newBase(t)
	dir := filepath.Join(base, "d")
	first := start(t, nil, "--dir", dir)
	out, err := newCommand(t, nil, "dev", "--dir", dir).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another signet-agent dev runs in "+dir) {
		t.Errorf("a second start: %v: %s", err, out)
	}
	newSource(t, first.exports["default"]) // The first is not disturbed.

	// What a killed one leaves is taken over.
	if code := first.stop(os.Kill); code == 0 {
		t.Error("killed, it ended well")
	}
	again := start(t, nil, "--dir", dir)
	newSource(t, again.exports["default"])
	again.stop(os.Interrupt)
	if _, err := os.Stat(dir); err != nil {
		t.Errorf("a directory that was there is gone: %v", err)
	}
	wantEmpty(t, dir)
}

func TestRuntimeDirectory(t *testing.T) {
	t.Parallel()
	base := newBase(t)
	p := start(t, []string{"XDG_RUNTIME_DIR=" + base})
	if want := "unix://" + filepath.Join(base, "signet", "default", "spiffe.sock"); p.exports["default"] != want {
		t.Errorf("the socket is %s, want %s", p.exports["default"], want)
	}
	p.stop(os.Interrupt)
	wantEmpty(t, base)

	// One that others can look into is not used.
	if err := os.Chmod(base, 0o755); err != nil {
		t.Fatal(err)
	}
	temporary := newBase(t)
	p = start(t, []string{"XDG_RUNTIME_DIR=" + base, "TMPDIR=" + temporary})
	if !strings.HasPrefix(p.exports["default"], "unix://"+temporary+"/signet-dev-") {
		t.Errorf("the socket is %s", p.exports["default"])
	}
	p.stop(os.Interrupt)
	wantEmpty(t, base)
	wantEmpty(t, temporary)
}

func TestRunsAProgram(t *testing.T) {
	t.Parallel()
	base := newBase(t)
	run := func(args ...string) (stdout, stderr string, code int) {
		t.Helper()
		c := newCommand(t, []string{"XDG_RUNTIME_DIR=" + base}, append([]string{"dev"}, args...)...)
		var out, problems bytes.Buffer
		c.Stdin = strings.NewReader("input\n")
		c.Stdout, c.Stderr = &out, &problems
		if err := c.Run(); err != nil && !isExit(err) {
			t.Fatal(err)
		}
		return out.String(), problems.String(), c.ProcessState.ExitCode()
	}
	script := `read line; echo "$line"; test -S "${SPIFFE_ENDPOINT_SOCKET#unix://}" && test -S "$SIGNET_DEV_DIR/cart/spiffe.sock" && echo "$SPIFFE_ENDPOINT_SOCKET"; exit 7`
	out, problems, code := run("--id", web.String(), "--id", cart.String(), "--", "sh", "-c", script)
	lines := strings.Split(out, "\n")
	if code != 7 || len(lines) != 3 || lines[0] != "input" || !strings.HasPrefix(lines[1], "unix://"+base+"/signet-") || !strings.HasSuffix(lines[1], "/web/spiffe.sock") {
		t.Errorf("exit code %d, printed %q, %s", code, out, problems)
	}
	if !strings.Contains(problems, "FOR DEVELOPMENT ONLY") {
		t.Errorf("no banner: %s", problems)
	}
	wantEmpty(t, base)
	if _, _, code := run("--", "true"); code != 0 {
		t.Errorf("a program that ends well: exit code %d", code)
	}
	if _, problems, code := run("--", "no-such-program"); code != 127 || !strings.Contains(problems, "cannot run no-such-program") {
		t.Errorf("no such program: exit code %d, %s", code, problems)
	}
	if _, _, code := run("--", "sh", "-c", "kill -9 $$"); code != 128+9 {
		t.Errorf("a killed program: exit code %d", code)
	}
	wantEmpty(t, base)
}

func isExit(err error) bool {
	var exit *exec.ExitError
	return errors.As(err, &exit)
}

// Signals are the program's, which may take its time.
func TestSignalsGoToTheProgram(t *testing.T) {
	t.Parallel()
	base := newBase(t)
	c := newCommand(t, []string{"XDG_RUNTIME_DIR=" + base}, "dev", "--", "sh", "-c",
		`trap 'test -S "${SPIFFE_ENDPOINT_SOCKET#unix://}" && exit 3; exit 4' TERM; echo ready; while :; do read x || sleep 0.01; done`)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
		t.Fatal(err)
	}
	if err := c.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); c.ProcessState.ExitCode() != 3 {
		t.Errorf("%v, want the program's exit code 3, with the socket still there", err)
	}
	wantEmpty(t, base)
}

func TestFederatesWithFiles(t *testing.T) {
	t.Parallel()
	base := newBase(t)
	ca, err := selfca.New(selfca.Options{TrustDomain: spiffeid.RequireTrustDomainFromString("other.org")})
	if err != nil {
		t.Fatal(err)
	}
	pemBundle, err := ca.Bundle().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	jsonBundle, err := spiffebundle.FromX509Bundle(ca.Bundle()).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"pem": pemBundle, "json": jsonBundle} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(base, name)
			if err := os.WriteFile(file, content, 0o644); err != nil {
				t.Fatal(err)
			}
			p := start(t, nil, "--dir", filepath.Join(base, "d"), "--federate", "spiffe://other.org="+file)
			got, err := newSource(t, p.exports["default"]).GetX509BundleForTrustDomain(ca.Bundle().TrustDomain())
			if err != nil || !got.Equal(ca.Bundle()) {
				t.Errorf("the bundle of the other domain: %v", err)
			}
			p.stop(os.Interrupt)
		})
	}
}

// A client that holds its stream open hears that it is over, and nothing waits for it.
func TestStopsUnderAnOpenStream(t *testing.T) {
	t.Parallel()
	p := start(t, nil, "--dir", filepath.Join(newBase(t), "d"))
	c, err := net.Dial("unix", strings.TrimPrefix(p.exports["default"], "unix://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() // It never speaks.
	newSource(t, p.exports["default"])
	if code := p.stop(syscall.SIGTERM); code != 0 {
		t.Errorf("exit code %d: %s", code, p.stderr)
	}
}
