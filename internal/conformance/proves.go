// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"runtime"
	"strings"
	"testing"
)

// Attribute is the key of the test attributes (testing.T.Attr) by which a run
// reports what it shows. Their value is "RULE by FUNCTION".
const Attribute = "spiffe-rule"

// Proves declares that t passes only if the rules hold. It is to be called in the
// test function itself, with the rules' IDs written out: the page is checked
// against the source.
func Proves(t testing.TB, rules ...string) {
	t.Helper()
	by := caller()
	for _, id := range rules {
		rule, known := Find(id)
		switch {
		case !known:
			t.Fatalf("the table of rules has no %s", id)
		case rule.NotApplicable != "" || rule.DoesNotHold != "":
			t.Fatalf("the table says that %s is not applicable or does not hold; a test cannot show it", id)
		}
		t.Attr(Attribute, id+" by "+by)
	}
}

// caller names the function that called Proves, without what it is wrapped in.
func caller() string {
	frames := runtime.CallersFrames(callers(3))
	frame, _ := frames.Next()
	name := frame.Function[strings.LastIndexByte(frame.Function, '/')+1:] // package.Function.func1
	_, name, _ = strings.Cut(name, ".")
	name, _, _ = strings.Cut(name, ".")
	return name
}

func callers(skip int) []uintptr {
	pc := make([]uintptr, 1)
	return pc[:runtime.Callers(skip+1, pc)]
}
