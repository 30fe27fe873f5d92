// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package install

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

const twoWorkloads = `apiVersion: apps/v1
kind: DaemonSet
metadata: {name: signet-agent}
spec:
  template:
    spec:
      containers:
      - name: signet-agent
        args: ["--trust-domain=cluster.local", "--node-id=$(NODE_NAME)"]
---
# nothing but a comment
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: signet-approver}
spec:
  replicas: 2
  template:
    spec:
      containers:
      - name: signet-approver
        args: ["--trust-domain=cluster.local"]
`

func argsOf(t *testing.T, objects []*unstructured.Unstructured, kind, name string) []string {
	t.Helper()
	containers, _, err := unstructured.NestedSlice(find(objects, kind, name).Object, "spec", "template", "spec", "containers")
	if err != nil {
		t.Fatal(err)
	}
	args, _, err := unstructured.NestedStringSlice(containers[0].(map[string]any), "args")
	if err != nil {
		t.Fatal(err)
	}
	return args
}

func TestEditChangesOnlyTheFlagsThatWereNamed(t *testing.T) {
	edited, err := edit([]byte(twoWorkloads), Options{
		TrustDomain: "example.org",
		Duration:    90 * time.Second,
		AgentFlags:  map[string]string{"--log-level": "5"},
	})
	if err != nil {
		t.Fatal(err)
	}
	objects, err := decode(edited)
	if err != nil {
		t.Fatal(err)
	}
	wantAgent := []string{"--trust-domain=example.org", "--node-id=$(NODE_NAME)", "--certificate-request-duration=1m30s", "--log-level=5"}
	if diff := cmp.Diff(wantAgent, argsOf(t, objects, "DaemonSet", AgentName)); diff != "" {
		t.Errorf("agent's arguments (-want +got):\n%s", diff)
	}
	wantApprover := []string{"--trust-domain=example.org", "--certificate-request-duration=1m30s"}
	if diff := cmp.Diff(wantApprover, argsOf(t, objects, "Deployment", ApproverName)); diff != "" {
		t.Errorf("approver's arguments (-want +got):\n%s", diff)
	}
	replicas, _, err := unstructured.NestedFieldNoCopy(find(objects, "Deployment", ApproverName).Object, "spec", "replicas")
	if err != nil || replicas != int64(2) {
		t.Errorf("replicas are %v (%T), %v; want 2", replicas, replicas, err)
	}
}

func TestEditOfManifestsWithoutTheAgentIsAnError(t *testing.T) {
	_, approver, _ := strings.Cut(twoWorkloads, "# nothing but a comment\n---\n")
	_, err := edit([]byte(approver), Options{})
	if err == nil || !strings.Contains(err.Error(), "no DaemonSet "+AgentName) {
		t.Errorf("got %v, want an error that names the DaemonSet", err)
	}
}

func TestKustomizationNamesOverlayAndComponent(t *testing.T) {
	for want, options := range map[string]Options{
		"components:\n- ../deploy/approve-others\nresources:\n- ../deploy/requester-pod\n":                     {Requester: RequesterPod, ApproveOthers: true},
		"components:\n- ../deploy/approve-others\n- ../deploy/watch-pods\nresources:\n- ../deploy/manifests\n": {ApproveOthers: true, WatchPods: true},
	} {
		got, err := options.kustomization("../deploy")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, string(got)); diff != "" {
			t.Errorf("kustomization (-want +got):\n%s", diff)
		}
	}
}

func TestUnknownRequesterIsAnError(t *testing.T) {
	if _, err := (Options{Requester: "node"}).kustomization("deploy"); err == nil {
		t.Error("requester \"node\" was taken")
	}
}
