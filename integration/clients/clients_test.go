// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package clients

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/signet-spiffe/signet/integration/cluster"
)

// row is a line of the table: `program`, version, three cells, `test`.
var row = regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\| (v[0-9.]+) \\|.*\\| `(test[A-Za-z]+)` \\|$")

// docs/clients.md has a line for each program, with the version that is pinned and a
// test that is run.
func TestThePageTellsWhatIsRun(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "clients.md"))
	if err != nil {
		t.Fatal(err)
	}
	list, err := os.ReadFile(filepath.Join("..", "e2e", "e2e_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	rows := row.FindAllStringSubmatch(string(page), -1)
	told := map[string][]string{}
	for _, r := range rows {
		told[r[1]] = r
	}
	if len(rows) != len(Programs) || len(told) != len(Programs) {
		t.Errorf("the page has %d lines of %d programs, %d are run", len(rows), len(told), len(Programs))
	}
	for _, p := range Programs {
		version, err := p.Version()
		if err != nil {
			t.Fatal(err)
		}
		r := told[p.Name]
		if r == nil {
			t.Errorf("the page does not tell of %s", p.Name)
			continue
		}
		if r[2] != version {
			t.Errorf("the page says %s %s, pinned is %s", p.Name, r[2], version)
		}
		if !strings.Contains(string(list), `{"clients/`+p.Name+`", `+r[3]+`}`) {
			t.Errorf("the end-to-end tests do not run %s as clients/%s", r[3], p.Name)
		}
	}
}

// The image of Python is whole: what it is started with is in it, and so is the C
// core with the libraries that it needs.
func TestPythonIsWhole(t *testing.T) {
	image, err := Python()
	if errors.Is(err, ErrNoPython) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range image.Entrypoint[1:] {
		if strings.HasPrefix(path, "/") && image.ExtraFiles[path] == nil {
			t.Errorf("the image is started with %s, which is not in it", path)
		}
	}
	for _, name := range []string{"cygrpc", "libc.so", "libstdc++.so", "/os.py"} {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(image.ExtraFiles)), func(path string) bool { return strings.Contains(path, name) }) {
			t.Errorf("the image has no %s", name)
		}
	}
	var archive bytes.Buffer
	if err := cluster.BuildImage(&archive, image); err != nil || archive.Len() > 100<<20 {
		t.Errorf("the image has %d bytes: %v", archive.Len(), err)
	}
}
