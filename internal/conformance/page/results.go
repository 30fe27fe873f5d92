// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package page

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/signet-spiffe/signet/internal/conformance"
)

// Outcome is how a test ended.
type Outcome string

// The outcomes, as test2json names them.
const (
	Passed  Outcome = "pass"
	Failed  Outcome = "fail"
	Skipped Outcome = "skip"
)

// Results are the outcomes of the tests that ran, by rule and test. A test that
// ran more than once, in several subtests, has its worst outcome.
type Results map[string]map[Test]Outcome

// event is one line of go test -json.
type event struct {
	Action     string
	Package    string
	Test       string
	Key, Value string
}

// Add reads the output of go test -json. Module is the path that package paths
// begin with.
func (r Results) Add(output io.Reader, module string) error {
	type run struct{ pkg, name string }
	claims := map[run][]string{} // values of the attribute
	lines := bufio.NewScanner(output)
	lines.Buffer(nil, 1<<20)
	read := 0
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			continue // A build's error is not JSON; the run's exit status tells of it.
		}
		read++
		at := run{e.Package, e.Test}
		switch {
		case e.Action == "attr" && e.Key == conformance.Attribute:
			claims[at] = append(claims[at], e.Value)
		case e.Action == string(Passed) || e.Action == string(Failed) || e.Action == string(Skipped):
			folder := strings.TrimPrefix(strings.TrimPrefix(e.Package, module), "/")
			for _, claim := range claims[at] {
				rule, function, _ := strings.Cut(claim, " by ")
				r.add(rule, Test{folder, function}, Outcome(e.Action))
			}
			delete(claims, at)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read results of tests: %w", err)
	}
	if read == 0 {
		return errors.New("read results of tests: there are none; was this go test -json?")
	}
	for at := range claims {
		return fmt.Errorf("read results of tests: %s of %s has no end", at.name, at.pkg)
	}
	return nil
}

func (r Results) add(rule string, test Test, outcome Outcome) {
	if r[rule] == nil {
		r[rule] = map[Test]Outcome{}
	}
	if severity(outcome) > severity(r[rule][test]) {
		r[rule][test] = outcome
	}
}

func severity(o Outcome) int {
	switch o {
	case Failed:
		return 3
	case Skipped:
		return 2
	case Passed:
		return 1
	default:
		return 0
	}
}

// Verdicts is what the page says of each rule, by its ID.
type Verdicts map[string]string

// Judge turns results into verdicts. A rule holds if its tests passed. Of a test
// that needs a cluster no result is needed if there are others.
func Judge(proofs Proofs, results Results) Verdicts {
	verdicts := Verdicts{}
	for _, group := range conformance.Groups() {
		for _, rule := range group.Rules {
			verdicts[rule.ID] = judge(rule, proofs[rule.ID], results[rule.ID])
		}
	}
	return verdicts
}

// What a verdict says of rules that have tests.
const (
	holds    = "holds"
	fails    = "**fails**"
	notShown = "not shown"
)

func judge(rule conformance.Rule, tests []Test, results map[Test]Outcome) string {
	switch {
	case rule.NotApplicable != "":
		return "not applicable: " + rule.NotApplicable
	case rule.DoesNotHold != "":
		return "**does not hold**: " + rule.DoesNotHold
	case len(tests) == 0:
		return "–"
	}
	passed := 0
	for _, test := range tests {
		switch outcome := results[test]; {
		case outcome == Failed:
			return fails
		case outcome == Passed:
			passed++
		case outcome == Skipped && !test.OnCluster():
			return fmt.Sprintf("%s: `%s` was skipped", notShown, test.Function)
		case outcome == "" && !test.OnCluster():
			return fmt.Sprintf("%s: `%s` did not run", notShown, test.Function)
		}
	}
	if passed == 0 {
		return notShown + ": needs a cluster (`make conformance`)"
	}
	return holds
}
