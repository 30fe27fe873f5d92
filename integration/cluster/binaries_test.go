// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

func toolsFS() fstest.MapFS {
	return fstest.MapFS{
		"kubernetes-1.36/go.mod": {Data: []byte("module a\nrequire k8s.io/kubernetes v1.36.3\n")},
		"kubernetes-1.36/go.sum": {Data: []byte("sum\n")},
		"kubernetes-1.3/go.mod":  {Data: []byte("module b\nrequire k8s.io/kubernetes v1.3.9\n")},
		"etcd/go.mod":            {Data: []byte("module c\n")},
		"etcd/main.go":           {Data: []byte("package main\n")},
		"etcd/README":            {Data: []byte("hello\n")},
	}
}

func TestKubernetesModule(t *testing.T) {
	for _, test := range []struct{ version, dir, full, err string }{
		{"1.36", "kubernetes-1.36", "1.36.3", ""},
		{"1.36.3", "kubernetes-1.36", "1.36.3", ""},
		{"1.3", "kubernetes-1.3", "1.3.9", ""},
		{"1.36.4", "", "", "there are 1.3.9, 1.36.3"},
		{"1", "", "", "is not pinned"},
		{"", "", "", "is not pinned"},
	} {
		dir, full, err := kubernetesModule(toolsFS(), test.version)
		if dir != test.dir || full != test.full || (err == nil) != (test.err == "") {
			t.Errorf("%q: got %q, %q, %v", test.version, dir, full, err)
		}
		if err != nil && !strings.Contains(err.Error(), test.err) {
			t.Errorf("%q: error %v lacks %q", test.version, err, test.err)
		}
	}
}

// TestKey: the key follows everything that goes into a binary, and nothing
// else.
func TestKey(t *testing.T) {
	key := func(target target, tools fstest.MapFS, goVersion string) string {
		t.Helper()
		k, err := target.key(tools, goVersion)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	etcd := target{component: "etcd", dir: "etcd", pkg: "."}
	base := key(etcd, toolsFS(), "go1.26.0")

	readme := toolsFS()
	readme["etcd/README"].Data = []byte("bye\n")
	readme["kubernetes-1.36/go.sum"].Data = []byte("other\n")
	if key(etcd, readme, "go1.26.0") != base {
		t.Error("the key follows what is not built from")
	}
	for name, change := range map[string]func(target *target, tools fstest.MapFS, goVersion *string){
		"source":    func(_ *target, tools fstest.MapFS, _ *string) { tools["etcd/main.go"].Data = []byte("package x\n") },
		"go.mod":    func(_ *target, tools fstest.MapFS, _ *string) { tools["etcd/go.mod"].Data = []byte("module d\n") },
		"new file":  func(_ *target, tools fstest.MapFS, _ *string) { tools["etcd/go.sum"] = &fstest.MapFile{} },
		"toolchain": func(_ *target, _ fstest.MapFS, goVersion *string) { *goVersion = "go1.26.1" },
		"ldflags":   func(target *target, _ fstest.MapFS, _ *string) { target.ldflags = "-X a=b" },
		"package":   func(target *target, _ fstest.MapFS, _ *string) { target.pkg = "./x" },
		"cgo":       func(target *target, _ fstest.MapFS, _ *string) { target.cgo = true },
	} {
		changed, tools, goVersion := etcd, toolsFS(), "go1.26.0"
		change(&changed, tools, &goVersion)
		if key(changed, tools, goVersion) == base {
			t.Errorf("the key does not follow a change of %s", name)
		}
	}
	if _, err := (target{component: "x", dir: "missing"}).key(toolsFS(), "go1.26.0"); err == nil {
		t.Error("a missing tools module has a key")
	}
}

func TestTargets(t *testing.T) {
	var names []string
	for _, target := range targets("kubernetes-1.36", "1.36.3") {
		names = append(names, target.component)
		if target.component == componentKubelet {
			want := []string{"build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags",
				"-s -w -X k8s.io/component-base/version.gitVersion=v1.36.3 -X k8s.io/component-base/version.gitMajor=1" +
					" -X k8s.io/component-base/version.gitMinor=36 -X k8s.io/component-base/version.gitTreeState=clean",
				"-o", "out", "k8s.io/kubernetes/cmd/kubelet"}
			if diff := cmp.Diff(want, target.arguments("out")); diff != "" {
				t.Errorf("kubelet's build (-want +got):\n%s", diff)
			}
		}
		if target.component == componentWebhook && target.arguments("out")[0] != "test" {
			t.Errorf("the webhook's build: %q", target.arguments("out"))
		}
	}
	want := []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl", "kube-proxy", "etcd",
		"containerd", "containerd-shim-runc-v2", "ctr", "cert-manager-controller", "cert-manager-webhook", "cert-manager-crds.yaml", "pause"}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("targets (-want +got):\n%s", diff)
	}
}

