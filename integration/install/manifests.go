// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package install

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// Where things are in the manifests.
const (
	Namespace    = "signet-system"
	AgentName    = "signet-agent"
	ApproverName = "signet-approver"
	// AgentServiceAccount is the agent's user name at the API server.
	AgentServiceAccount = "system:serviceaccount:" + Namespace + ":" + AgentName
	// IssuerName is the ClusterIssuer of deploy/examples.
	IssuerName = "spiffe-ca"
	// DriverName is the CSI driver's.
	DriverName = "spiffe.csi.cert-manager.io"
)

// Requester modes.
const (
	RequesterAgent = "agent"
	RequesterPod   = "pod"
	// RequesterPodSecrets is RequesterPod with kubelet handing over the tokens
	// as secrets, for Kubernetes 1.35 and later.
	RequesterPodSecrets = "pod-secrets"
)

// Options are what a user would change of the manifests. The zero value is the
// manifests as they are.
type Options struct {
	// TrustDomain, if set, is that of every identity.
	TrustDomain string
	// Duration, if not zero, is the lifetime of every SVID.
	Duration time.Duration
	// Requester is RequesterAgent (default), RequesterPod or RequesterPodSecrets.
	Requester string
	// ApproveOthers adds the component with which the approver decides about
	// requests that have nothing to do with SPIFFE as well.
	ApproveOthers bool
	// WatchPods adds the component with which the agent reads pods.
	WatchPods bool
	// AgentFlags and ApproverFlags are set in the containers' arguments, by
	// flag name with dashes: {"--log-level": "5"}.
	AgentFlags, ApproverFlags map[string]string
}

// kustomization is what a user would write who wants these options, relative to
// the directory it is in. Deploy is the path of deploy/ from there.
func (o Options) kustomization(deploy string) ([]byte, error) {
	overlays := map[string]string{
		"": "manifests", RequesterAgent: "manifests", RequesterPod: "requester-pod", RequesterPodSecrets: "requester-pod-secrets",
	}
	overlay, ok := overlays[o.Requester]
	if !ok {
		return nil, fmt.Errorf("requester %q: want %q, %q or %q", o.Requester, RequesterAgent, RequesterPod, RequesterPodSecrets)
	}
	content := map[string][]string{"resources": {filepath.Join(deploy, overlay)}}
	if o.ApproveOthers {
		content["components"] = append(content["components"], filepath.Join(deploy, "approve-others"))
	}
	if o.WatchPods {
		content["components"] = append(content["components"], filepath.Join(deploy, "watch-pods"))
	}
	return yaml.Marshal(content)
}

// both are the flags that agent and approver must agree on.
func (o Options) both() map[string]string {
	flags := map[string]string{}
	if o.TrustDomain != "" {
		flags["--trust-domain"] = o.TrustDomain
	}
	if o.Duration != 0 {
		flags["--certificate-request-duration"] = o.Duration.String()
	}
	return flags
}

// kustomize prints what `kubectl apply -k` would send. Deploy is an absolute
// path.
func kustomize(ctx context.Context, kubectl, deploy string, o Options) ([]byte, error) {
	dir, err := os.MkdirTemp("", "signet-kustomize-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	relative, err := filepath.Rel(dir, deploy) // kustomize takes no absolute paths
	if err != nil {
		return nil, err
	}
	content, err := o.kustomization(relative)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), content, 0o600); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, kubectl, "kustomize", dir)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("kubectl kustomize: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return stdout.Bytes(), nil
}

// edit changes the containers' arguments and leaves everything else alone.
func edit(manifest []byte, o Options) ([]byte, error) {
	objects, err := decode(manifest)
	if err != nil {
		return nil, err
	}
	changes := []struct {
		kind, name string
		flags      []map[string]string
	}{
		{"DaemonSet", AgentName, []map[string]string{o.both(), o.AgentFlags}},
		{"Deployment", ApproverName, []map[string]string{o.both(), o.ApproverFlags}},
	}
	for _, change := range changes {
		object := find(objects, change.kind, change.name)
		if object == nil {
			return nil, fmt.Errorf("the manifests have no %s %s", change.kind, change.name)
		}
		for _, flags := range change.flags {
			if err := setFlags(object, flags); err != nil {
				return nil, fmt.Errorf("%s %s: %w", change.kind, change.name, err)
			}
		}
	}
	return encode(objects)
}

func find(objects []*unstructured.Unstructured, kind, name string) *unstructured.Unstructured {
	for _, o := range objects {
		if o.GetKind() == kind && o.GetName() == name {
			return o
		}
	}
	return nil
}

// setFlags sets flags of the only container: those that are there in place,
// others at the end.
func setFlags(workload *unstructured.Unstructured, flags map[string]string) error {
	path := []string{"spec", "template", "spec", "containers"}
	containers, found, err := unstructured.NestedSlice(workload.Object, path...)
	if err != nil || !found || len(containers) != 1 {
		return errors.Join(fmt.Errorf("has %d containers, one was expected", len(containers)), err)
	}
	container, ok := containers[0].(map[string]any)
	if !ok {
		return errors.New("its container is not an object")
	}
	args, _, err := unstructured.NestedStringSlice(container, "args")
	if err != nil {
		return err
	}
	if err := unstructured.SetNestedStringSlice(container, withFlags(args, flags), "args"); err != nil {
		return err
	}
	containers[0] = container
	return unstructured.SetNestedSlice(workload.Object, containers, path...)
}

func withFlags(args []string, flags map[string]string) []string {
	out := make([]string, 0, len(args)+len(flags))
	done := map[string]bool{}
	for _, arg := range args {
		name, _, _ := strings.Cut(arg, "=")
		if value, ok := flags[name]; ok {
			arg = name + "=" + value
			done[name] = true
		}
		out = append(out, arg)
	}
	for _, name := range slices.Sorted(maps.Keys(flags)) {
		if !done[name] {
			out = append(out, name+"="+flags[name])
		}
	}
	return out
}

func decode(manifest []byte) ([]*unstructured.Unstructured, error) {
	decoder := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader(manifest), 4096)
	var objects []*unstructured.Unstructured
	for {
		var document json.RawMessage
		err := decoder.Decode(&document)
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, fmt.Errorf("decode manifests: %w", err)
		}
		if len(document) == 0 || bytes.Equal(document, []byte("null")) {
			continue // nothing but comments
		}
		object := &unstructured.Unstructured{}
		if err := object.UnmarshalJSON(document); err != nil {
			return nil, fmt.Errorf("decode manifests: %w", err)
		}
		objects = append(objects, object)
	}
}

func encode(objects []*unstructured.Unstructured) ([]byte, error) {
	var out bytes.Buffer
	for _, object := range objects {
		content, err := yaml.Marshal(object.Object)
		if err != nil {
			return nil, fmt.Errorf("encode %s %s: %w", object.GetKind(), object.GetName(), err)
		}
		out.WriteString("---\n")
		out.Write(content)
	}
	return out.Bytes(), nil
}
