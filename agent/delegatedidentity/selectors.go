// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package delegatedidentity

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

// selectorType is SPIRE's name for what its Kubernetes attestor finds out.
const selectorType = "k8s"

// maxSelectors is far more than the kinds there are: each can be given once to any
// effect.
const maxSelectors = 32

// kinds are the selectors that can be checked here, by their name in SPIRE's
// "name:value".
var kinds = map[string]func(Workload) string{
	"ns":       func(w Workload) string { return w.Namespace },
	"sa":       func(w Workload) string { return w.ServiceAccount },
	"pod-name": func(w Workload) string { return w.Pod },
	"pod-uid":  func(w Workload) string { return w.PodUID },
}

// condition is one selector, understood.
type condition struct {
	of    func(Workload) string
	value string
}

// conditions are selectors that must all be true of a workload.
type conditions []condition

// parse understands selectors. Its errors say which one is wrong, and what there is.
func parse(selectors []*types.Selector) (conditions, error) {
	switch {
	case len(selectors) == 0:
		return nil, errors.New("no selectors: give at least one of k8s:ns:…, k8s:sa:…, k8s:pod-name:…, k8s:pod-uid:…")
	case len(selectors) > maxSelectors:
		return nil, fmt.Errorf("%d selectors: at most %d", len(selectors), maxSelectors)
	}
	parsed := make(conditions, 0, len(selectors))
	for _, s := range selectors {
		name, value, _ := strings.Cut(s.GetValue(), ":")
		of := kinds[name]
		if s.GetType() != selectorType || of == nil || value == "" {
			return nil, fmt.Errorf("selector %.100q: cannot be checked by this agent; it knows k8s:ns:…, k8s:sa:…, k8s:pod-name:… and k8s:pod-uid:…", s.GetType()+":"+s.GetValue())
		}
		parsed = append(parsed, condition{of, value})
	}
	return parsed, nil
}

// match says whether all conditions are true of w.
func (c conditions) match(w Workload) bool {
	for _, condition := range c {
		if condition.of(w) != condition.value {
			return false
		}
	}
	return true
}
