// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Command generate runs the tests that name rules of the SPIFFE standards and
// writes docs/conformance.md. It is run in the repository's root:
//
//	go run ./internal/conformance/generate [-race] [-cluster=REGEXP]
//
// With -cluster, the parts of integration/e2e that match are run as well, on a
// Kubernetes of their own (as root). It fails when a test fails or a rule has
// neither test nor reason; the page is written all the same.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"

	"github.com/signet-spiffe/signet/internal/conformance/page"
)

const (
	module      = "github.com/signet-spiffe/signet"
	integration = "integration"
	output      = "docs/conformance.md"
)

type options struct {
	race    bool
	cluster string
}

func main() {
	var o options
	flag.BoolVar(&o.race, "race", false, "run the unit tests with the race detector")
	flag.StringVar(&o.cluster, "cluster", "", "also run the end-to-end tests that match this `regexp` of go test -run")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	proofs, err := page.Scan(os.DirFS("."))
	if err != nil {
		return err
	}
	results := page.Results{}
	failed := runTests(ctx, o, proofs, results)
	content := page.Render(proofs, page.Judge(proofs, results))
	if err := os.WriteFile(output, content, 0o644); err != nil {
		return err
	}
	fmt.Println("wrote", output)
	if wrong := page.Check(content, proofs); len(wrong) > 0 {
		failed = errors.Join(failed, errors.New(strings.Join(wrong, "\n")))
	}
	return failed
}

// runTests runs each folder's tests and adds what they say to results.
func runTests(ctx context.Context, o options, proofs page.Proofs, results page.Results) error {
	var failed error
	for _, folder := range proofs.Folders() {
		dir, pattern := ".", "./"+folder
		if rest, ok := strings.CutPrefix(folder, integration+"/"); ok {
			dir, pattern = integration, "./"+rest
		}
		args := []string{"test", "-json", "-count=1", "-timeout=30m"}
		if (page.Test{Folder: folder}).OnCluster() {
			if o.cluster == "" {
				continue
			}
			args = append(args, "-run="+o.cluster)
		} else {
			args = append(args, "-run=^("+strings.Join(proofs.In(folder), "|")+")$")
			if o.race {
				args = append(args, "-race")
			}
		}
		fmt.Println("go test", filepath.ToSlash(folder))
		failed = errors.Join(failed, runFolder(ctx, dir, append(args, pattern), results))
	}
	return failed
}

func runFolder(ctx context.Context, dir string, args []string, results page.Results) error {
	command := exec.CommandContext(ctx, "go", args...)
	command.Dir, command.Stderr = dir, os.Stderr
	said, ran := command.Output()
	if ran != nil {
		ran = fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), ran, failures(said))
	}
	return errors.Join(ran, results.Add(bytes.NewReader(said), module))
}

// failures picks what a reader wants to see of a run that failed.
func failures(said []byte) []byte {
	var out [][]byte
	for line := range bytes.Lines(said) {
		if bytes.Contains(line, []byte("--- FAIL")) || bytes.Contains(line, []byte("_test.go:")) || bytes.Contains(line, []byte(`"Action":"build-output"`)) {
			out = append(out, line)
		}
	}
	return bytes.Join(out, nil)
}
