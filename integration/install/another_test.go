// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package install

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// Nothing of another installation has the name of something of the first: neither
// an object that a cluster has once, nor a path on the node.
func TestAnotherInstallationSharesNothing(t *testing.T) {
	root, err := repository()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(root, "deploy", "manifests", "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	var manifest []byte
	for _, file := range files {
		if filepath.Base(file) == "kustomization.yaml" {
			continue
		}
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		manifest = append(append(manifest, content...), "\n---\n"...)
	}
	before, err := decode(manifest)
	if err != nil {
		t.Fatal(err)
	}
	another := Another{Name: "second", AgentImage: "x:y", AgentEnv: map[string]string{"A": "b"}}
	renamed, err := another.rename(manifest)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(renamed, []byte(Namespace)) || bytes.Contains(renamed, []byte(DriverName)) {
		t.Errorf("namespace or driver of the first are in it:\n%s", renamed)
	}
	after, err := decode(renamed)
	if err != nil {
		t.Fatal(err)
	}
	if len(after) != len(before) {
		t.Fatalf("%d objects became %d", len(before), len(after))
	}
	name := func(o *unstructured.Unstructured) string {
		return o.GetKind() + " " + o.GetNamespace() + "/" + o.GetName()
	}
	for _, o := range after {
		if slices.ContainsFunc(before, func(old *unstructured.Unstructured) bool { return name(old) == name(o) }) {
			t.Errorf("%s is the first's as well", name(o))
		}
	}
	containers, _, _ := unstructured.NestedSlice(find(after, "DaemonSet", AgentName).Object, "spec", "template", "spec", "containers")
	agent := containers[0].(map[string]any)
	if env := agent["env"].([]any); agent["image"] != "x:y" || len(env) != 2 {
		t.Errorf("the agent runs %v with environment %v", agent["image"], env)
	}
	binding := find(after, "ClusterRoleBinding", "signet-agent-second")
	if role, _, _ := unstructured.NestedString(binding.Object, "roleRef", "name"); role != "signet-agent-second" {
		t.Errorf("the agents are bound to role %q", role)
	}
}
