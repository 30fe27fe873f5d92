// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/signet-spiffe/signet/workloadapi"
)

var duration = regexp.MustCompile(`after [0-9.]+[nµm]?s`)

// The text is spire-agent's, version 1.15.3.
func TestFetchPrintsAsSPIREDoes(t *testing.T) {
	i := entitled(t, "", "second")
	socket, _ := serve(t, i)
	own, _ := i.Bundles.Get(web.TrustDomain())
	root := own.X509Authorities()[0]
	one, two := i.SVIDs[0].Certificates[0], i.SVIDs[1].Certificates[0]
	foreign := i.Bundles.Bundles()[1].X509Authorities()[0]
	want := fmt.Sprintf(`Received 2 svids after T

SPIFFE ID:		spiffe://example.org/ns/shop/sa/web
SVID Valid After:	%[1]s
SVID Valid Until:	%[2]s
CA #1 Valid After:	%[5]s
CA #1 Valid Until:	%[6]s
[spiffe://other.org] CA #1 Valid After:	%[7]s
[spiffe://other.org] CA #1 Valid Until:	%[8]s

SPIFFE ID:		spiffe://example.org/ns/shop/sa/web
Hint:			second
SVID Valid After:	%[3]s
SVID Valid Until:	%[4]s
CA #1 Valid After:	%[5]s
CA #1 Valid Until:	%[6]s
[spiffe://other.org] CA #1 Valid After:	%[7]s
[spiffe://other.org] CA #1 Valid Until:	%[8]s

`, one.NotBefore, one.NotAfter, two.NotBefore, two.NotAfter, root.NotBefore, root.NotAfter, foreign.NotBefore, foreign.NotAfter)
	for _, args := range [][]string{{"api", "fetch", "-socketPath", socket}, {"api", "fetch", "x509", "--socketPath=unix://" + socket}} {
		got, _, err := command(t, args...)
		if err != nil {
			t.Fatal(err)
		}
		if got = duration.ReplaceAllString(got, "after T"); got != want {
			t.Errorf("%q prints\n%s\nwant\n%s", args, got, want)
		}
	}
}

func TestJSONHoldsNoKey(t *testing.T) {
	i := entitled(t, "")
	socket, _ := serve(t, i)
	got, _, err := command(t, "api", "fetch", "-output", "json", "-socketPath", socket)
	if err != nil {
		t.Fatal(err)
	}
	var answer struct {
		SVIDs []map[string]any  `json:"svids"`
		Other map[string]string `json:"federated_bundles"`
		CRL   []string          `json:"crl"`
	}
	if err := json.Unmarshal([]byte(got), &answer); err != nil {
		t.Fatal(err)
	}
	if len(answer.SVIDs) != 1 || answer.SVIDs[0]["spiffe_id"] != web.String() || answer.Other["spiffe://other.org"] == "" || answer.CRL == nil {
		t.Errorf("got %s", got)
	}
	if key, ok := answer.SVIDs[0]["x509_svid_key"]; !ok || key != "" {
		t.Errorf("the key is %v", key)
	}
	_, key, err := i.SVIDs[0].MarshalRaw()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(got, base64.StdEncoding.EncodeToString(key)) {
		t.Error("the key is in the output")
	}
}

