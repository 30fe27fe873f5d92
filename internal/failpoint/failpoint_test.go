// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package failpoint

import (
	"bytes"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const repository = "../.."

// Every point in the code is in Names, every name marks one line.
func TestNamesAreThePointsOfTheCode(t *testing.T) {
	var found []string
	err := filepath.WalkDir(repository, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (entry.Name() == "integration" || entry.Name() == "bin" || entry.Name() == "testdata" || strings.HasPrefix(entry.Name(), ".") && path != repository):
			return fs.SkipDir
		case !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		points, err := pointsOf(path)
		found = append(found, points...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(found)
	if want := slices.Sorted(slices.Values(Names)); !slices.Equal(found, want) {
		t.Errorf("the code has the points\n%q, Names lists\n%q", found, want)
	}
}

// pointsOf lists the points of a file, in the order in which they stand there.
func pointsOf(path string) ([]string, error) {
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	var points []string
	ast.Inspect(file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		f, ok := call.Fun.(*ast.SelectorExpr)
		if !ok || f.Sel.Name != "Here" {
			return true
		}
		if of, ok := f.X.(*ast.Ident); !ok || of.Name != "failpoint" {
			return true
		}
		name := "not a constant in " + path
		if text, ok := call.Args[0].(*ast.BasicLit); ok {
			name, _ = strconv.Unquote(text.Value)
		}
		points = append(points, name)
		return true
	})
	return points, nil
}

// File names of different points differ, and stay within the folder.
func TestFileNames(t *testing.T) {
	seen := map[string]string{}
	for _, name := range Names {
		file := FileName(name)
		if other, taken := seen[file]; taken || filepath.Base(file) != file {
			t.Errorf("point %s is armed by file %q, as is %q", name, file, other)
		}
		seen[file] = name
	}
}

// Nothing of this package is in a normal agent, and it is in the other one: the
// second half shows that the first looks for the right thing.
func TestANormalBuildHasNoFailpoints(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the agent twice; run without -short")
	}
	const marker = "failpoint reached, this process ends now:"
	for _, tags := range []string{"", "failpoint"} {
		binary := build(t, "./agent", "-tags="+tags)
		content, err := os.ReadFile(binary)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range append([]string{marker, Folder}, Names...) {
			if has := bytes.Contains(content, []byte(text)); has != (tags != "") {
				t.Errorf("a build with tags %q has %q in it: %t", tags, text, has)
			}
		}
	}
}

// build compiles a package of the repository.
func build(t *testing.T, pkg string, args ...string) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "binary")
	cmd := exec.Command("go", append(append([]string{"build", "-buildvcs=false", "-trimpath", "-ldflags=-s -w", "-o", binary}, args...), pkg)...)
	cmd.Dir = repository
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s %v: %v\n%s", pkg, args, err, out)
	}
	return binary
}

// An armed point ends the process, once; what is not armed, or not told where to
// look, goes on.
func TestAnArmedPointEndsTheProcess(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a program; run without -short")
	}
	binary := build(t, "./internal/failpoint/testdata/passer", "-tags=failpoint")
	dir := t.TempDir()
	pass := func(env ...string) (said string, code int) {
		cmd := exec.Command(binary)
		cmd.Env = append(os.Environ(), env...)
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
	armed := filepath.Join(dir, FileName("some/point"))
	if err := os.WriteFile(armed, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if said, code := pass(); code != 0 || !strings.Contains(said, "passed") {
		t.Errorf("without a folder the process ended with %d: %s", code, said)
	}
	said, code := pass(Folder + "=" + dir)
	if code != 137 || strings.Contains(said, "passed") || strings.Contains(said, "deferred") {
		t.Errorf("at an armed point the process ended with %d: %s", code, said)
	}
	if _, err := os.Stat(armed); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the point is still armed: %v", err)
	}
	if said, code := pass(Folder + "=" + dir); code != 0 || !strings.Contains(said, "passed") {
		t.Errorf("the second time the process ended with %d: %s", code, said)
	}
}
