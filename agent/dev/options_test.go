// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package dev

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/signet-spiffe/signet/agent/cli"
	"github.com/signet-spiffe/signet/agent/issue/selfca"
)

// execute runs the command line in this process, where it is expected to fail.
func execute(t *testing.T, args ...string) error {
	t.Helper()
	root := cli.New("v1", Command())
	root.SetOut(io.Discard)
	root.SetErr(io.Discard)
	return cli.Execute(t.Context(), root, append([]string{"dev"}, args...))
}

func TestMistakesOfUsage(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	garbage, empty, nothing := write("garbage", "garbage"), write("empty", ""), write("json", `{"keys":[]}`)
	large := write("large", strings.Repeat("x", maxBundleBytes+1))
	ca, err := selfca.New(selfca.Options{TrustDomain: web.TrustDomain()})
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := ca.Bundle().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	good := write("good", string(bundle))
	for line, want := range map[string]string{
		"--id web":                                    "it should look like spiffe://dev.local/ns/default/sa/default",
		"--id spiffe://dev.local":                     "a workload has a path",
		"--id spiffe://dev.local/":                    "trailing slash",
		"--id spiffe://dev.local/a?b":                 "should look like",
		"--id SPIFFE://dev.local/a":                   "should look like",
		"--id =spiffe://dev.local/a":                  `"" is no name for a directory`,
		"--id ../x=spiffe://dev.local/a":              `"../x" is no name for a directory`,
		"--id ..=spiffe://dev.local/a":                `".." is no name for a directory`,
		"--id a/b=spiffe://dev.local/a":               `"a/b" is no name for a directory`,
		"--id -x=spiffe://dev.local/a":                `"-x" is no name`,
		"--id spiffe://a/x/web --id spiffe://b/x/web": `is called "web" already; name one of them otherwise, as in --id other=spiffe://b/x/web`,
		"--id web=spiffe://a/x --id Web=spiffe://a/y": "A socket has one identity",
		"--lifetime 9s":                               "--lifetime 9s: must be from 10s",
		"--lifetime 9000h":                            "to 8760h",
		"--rotate-ca -1s":                             "must be 0 or at least 1s",
		"--rotate-ca 1m":                              "more than 20 CAs would be alive",
		"--key-type DSA":                              `key type "DSA" is unknown`,
		"--log-level loud":                            `"loud" is unknown`,
		"--federate other.org":                        "must be TRUST-DOMAIN=FILE",
		"--federate other.org=":                       "must be TRUST-DOMAIN=FILE",
		"--federate other.org=/no/such":               "no such file",
		"--federate OTHER=x":                          "trust domain",
		"--federate spiffe://other.org/x=" + good:     "name the trust domain alone, spiffe://other.org",
		"--federate dev.local=" + good:                "bundles are never merged",
		"--federate other.org=" + garbage:             garbage,
		"--federate other.org=" + empty:               empty,
		"--federate other.org=" + nothing:             "holds no X.509 authority",
		"--federate other.org=" + large:               "is larger than",
		"--federate o.org=" + good + " --federate spiffe://o.org=" + good: "is given twice",
		"--":                   "there is no program after --",
		"go test":              `what is "go"? A program to run stands after --`,
		"go -- test":           `what is "go"?`,
		"-dir tcp://0.0.0.0:1": "never on TCP",
		"-nonsense":            "unknown flag: --nonsense",
	} {
		t.Run(line, func(t *testing.T) {
			if err := execute(t, strings.Fields(line)...); !isUsage(err) || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want %q", err, want)
			}
		})
	}
}

// A program that was not run has not succeeded.
func TestInterruptedBeforeTheProgramRuns(t *testing.T) {
	base := newBase(t)
	dir := filepath.Join(base, "d")
	ran := filepath.Join(base, "ran")
	if err := os.Chown(base, os.Geteuid(), -1); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, test := range []struct {
		args []string
		code int
	}{{[]string{"dev", "--dir", dir}, 0}, {[]string{"dev", "--dir", dir, "--", "touch", ran}, 143}} {
		root := cli.New("v1", Command())
		root.SetOut(io.Discard)
		root.SetErr(io.Discard)
		err := cli.Execute(ctx, root, test.args)
		var exit *cli.ExitError
		if errors.As(err, &exit) != (test.code != 0) || exit != nil && exit.Code != test.code {
			t.Errorf("%q: got %v, want exit code %d", test.args, err, test.code)
		}
	}
	wantEmpty(t, base)
}

func TestNames(t *testing.T) {
	for arg, want := range map[string]string{
		"spiffe://dev.local/ns/shop/sa/web":      "web",
		"spiffe://dev.local/web":                 "web",
		"shop.web=spiffe://dev.local/ns/s/sa/w":  "shop.web",
		"W=spiffe://dev.local/ns/shop/sa/a_b.c-": "W",
	} {
		if got, err := parseIdentity(arg); err != nil || got.name != want || !strings.HasSuffix(arg, got.id.String()) {
			t.Errorf("%s: got %+v, %v", arg, got, err)
		}
	}
}

func TestHelpSaysWhatItIsFor(t *testing.T) {
	var c *cobra.Command = Command()
	for _, text := range []string{c.Short, c.Long} {
		if !strings.Contains(text, "for development only") {
			t.Errorf("help does not say what it is for: %s", text)
		}
	}
}
