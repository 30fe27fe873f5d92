// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/signet-spiffe/signet/internal/request"
)

// podEnvironment are the component's policies, by the resource that they change.
var podEnvironment = map[string]string{
	"pods":                     "signet-pod-environment",
	"pods/ephemeralcontainers": "signet-pod-environment-debug",
}

// Only pods that carry the label are looked at, and only while they are made; each
// policy is bound, without conditions of the binding's.
func TestPodEnvironmentIsForLabelledPodsAlone(t *testing.T) {
	objects := render(t, "manifests", "pod-environment")
	const label = request.Prefix + "pod-environment"
	operations := map[string]admissionv1.OperationType{"pods": admissionv1.Create, "pods/ephemeralcontainers": admissionv1.Update}
	for resource, name := range podEnvironment {
		policy := find[*admissionv1.MutatingAdmissionPolicy](t, objects, name)
		want := &admissionv1.MatchResources{
			ObjectSelector: &metav1.LabelSelector{MatchLabels: map[string]string{label: "enabled"}},
			NamespaceSelector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
				{Key: label, Operator: metav1.LabelSelectorOpNotIn, Values: []string{"disabled"}},
			}},
			ResourceRules: []admissionv1.NamedRuleWithOperations{{RuleWithOperations: admissionv1.RuleWithOperations{
				Operations: []admissionv1.OperationType{operations[resource]},
				Rule:       admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{resource}},
			}}},
		}
		if diff := cmp.Diff(want, policy.Spec.MatchConstraints); diff != "" {
			t.Errorf("%s matches (-want +got):\n%s", name, diff)
		}
		if f := policy.Spec.FailurePolicy; f == nil || *f != admissionv1.Fail {
			t.Errorf("%s: failure policy is %v, want Fail", name, f)
		}
		if policy.Spec.ReinvocationPolicy != admissionv1.IfNeededReinvocationPolicy {
			t.Errorf("%s: reinvocation policy is %q, want IfNeeded", name, policy.Spec.ReinvocationPolicy)
		}
		binding := find[*admissionv1.MutatingAdmissionPolicyBinding](t, objects, name)
		if diff := cmp.Diff(admissionv1.MutatingAdmissionPolicyBindingSpec{PolicyName: name}, binding.Spec); diff != "" {
			t.Errorf("binding %s (-want +got):\n%s", name, diff)
		}
	}
}

var quoted = regexp.MustCompile(`"([^"]*)"`)

// What the policies name is what the rest has: the driver of the CSIDriver, its
// attribute, and the path and variable of the examples.
func TestPodEnvironmentAgreesWithTheRest(t *testing.T) {
	objects := render(t, "manifests", "pod-environment")
	app := podSpecs(examples(t))["app"].Containers[0]
	path := app.VolumeMounts[0].MountPath
	if want := (corev1.EnvVar{Name: "SPIFFE_ENDPOINT_SOCKET", Value: "unix://" + path + "/spiffe.sock"}); app.Env[0] != want {
		t.Fatalf("the example has %v, want %v", app.Env[0], want)
	}
	known := map[string]bool{
		"signet-spiffe": true, path: true, "/": true, "unix://": true, "/spiffe.sock": true, app.Env[0].Name: true,
		request.DefaultDriverName: true, request.DefaultDriverName + "/delivery": true, "socket": true,
		corev1.MirrorPodAnnotationKey: true,
	}
	for _, name := range podEnvironment {
		policy := find[*admissionv1.MutatingAdmissionPolicy](t, objects, name)
		var expressions []string
		for _, c := range policy.Spec.MatchConditions {
			expressions = append(expressions, c.Expression)
		}
		for _, v := range policy.Spec.Variables {
			expressions = append(expressions, v.Expression)
		}
		for _, m := range policy.Spec.Mutations {
			if m.ApplyConfiguration == nil {
				t.Fatalf("%s has a mutation that is no apply configuration", name)
			}
			expressions = append(expressions, m.ApplyConfiguration.Expression)
		}
		all := strings.Join(expressions, "\n")
		used := map[string]bool{}
		for _, match := range quoted.FindAllStringSubmatch(all, -1) {
			used[match[1]] = true
			if !known[match[1]] {
				t.Errorf("%s names %q, which nothing else does", name, match[1])
			}
		}
		for _, word := range []string{"signet-spiffe", path, "/spiffe.sock", app.Env[0].Name, request.DefaultDriverName} {
			if !used[word] {
				t.Errorf("%s does not name %q", name, word)
			}
		}
	}
}
