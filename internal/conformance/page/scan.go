// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package page

import (
	"bytes"
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/signet-spiffe/signet/internal/conformance"
)

// Test is a test function that names a rule.
type Test struct {
	// Folder is the test's, relative to the repository, with slashes.
	Folder string
	// Function is a Test or Fuzz function, or in integration/e2e a part of one,
	// whose name begins in lower case.
	Function string
}

// OnCluster says whether the test needs a real Kubernetes.
func (t Test) OnCluster() bool { return strings.HasPrefix(t.Folder, "integration/e2e") }

// Proofs are the tests of each rule, by the rule's ID.
type Proofs map[string][]Test

// isTest matches the functions that may call Proves.
var isTest = regexp.MustCompile(`^([Tt]est|Fuzz)[A-Z0-9]`)

// Scan reads all tests below the repository's root. It is an error if one names a
// rule that the table does not have, or names rules in another way than
// conformance.Proves demands.
func Scan(repository fs.FS) (Proofs, error) {
	proofs := Proofs{}
	err := fs.WalkDir(repository, ".", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && name != "." && (strings.HasPrefix(entry.Name(), ".") || entry.Name() == "testdata" || name == "bin" || name == "logs"):
			return fs.SkipDir
		case entry.IsDir() || !strings.HasSuffix(name, "_test.go"):
			return nil
		}
		return proofs.addFile(repository, name)
	})
	if err != nil {
		return nil, fmt.Errorf("look for tests that name rules: %w", err)
	}
	for id := range proofs {
		slices.SortFunc(proofs[id], func(a, b Test) int {
			return cmp.Or(cmp.Compare(a.Folder, b.Folder), cmp.Compare(a.Function, b.Function))
		})
		proofs[id] = slices.Compact(proofs[id])
	}
	return proofs, nil
}

func (p Proofs) addFile(repository fs.FS, name string) error {
	content, err := fs.ReadFile(repository, name)
	if err != nil {
		return err
	}
	if !bytes.Contains(content, []byte("conformance.Proves(")) {
		return nil
	}
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, name, content, parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	for _, declaration := range file.Decls {
		function, ok := declaration.(*ast.FuncDecl)
		if !ok {
			continue
		}
		var wrong error
		ast.Inspect(function, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if ok && isProves(call) && wrong == nil {
				if err := p.addCall(call, Test{path.Dir(name), function.Name.Name}); err != nil {
					wrong = fmt.Errorf("%s: %w", files.Position(call.Pos()), err)
				}
			}
			return true
		})
		if wrong != nil {
			return wrong
		}
	}
	return nil
}

func isProves(call *ast.CallExpr) bool {
	selector, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || selector.Sel.Name != "Proves" {
		return false
	}
	name, ok := selector.X.(*ast.Ident)
	return ok && name.Name == "conformance"
}

func (p Proofs) addCall(call *ast.CallExpr, by Test) error {
	if !isTest.MatchString(by.Function) {
		return fmt.Errorf("%s is no test function: rules are named where they are shown", by.Function)
	}
	if len(call.Args) < 2 {
		return fmt.Errorf("%s names no rule", by.Function)
	}
	for _, argument := range call.Args[1:] {
		literal, ok := argument.(*ast.BasicLit)
		if !ok || literal.Kind != token.STRING {
			return fmt.Errorf("%s does not write the rule's ID out", by.Function)
		}
		id, err := strconv.Unquote(literal.Value)
		if err != nil {
			return err
		}
		if _, known := conformance.Find(id); !known {
			return fmt.Errorf("%s names rule %s, which the table does not have", by.Function, id)
		}
		p[id] = append(p[id], by)
	}
	return nil
}

// Untested lists the rules that need a test and have none, and those that have
// one although the table says that they cannot.
func (p Proofs) Untested() []string {
	var wrong []string
	for _, group := range conformance.Groups() {
		for _, rule := range group.Rules {
			switch tests := len(p[rule.ID]); {
			case rule.Demanded() && tests == 0:
				wrong = append(wrong, fmt.Sprintf("%s (%s) has no test, and no reason for having none", rule.ID, rule.Level))
			case tests > 0 && rule.NotApplicable+rule.DoesNotHold != "":
				wrong = append(wrong, fmt.Sprintf("%s has a test, and a reason for having none", rule.ID))
			}
		}
	}
	return wrong
}

// Folders are those of all tests, sorted, each once.
func (p Proofs) Folders() []string {
	folders := map[string]bool{}
	for _, tests := range p {
		for _, test := range tests {
			folders[test.Folder] = true
		}
	}
	return slices.Sorted(maps.Keys(folders))
}

// In are the functions of all tests in a folder, sorted, each once.
func (p Proofs) In(folder string) []string {
	functions := map[string]bool{}
	for _, tests := range p {
		for _, test := range tests {
			if test.Folder == folder {
				functions[test.Function] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(functions))
}
