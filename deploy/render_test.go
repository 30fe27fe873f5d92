// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	jsonpatch "github.com/evanphx/json-patch/v5"
	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/apimachinery/pkg/util/yaml"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	sigsyaml "sigs.k8s.io/yaml"
)

// scheme knows every type that may stand in a manifest.
var scheme = func() *runtime.Scheme {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientscheme.AddToScheme, cmapi.AddToScheme} {
		if err := add(s); err != nil {
			panic(err)
		}
	}
	return s
}()

// decode turns one document into its type. A field that the type does not have,
// or has twice, is an error.
func decode(t *testing.T, document []byte) runtime.Object {
	t.Helper()
	o, _, err := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer().Decode(document, nil, nil)
	if err != nil {
		t.Fatalf("decode: %v\n%s", err, document)
	}
	return o
}

// documents splits a file.
func documents(t *testing.T, path string) [][]byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return split(t, content)
}

func split(t *testing.T, content []byte) [][]byte {
	t.Helper()
	var all [][]byte
	reader := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(content)))
	for {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		var probe map[string]any
		if err := sigsyaml.Unmarshal(document, &probe); err != nil {
			t.Fatalf("%v\n%s", err, document)
		}
		if len(probe) > 0 {
			all = append(all, document)
		}
	}
}

// kustomization is as much of kustomize's format as is used here; anything more
// is an error.
type kustomization struct {
	metav1.TypeMeta `json:",inline"`
	Resources       []string `json:"resources"`
	Components      []string `json:"components"`
	Patches         []struct {
		Path   string `json:"path"`
		Patch  string `json:"patch"`
		Target struct {
			Kind string `json:"kind"`
			Name string `json:"name"`
		} `json:"target"`
	} `json:"patches"`
}

func readKustomization(t *testing.T, dir string) kustomization {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(dir, "kustomization.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var k kustomization
	if err := sigsyaml.UnmarshalStrict(content, &k); err != nil {
		t.Fatalf("%s: %v", dir, err)
	}
	return k
}

// render does what "kubectl apply -k" would apply. TestRenderingIsKustomizes
// holds it against kustomize itself.
func render(t *testing.T, dir string, components ...string) []runtime.Object {
	t.Helper()
	objects := renderInto(t, nil, dir)
	for _, c := range components {
		objects = renderInto(t, objects, c)
	}
	return objects
}

func renderInto(t *testing.T, objects []runtime.Object, dir string) []runtime.Object {
	t.Helper()
	k := readKustomization(t, dir)
	for _, resource := range k.Resources {
		path := filepath.Join(dir, resource)
		if info, err := os.Stat(path); err != nil {
			t.Fatal(err)
		} else if info.IsDir() {
			objects = renderInto(t, objects, path)
			continue
		}
		for _, document := range documents(t, path) {
			objects = append(objects, decode(t, document))
		}
	}
	for _, p := range k.Patches {
		if p.Path == "" {
			patchJSON(t, objects, p.Target.Kind, p.Target.Name, p.Patch)
			continue
		}
		for _, document := range documents(t, filepath.Join(dir, p.Path)) {
			decode(t, document) // strictly: a misspelt field in a patch is an error too
			patchStrategic(t, objects, document)
		}
	}
	return objects
}

func nameOf(o runtime.Object) (kind, name string) {
	return o.GetObjectKind().GroupVersionKind().Kind, o.(metav1.Object).GetName()
}

// patched replaces the one object of that kind and name.
func patched(t *testing.T, objects []runtime.Object, kind, name string, patch func(original []byte, o runtime.Object) ([]byte, error)) {
	t.Helper()
	for i, o := range objects {
		if k, n := nameOf(o); k != kind || n != name {
			continue
		}
		original, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		result, err := patch(original, o)
		if err != nil {
			t.Fatalf("patch %s %s: %v", kind, name, err)
		}
		objects[i] = decode(t, result)
		return
	}
	t.Fatalf("a patch is for %s %s, which does not exist", kind, name)
}

func patchStrategic(t *testing.T, objects []runtime.Object, document []byte) {
	t.Helper()
	kind, name := nameOf(decode(t, document))
	patched(t, objects, kind, name, func(original []byte, o runtime.Object) ([]byte, error) {
		patch, err := sigsyaml.YAMLToJSON(document)
		if err != nil {
			return nil, err
		}
		return strategicpatch.StrategicMergePatch(original, patch, o)
	})
}

func patchJSON(t *testing.T, objects []runtime.Object, kind, name, operations string) {
	t.Helper()
	patched(t, objects, kind, name, func(original []byte, _ runtime.Object) ([]byte, error) {
		asJSON, err := sigsyaml.YAMLToJSON([]byte(operations))
		if err != nil {
			return nil, err
		}
		patch, err := jsonpatch.DecodePatch(asJSON)
		if err != nil {
			return nil, err
		}
		return patch.Apply(original)
	})
}

// variants are the installations that the README names.
var variants = map[string]func(t *testing.T) []runtime.Object{
	"manifests":             func(t *testing.T) []runtime.Object { return render(t, "manifests") },
	"requester-pod":         func(t *testing.T) []runtime.Object { return render(t, "requester-pod") },
	"requester-pod-secrets": func(t *testing.T) []runtime.Object { return render(t, "requester-pod-secrets") },
	"approve-others":        func(t *testing.T) []runtime.Object { return render(t, "manifests", "approve-others") },
	"runtime-issuer":        func(t *testing.T) []runtime.Object { return render(t, "manifests", "runtime-issuer") },
	"watch-pods":            func(t *testing.T) []runtime.Object { return render(t, "manifests", "watch-pods") },
	"pod-environment":       func(t *testing.T) []runtime.Object { return render(t, "manifests", "pod-environment") },
	"delegates":             func(t *testing.T) []runtime.Object { return render(t, "manifests", "delegates") },
}

func TestRenderingIsKustomizes(t *testing.T) {
	kubectl, err := exec.LookPath("kubectl")
	if err != nil {
		t.Skip("no kubectl here to compare with")
	}
	for name, variant := range variants {
		t.Run(name, func(t *testing.T) {
			dir := name
			if readKustomization(t, name).Kind == "Component" {
				dir = copyWithComponent(t, name)
			}
			out, err := exec.CommandContext(t.Context(), kubectl, "kustomize", dir).Output()
			if err != nil {
				var exit *exec.ExitError
				if errors.As(err, &exit) {
					err = fmt.Errorf("%w: %s", err, exit.Stderr)
				}
				t.Fatal(err)
			}
			var want []string
			for _, document := range split(t, out) {
				want = append(want, canonical(t, decode(t, document)))
			}
			var got []string
			for _, o := range variant(t) {
				got = append(got, canonical(t, o))
			}
			slices.Sort(want)
			slices.Sort(got)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("rendered here differs from kubectl kustomize (-kubectl +here):\n%s", diff)
			}
		})
	}
}

// copyWithComponent makes the kustomization of the README's examples.
func copyWithComponent(t *testing.T, component string) string {
	t.Helper()
	dir := t.TempDir()
	for _, part := range []string{"manifests", component} {
		if err := os.CopyFS(filepath.Join(dir, part), os.DirFS(part)); err != nil {
			t.Fatal(err)
		}
	}
	mine := "resources: [manifests]\ncomponents: [" + component + "]\n"
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(mine), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func canonical(t *testing.T, o runtime.Object) string {
	t.Helper()
	y, err := sigsyaml.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(y))
}
