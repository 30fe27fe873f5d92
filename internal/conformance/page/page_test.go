// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package page

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/signet-spiffe/signet/internal/conformance"
)

func source(body string) *fstest.MapFile {
	return &fstest.MapFile{Data: []byte("package a\n\n" + body)}
}

func TestScanFindsTestsByTheirRules(t *testing.T) {
	proofs, err := Scan(fstest.MapFS{
		"a/b/x_test.go":              source(`func TestOne(t *testing.T) { conformance.Proves(t, "E1", "E2"); t.Run("x", func(t *testing.T) { conformance.Proves(t, "E1") }) }`),
		"integration/e2e/y_test.go":  source(`func testPart(t *testing.T) { conformance.Proves(t, "E1") }`),
		"a/a/z_test.go":              source(`func FuzzTwo(f *testing.F) { conformance.Proves(f, "E1") }`),
		"a/a/other_test.go":          source(`func TestNone(t *testing.T) {}`),
		"a/a/notest.go":              source(`func TestNotHere(t *testing.T) { conformance.Proves(t, "E3") }`),
		"a/testdata/ignored_test.go": source(`func TestNotHere(t *testing.T) { conformance.Proves(t, "E3") }`),
		".git/ignored_test.go":       source(`func TestNotHere(t *testing.T) { conformance.Proves(t, "E3") }`),
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := []Test{{"a/a", "FuzzTwo"}, {"a/b", "TestOne"}, {"integration/e2e", "testPart"}}; !slices.Equal(proofs["E1"], want) {
		t.Errorf("E1 has %v, want %v", proofs["E1"], want)
	}
	if got := list(proofs["E1"]); got != "`a/a` `FuzzTwo`; `a/b` `TestOne`; `integration/e2e` `testPart`" {
		t.Errorf("listed as %s", got)
	}
	if len(proofs["E3"]) != 0 || len(proofs["E2"]) != 1 {
		t.Errorf("found %v", proofs)
	}
	if got := proofs.Folders(); !slices.Equal(got, []string{"a/a", "a/b", "integration/e2e"}) {
		t.Errorf("folders %v", got)
	}
	if wrong := strings.Join(proofs.Untested(), "\n"); strings.Contains(wrong, "E1 ") || !strings.Contains(wrong, "E3 (MUST) has no test") {
		t.Errorf("untested: %s", wrong)
	}
}

func TestScanRefuses(t *testing.T) {
	for name, c := range map[string]struct{ body, says string }{
		"an unknown rule":        {`func TestA(t *testing.T) { conformance.Proves(t, "E99") }`, "E99"},
		"no rule":                {`func TestA(t *testing.T) { conformance.Proves(t) }`, "names no rule"},
		"a rule in a variable":   {`func TestA(t *testing.T) { conformance.Proves(t, rule) }`, "write the rule's ID out"},
		"a call in another func": {`func check(t *testing.T) { conformance.Proves(t, "E1") }`, "no test function"},
		"what is not Go":         {`func TestA( { conformance.Proves(t, "E1") }`, "a_test.go"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Scan(fstest.MapFS{"a_test.go": source(c.body)}); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v does not say %q", err, c.says)
			}
		})
	}
}

func TestARuleThatCannotHoldHasNoTest(t *testing.T) {
	wrong := Proofs{"W26": {{"a", "TestA"}}}.Untested()
	if !slices.ContainsFunc(wrong, func(s string) bool { return strings.HasPrefix(s, "W26 has a test, and a reason") }) {
		t.Errorf("said %v", wrong)
	}
}

const module = "example.org/m"

func run(events ...string) string {
	var b strings.Builder
	for _, e := range events {
		action, rest, _ := strings.Cut(e, " ")
		at, claim, isAttr := strings.Cut(rest, " = ")
		pkg, test, _ := strings.Cut(at, ":")
		if isAttr {
			fmt.Fprintf(&b, `{"Action":%q,"Package":"example.org/m/%s","Test":%q,"Key":"spiffe-rule","Value":%q}`+"\n", action, pkg, test, claim)
		} else {
			fmt.Fprintf(&b, `{"Action":%q,"Package":"example.org/m/%s","Test":%q}`+"\n", action, pkg, test)
		}
	}
	return b.String()
}

