// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package docs_test

import (
	"os"
	"testing"

	"github.com/signet-spiffe/signet/internal/conformance/page"
)

// The page is what table and tests make of it, and every rule that demands
// something has a test or a reason. The verdicts are those of the last run.
func TestConformancePageIsWhatTheTestsMakeOfIt(t *testing.T) {
	proofs, err := page.Scan(os.DirFS(".."))
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile("conformance.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, wrong := range page.Check(content, proofs) {
		t.Errorf("%s; run make conformance", wrong)
	}
}