// TestPinnedVersions: the versions that this repository pins are there, and
// the default is among them.
func TestPinnedVersions(t *testing.T) {
	tools, err := toolsDir()
	if err != nil {
		t.Fatal(err)
	}
	for version, full := range map[string]string{"1.34": "1.34.4", "1.35": "1.35.4", "1.36": DefaultKubernetesVersion} {
		if _, got, err := kubernetesModule(os.DirFS(tools), version); err != nil || got != full {
			t.Errorf("%s: got %q, %v", version, got, err)
		}
	}
}

// smallTool makes a tools module that builds in no time.
func smallTool(t *testing.T, source string) (builder, target) {
	t.Helper()
	tools := t.TempDir()
	dir := filepath.Join(tools, "small")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"go.mod": "module small\n\ngo 1.26.0\n", "main.go": source} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b := builder{tools: tools, cache: filepath.Join(t.TempDir(), "cache"), goVersion: "go", progress: io.Discard}
	return b, target{component: "small", dir: "small", pkg: "."}
}

func TestEnsureBuildsOnce(t *testing.T) {
	b, tool := smallTool(t, "package main\n\nfunc main() {}\n")
	var progress bytes.Buffer
	b.progress = &progress
	first, err := b.ensure(t.Context(), []target{tool})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := progress.String(), "building small (1 of 1), 0s elapsed\n"; got != want {
		t.Errorf("progress is %q, want %q", got, want)
	}
	if info, err := os.Stat(first["small"]); err != nil || info.Mode()&0o111 == 0 {
		t.Errorf("the binary: %v, %v", info, err)
	}
	progress.Reset()
	second, err := b.ensure(t.Context(), []target{tool})
	if err != nil {
		t.Fatal(err)
	}
	if progress.Len() > 0 || second["small"] != first["small"] {
		t.Errorf("built again: %q, %q", progress.String(), second)
	}
}

// TestEnsureConcurrently: builders that find the same thing missing build it
// once; the others say that they wait.
func TestEnsureConcurrently(t *testing.T) {
	b, tool := smallTool(t, "package main\n\nfunc main() {}\n")
	const n = 4
	outputs := make([]bytes.Buffer, n)
	errs := make(chan error, n)
	for i := range n {
		each := b
		each.progress = &outputs[i]
		go func() {
			_, err := each.ensure(t.Context(), []target{tool})
			errs <- err
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	built := 0
	for i := range outputs {
		built += strings.Count(outputs[i].String(), "building small (1 of 1), 0s")
	}
	if built != 1 {
		t.Errorf("built %d times", built)
	}
	left, err := filepath.Glob(filepath.Join(b.cache, "build-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

func TestEnsureErrors(t *testing.T) {
	b, tool := smallTool(t, "package main\n\nfunc main() { undefined() }\n")
	_, err := b.ensure(t.Context(), []target{tool})
	if err == nil || !strings.Contains(err.Error(), "build small") || !strings.Contains(err.Error(), "undefined: undefined") {
		t.Errorf("got %v", err)
	}
	found, err := filepath.Glob(filepath.Join(b.cache, "bin", "*"))
	if err != nil || len(found) > 0 {
		t.Errorf("in the cache: %q, %v", found, err)
	}
}

// TestLockGivesUp: whoever waits for a build can be interrupted.
func TestLockGivesUp(t *testing.T) {
	b, _ := smallTool(t, "")
	if err := os.MkdirAll(b.cache, 0o755); err != nil {
		t.Fatal(err)
	}
	unlock, err := b.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("stopped")
	waiting := b
	waiting.progress = writerFunc(func([]byte) { cancel(stop) })
	if _, err := waiting.lock(ctx); !errors.Is(err, stop) {
		t.Errorf("got %v, want %v", err, stop)
	}
}