func TestVerdictsAreWhatTestsSaid(t *testing.T) {
	proofs := Proofs{"E1": {{"a", "TestA"}, {"a", "TestB"}}, "E2": {{"a", "TestA"}, {"integration/e2e", "testP"}}, "E3": {{"integration/e2e", "testP"}}}
	attrA, attrB := "attr a:TestA/sub = E1 by TestA", "attr a:TestB = E1 by TestB"
	for name, c := range map[string]struct {
		events []string
		rule   string
		want   string
	}{
		"both passed":            {[]string{attrA, "pass a:TestA/sub", attrB, "pass a:TestB"}, "E1", "holds"},
		"one failed":             {[]string{attrA, "pass a:TestA/sub", attrB, "fail a:TestB"}, "E1", "**fails**"},
		"one was skipped":        {[]string{attrA, "skip a:TestA/sub", attrB, "pass a:TestB"}, "E1", "not shown: `TestA` was skipped"},
		"one did not say it":     {[]string{"pass a:TestA/sub", attrB, "pass a:TestB"}, "E1", "not shown: `TestA` did not run"},
		"the worst counts":       {[]string{attrB, "fail a:TestB", attrA, "pass a:TestA/sub", attrB, "pass a:TestB"}, "E1", "**fails**"},
		"the cluster was not up": {[]string{"attr a:TestA = E2 by TestA", "pass a:TestA"}, "E2", "holds"},
		"the cluster disagrees":  {[]string{"attr a:TestA = E2 by TestA", "pass a:TestA", "attr integration/e2e:TestR/p = E2 by testP", "fail integration/e2e:TestR/p"}, "E2", "**fails**"},
		"the cluster alone":      {[]string{"attr integration/e2e:TestR/p = E3 by testP", "pass integration/e2e:TestR/p"}, "E3", "holds"},
		"nothing but a cluster":  {[]string{"pass a:TestA"}, "E3", "not shown: needs a cluster (`make conformance`)"},
		"not applicable":         {[]string{"pass a:TestA"}, "W26", "not applicable: the WIT profile is optional and not offered"},
		"a MAY":                  {[]string{"pass a:TestA"}, "X7", "–"},
	} {
		t.Run(name, func(t *testing.T) {
			results := Results{}
			if err := results.Add(strings.NewReader(run(c.events...)), module); err != nil {
				t.Fatal(err)
			}
			if got := Judge(proofs, results)[c.rule]; got != c.want {
				t.Errorf("%s: %q, want %q", c.rule, got, c.want)
			}
		})
	}
}

func TestResultsThatSayNothingAreRefused(t *testing.T) {
	for name, output := range map[string]string{"empty": "", "not JSON": "ok  a 0.1s\n", "cut off": run("attr a:TestA = E1 by TestA")} {
		if err := (Results{}).Add(strings.NewReader(output), module); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// complete gives every rule that needs one a test.
func complete() (Proofs, Verdicts) {
	proofs, results := Proofs{}, Results{}
	for _, group := range conformance.Groups() {
		for _, rule := range group.Rules {
			if rule.Demanded() {
				proofs[rule.ID] = []Test{{"a", "Test" + rule.ID}}
				results.add(rule.ID, Test{"a", "Test" + rule.ID}, Passed)
			}
		}
	}
	return proofs, Judge(proofs, results)
}

func TestPagesThatAreStaleAreFound(t *testing.T) {
	proofs, verdicts := complete()
	page := Render(proofs, verdicts)
	if wrong := Check(page, proofs); len(wrong) != 0 {
		t.Fatalf("a fresh page: %v", wrong)
	}
	if !bytes.Contains(page, []byte(" hold, ")) {
		t.Errorf("no summary in %.2000s", page)
	}
	replace := func(old, new string) []byte {
		t.Helper()
		if !bytes.Contains(page, []byte(old)) {
			t.Fatalf("the page has no %q", old)
		}
		return bytes.Replace(page, []byte(old), []byte(new), 1)
	}
	more := Proofs{}
	for id, tests := range proofs {
		more[id] = tests
	}
	more["E1"] = append(slices.Clone(more["E1"]), Test{"b", "TestNew"})
	for name, c := range map[string]struct {
		page   []byte
		proofs Proofs
	}{
		"a test more":             {page, more},
		"a rule reworded":         {replace("The endpoint speaks gRPC.", "The endpoint speaks."), proofs},
		"a test renamed":          {replace("`TestE1`", "`TestE2`"), proofs},
		"a verdict of its own":    {replace("`TestE1` | holds |", "`TestE1` | perhaps |"), proofs},
		"a reason of its own":     {replace("not applicable: the WIT profile", "not applicable: some profile"), proofs},
		"no reason":               {replace("not applicable: the WIT profile is optional and not offered", "holds"), proofs},
		"a row missing":           {replace("| E3 |", "| e3 |"), proofs},
		"empty":                   {nil, proofs},
		"a failure not summed up": {replace("`TestE1` | holds |", "`TestE1` | **fails** |"), proofs},
	} {
		if wrong := Check(c.page, c.proofs); len(wrong) == 0 {
			t.Errorf("%s: nothing is wrong", name)
		}
	}
}