func TestWrite(t *testing.T) {
	i := entitled(t, "", "second")
	socket, _ := serve(t, i)
	dir := t.TempDir()
	// An older key that others could read.
	if err := os.WriteFile(filepath.Join(dir, "svid.0.key"), []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	got, _, err := command(t, "api", "fetch", "-silent", "-write", dir, "-socketPath", socket)
	if err != nil || got != "" {
		t.Fatalf("printed %q, %v", got, err)
	}
	modes := map[string]fs.FileMode{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		modes[e.Name()] = info.Mode()
	}
	want := map[string]fs.FileMode{
		"svid.0.pem": 0o644, "svid.0.key": 0o600, "bundle.0.pem": 0o644, "federated_bundle.0.0.pem": 0o644,
		"svid.1.pem": 0o644, "svid.1.key": 0o600, "bundle.1.pem": 0o644, "federated_bundle.1.0.pem": 0o644,
	}
	if fmt.Sprint(modes) != fmt.Sprint(want) {
		t.Errorf("files are %v, want %v", modes, want)
	}
	for n, svid := range i.SVIDs {
		loaded, err := x509svid.Load(filepath.Join(dir, fmt.Sprintf("svid.%d.pem", n)), filepath.Join(dir, fmt.Sprintf("svid.%d.key", n)))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(loaded.Certificates[0].Raw, svid.Certificates[0].Raw) {
			t.Errorf("SVID %d is another", n)
		}
	}
	bundle, err := x509bundle.Load(web.TrustDomain(), filepath.Join(dir, "bundle.0.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if own, _ := i.Bundles.Get(web.TrustDomain()); !bundle.Equal(own) {
		t.Error("the bundle is another")
	}
}

func TestWriteFollowsNoLink(t *testing.T) {
	socket, _ := serve(t, entitled(t, ""))
	dir, elsewhere := t.TempDir(), filepath.Join(t.TempDir(), "stolen")
	if err := os.Symlink(elsewhere, filepath.Join(dir, "svid.0.key")); err != nil {
		t.Fatal(err)
	}
	_, _, err := command(t, "api", "fetch", "-write", dir, "-socketPath", socket)
	if err == nil || !strings.Contains(err.Error(), "svid.0.key is there and is no regular file") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Lstat(elsewhere); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the key was written elsewhere: %v", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("a set that cannot be written leaves %v, %v", entries, err)
	}
}

func TestWhatGoesWrongIsSaid(t *testing.T) {
	ready, _ := serve(t, entitled(t, ""))
	pending, _ := serve(t, workloadapi.Identity{Status: workloadapi.Pending, TrustDomain: web.TrustDomain()})
	refused, _ := serve(t, workloadapi.Identity{Status: workloadapi.NotEntitled, TrustDomain: web.TrustDomain()})
	starting, _ := serve(t, workloadapi.Identity{})
	t.Setenv("SPIFFE_ENDPOINT_SOCKET", "")
	for line, want := range map[string]string{
		"api fetch -socketPath /no/such":                                       "there is no socket at /no/such",
		"api fetch -timeout 50ms -socketPath " + pending:                       "no answer within 50ms (-timeout); the identity is being issued",
		"api fetch -socketPath " + refused:                                     "PermissionDenied: no identity issued; this socket's workload has no identity",
		"api fetch -socketPath " + starting:                                    "Unavailable: workload api is starting",
		"api fetch -write /no/such -socketPath " + ready:                       "-write /no/such: there is no such directory",
		"api fetch jwt -audience x -socketPath " + ready:                       "JWT functionality is disabled",
		"api validate jwt -audience x -svid y -socketPath " + ready:            "",
		"healthcheck -socketPath " + pending:                                   "exit status 1",
		"healthcheck -socketPath /no/such":                                     "exit status 1",
		"USAGE api fetch -output yaml -socketPath " + ready:                    `want pretty or json`,
		"USAGE api fetch jwt -socketPath " + ready:                             "audience must be specified",
		"USAGE api validate jwt -svid x -socketPath " + ready:                  "audience must be specified",
		"USAGE api validate jwt -audience x -socketPath " + ready:              "svid must be specified",
		"USAGE api fetch -timeout -1s -socketPath " + ready:                    "must not be negative",
		"USAGE api fetch -socketPath tcp://127.0.0.1:1":                        "-socketPath \"tcp://127.0.0.1:1\": only Unix sockets",
		"USAGE api fetch extra -socketPath " + ready:                           `takes no argument, but there is "extra"`,
		"USAGE api validate":                                                   "which of jwt?",
		"USAGE healthcheck -timeout soon -socketPath " + ready:                 `invalid argument "soon"`,
		"USAGE api fetch -write -silent -timeout 1s -nonsense -socketPath /no": "unknown flag: --nonsense",
	} {
		t.Run(line, func(t *testing.T) {
			line, usage := strings.CutPrefix(line, "USAGE ")
			_, _, err := command(t, strings.Fields(line)...)
			if err == nil || !strings.Contains(err.Error(), want) || isUsage(err) != usage {
				t.Errorf("got %v (usage: %t), want %q", err, isUsage(err), want)
			}
		})
	}
}

func TestHealthcheck(t *testing.T) {
	ready, _ := serve(t, entitled(t, ""))
	pending, _ := serve(t, workloadapi.Identity{Status: workloadapi.Pending, TrustDomain: web.TrustDomain()})
	for line, want := range map[string]string{
		"healthcheck -socketPath " + ready:            "Agent is healthy.\n",
		"healthcheck -verbose -socketPath " + ready:   "Checking agent health...\nAgent is healthy.\n",
		"healthcheck -shallow -socketPath " + pending: "Agent is healthy.\n",
	} {
		if got, _, err := command(t, strings.Fields(line)...); err != nil || got != want {
			t.Errorf("%s: printed %q, %v", line, got, err)
		}
	}
	_, got, err := command(t, "healthcheck", "-socketPath", pending)
	var exit *ExitError
	if !errors.As(err, &exit) || exit.Code != 1 || got != "Agent is unhealthy: agent returned status \"NOT_SERVING\"\n" {
		t.Errorf("pending: printed %q, %v", got, err)
	}
}

// The flag wins over the variable, the variable over what is found.
func TestWhichSocket(t *testing.T) {
	none := func() []string { return nil }
	two := func() []string { return []string{"/a", "/b"} }
	for name, test := range map[string]struct {
		flag, env string
		known     func() []string
		want      string
	}{
		"flag":             {"/flag", "unix:///env", two, "/flag"},
		"environment":      {"", "unix:///env", two, "/env"},
		"found":            {"", "", func() []string { return []string{"/a"} }, "/a"},
		"not one":          {"", "", none, ""},
		"more than one":    {"", "", two, ""},
		"bad environment":  {"", "tcp://127.0.0.1:1", none, ""},
		"path in variable": {"", "/env", none, "/env"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("SPIFFE_ENDPOINT_SOCKET", test.env)
			got, err := (&endpoint{socketPath: test.flag, known: test.known}).path()
			if got != test.want || (test.want == "") != isUsage(err) {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

func TestSocketsOfDevAreFound(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_RUNTIME_DIR", dir)
	t.Setenv("SPIFFE_ENDPOINT_SOCKET", "")
	if err := os.MkdirAll(filepath.Join(dir, "signet", "web"), 0o700); err != nil {
		t.Fatal(err)
	}
	socket, _ := serve(t, entitled(t, ""))
	if err := os.Rename(socket, filepath.Join(dir, "signet", "web", "spiffe.sock")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := command(t, "api", "fetch"); err != nil {
		t.Error(err)
	}
}

func TestTokenFromStandardInput(t *testing.T) {
	socket, _ := serve(t, entitled(t, ""))
	_, _, err := commandWithInput(t, "\n", "api", "validate", "jwt", "-audience", "x", "-svid", "-", "-socketPath", socket)
	// An empty token does reach the server, which says so.
	if err == nil || !strings.Contains(err.Error(), "SVID is not valid: svid must be specified") {
		t.Errorf("got %v", err)
	}
}

func TestWatchPrintsEachUpdate(t *testing.T) {
	first, second := entitled(t, ""), entitled(t, "")
	socket, w := serve(t, first)
	for _, format := range []string{"pretty", "json"} {
		t.Run(format, func(t *testing.T) {
			w.Set(first)
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			r, out := io.Pipe()
			root := New("v1", Commands()...)
			root.SetOut(out)
			ended := make(chan error, 1)
			go func() {
				err := Execute(ctx, root, []string{"api", "watch", "-socketPath", socket, "-output", format})
				_ = out.Close()
				ended <- err
			}()
			lines := bufio.NewScanner(r)
			lines.Buffer(nil, 1<<20)
			for _, i := range []workloadapi.Identity{first, second} {
				w.Set(i)
				leaf := i.SVIDs[0].Certificates[0]
				awaitLine(t, lines, map[string]string{
					"pretty": "SVID Valid Until:\t" + leaf.NotAfter.String(),
					"json":   base64.StdEncoding.EncodeToString(leaf.Raw),
				}[format])
			}
			go func() { _, _ = io.Copy(io.Discard, r) }() // What it is printing when it is stopped.
			stop()
			if err := <-ended; err != nil {
				t.Errorf("Ctrl-C gives %v", err)
			}
		})
	}
}

func awaitLine(t *testing.T, lines *bufio.Scanner, part string) {
	t.Helper()
	for lines.Scan() {
		if strings.Contains(lines.Text(), "PRIVATE") || strings.Contains(lines.Text(), `"x509_svid_key":"M`) {
			t.Errorf("a key: %s", lines.Text())
		}
		if strings.Contains(lines.Text(), part) {
			return
		}
	}
	t.Fatalf("the output ended without %q: %v", part, lines.Err())
}

// A server that is not to be trusted cannot have a wrong SVID written, nor paint on
// the terminal.
func TestAnswersAreVerified(t *testing.T) {
	i, other := entitled(t, ""), entitled(t, "")
	i.Bundles = other.Bundles // The SVID does not chain to it.
	socket, _ := serve(t, i)
	dir := t.TempDir()
	if _, _, err := command(t, "api", "fetch", "-write", dir, "-socketPath", socket); err == nil || !strings.Contains(err.Error(), "not what it should be") {
		t.Errorf("got %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("written: %v, %v", entries, err)
	}
	hinted := entitled(t, "a\x1b]0;title\ab")
	socket, _ = serve(t, hinted)
	got, _, err := command(t, "api", "fetch", "-socketPath", socket)
	if err != nil || strings.ContainsAny(got, "\x1b\a") || !strings.Contains(got, "a ]0;title b") {
		t.Errorf("printed %q, %v", got, err)
	}
}

// The PEM of a key is what x509svid reads; a type that others do not know is none.
func TestKeyIsPKCS8(t *testing.T) {
	socket, _ := serve(t, entitled(t, ""))
	dir := t.TempDir()
	if _, _, err := command(t, "api", "fetch", "-write", dir, "-socketPath", socket); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "svid.0.key"))
	if err != nil {
		t.Fatal(err)
	}
	if block, rest := pem.Decode(b); block == nil || block.Type != "PRIVATE KEY" || len(rest) != 0 {
		t.Errorf("the file is not one block PRIVATE KEY")
	}
}
