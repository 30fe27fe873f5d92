// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package page

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"

	"github.com/signet-spiffe/signet/internal/conformance"
)

const introduction = `# Conformance with the SPIFFE standards

Written by ` + "`make conformance`" + `; do not edit. Each rule of the standards that concerns Signet, in our own words, with the tests
that show it and what they said when they last ran. The table of rules is
[internal/conformance/rules.go](../internal/conformance/rules.go); a test names the rules that it shows with ` + "`conformance.Proves`" + `.
` + "`go test ./docs`" + ` fails when this page is not what table and tests make of it, or when a MUST or a SHOULD has neither a test
nor a reason for having none.

Verdicts: **holds**, its tests passed; **fails**, one of them did not; **not shown**, they could not run; **not applicable**
and **does not hold**, with the reason. A MAY or a fact needs no test. Tests in ` + "`integration/e2e`" + ` ran on a real Kubernetes.
`

// Render writes the page.
func Render(proofs Proofs, verdicts Verdicts) []byte {
	var out bytes.Buffer
	out.WriteString(introduction)
	fmt.Fprintf(&out, "\n%s\n", summary(verdicts))
	for _, group := range conformance.Groups() {
		fmt.Fprintf(&out, "\n## %s\n\n| # | level | source | rule | tests | verdict |\n|---|---|---|---|---|---|\n", group.Title)
		for _, rule := range group.Rules {
			fmt.Fprintf(&out, "| %s | %s | %s | %s | %s | %s |\n",
				rule.ID, rule.Level, rule.Source, rule.Text, list(proofs[rule.ID]), verdicts[rule.ID])
		}
	}
	return out.Bytes()
}

// summary counts the rules that demand something.
func summary(verdicts Verdicts) string {
	counts := map[string]int{}
	demanding := 0
	for _, group := range conformance.Groups() {
		for _, rule := range group.Rules {
			if rule.Level == conformance.May || rule.Level == conformance.Fact {
				continue
			}
			demanding++
			kind, _, _ := strings.Cut(verdicts[rule.ID], ":")
			counts[strings.Trim(kind, "*")]++
		}
	}
	text := fmt.Sprintf("Of %d rules that demand something, %d hold", demanding, counts[holds])
	for _, kind := range []struct{ verdict, says string }{
		{"does not hold", "do not hold"}, {"not applicable", "are not applicable"}, {"fails", "**fail**"}, {notShown, "are not shown"},
	} {
		if n := counts[kind.verdict]; n > 0 {
			text += fmt.Sprintf(", %d %s", n, kind.says)
		}
	}
	return text + "."
}

// list writes tests as docs/promises.md does: `folder` `Test`, `Test`; ...
func list(tests []Test) string {
	var b strings.Builder
	folder := ""
	for _, test := range tests {
		switch {
		case folder == "":
			fmt.Fprintf(&b, "`%s` ", test.Folder)
		case folder != test.Folder:
			fmt.Fprintf(&b, "; `%s` ", test.Folder)
		default:
			b.WriteString(", ")
		}
		folder = test.Folder
		fmt.Fprintf(&b, "`%s`", test.Function)
	}
	return b.String()
}

// row matches a rule's row and its last cell.
var row = regexp.MustCompile(`(?m)^\| ([A-Z][0-9]+) \|.* \| ([^|]+) \|$`)

// ReadVerdicts reads them back from a page.
func ReadVerdicts(page []byte) Verdicts {
	verdicts := Verdicts{}
	for _, match := range row.FindAllSubmatch(page, -1) {
		verdicts[string(match[1])] = string(match[2])
	}
	return verdicts
}

// Check says what is wrong with a page: rules without tests, and where it differs
// from what Render writes with the verdicts that it has.
func Check(page []byte, proofs Proofs) []string {
	wrong := proofs.Untested()
	verdicts := ReadVerdicts(page)
	for _, group := range conformance.Groups() {
		for _, rule := range group.Rules {
			if err := checkVerdict(rule, verdicts[rule.ID], len(proofs[rule.ID])); err != "" {
				wrong = append(wrong, err)
			}
		}
	}
	if len(wrong) == 0 && !bytes.Equal(page, Render(proofs, verdicts)) {
		wrong = append(wrong, "the page is not what the table and the tests make of it")
	}
	return wrong
}

// checkVerdict says whether a verdict is one that the rule can have.
func checkVerdict(rule conformance.Rule, verdict string, tests int) string {
	fixed := tests == 0 || rule.NotApplicable+rule.DoesNotHold != ""
	if want := judge(rule, nil, nil); fixed && verdict != want {
		return fmt.Sprintf("%s: the page says %q, the table %q", rule.ID, verdict, want)
	}
	kind, _, _ := strings.Cut(verdict, ":")
	if !fixed && kind != holds && kind != fails && kind != notShown {
		return fmt.Sprintf("%s: the page says %q, which is no verdict", rule.ID, verdict)
	}
	return ""
}
