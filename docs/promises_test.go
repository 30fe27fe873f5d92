// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Package docs_test holds docs/promises.md to the tests that it names.
package docs_test

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// named is a test as promises.md names it: `folder` and test function.
var named = regexp.MustCompile("`([a-z0-9/]+)` ((?:`[A-Za-z0-9_]+`(?:, | and )?)+)")

var (
	function    = regexp.MustCompile("`([A-Za-z0-9_]+)`")
	declaration = regexp.MustCompile(`(?m)^func ([Tt]est|Fuzz|Benchmark)([A-Za-z0-9_]+)\(`)
)

// Every promise names at least one test, and every test that is named exists.
func TestPromisesNameTestsThatExist(t *testing.T) {
	page, err := os.Open("promises.md")
	if err != nil {
		t.Fatal(err)
	}
	defer page.Close()
	promises := 0
	for lines := bufio.NewScanner(page); lines.Scan(); {
		line := lines.Text()
		if !regexp.MustCompile(`^\| [A-Z]?[0-9]+ \|`).MatchString(line) {
			continue
		}
		promises++
		mentions := named.FindAllStringSubmatch(line, -1)
		if len(mentions) == 0 {
			t.Errorf("no test is named in %q", line)
		}
		for _, mention := range mentions {
			have, err := testsIn(filepath.Join("..", filepath.FromSlash(mention[1])))
			if err != nil {
				t.Error(err)
				continue
			}
			for _, test := range function.FindAllStringSubmatch(mention[2], -1) {
				if !have[test[1]] {
					t.Errorf("%s has no test %s", mention[1], test[1])
				}
			}
		}
	}
	if promises < 40 {
		t.Errorf("found %d promises; has the page another form now?", promises)
	}
}

// testsIn lists the test functions of one folder.
func testsIn(dir string) (map[string]bool, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("no tests in %s: %w", strings.TrimPrefix(dir, "../"), err)
	}
	found := map[string]bool{}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		for _, match := range declaration.FindAllStringSubmatch(string(content), -1) {
			found[match[1]+match[2]] = true
		}
	}
	return found, nil
}
