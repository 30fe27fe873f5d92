// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func testImage(t *testing.T) Image {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "binary")
	if err := os.WriteFile(binary, []byte("ELF"), 0o600); err != nil {
		t.Fatal(err)
	}
	return Image{
		Ref: "example.org/a/b:1", Binary: binary, Entrypoint: []string{"/usr/bin/b", "--flag"}, User: "65532:65532",
		ExtraFiles: map[string][]byte{"/etc/b/config": []byte("x"), "/etc/passwd": []byte("y")},
	}
}

// entries reads a tar: names with mode, and contents.
func entries(t *testing.T, archive []byte) (names []string, contents map[string][]byte) {
	t.Helper()
	contents = map[string][]byte{}
	reader := tar.NewReader(bytes.NewReader(archive))
	for {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return names, contents
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(reader)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, header.FileInfo().Mode().String()+" "+header.Name)
		contents[header.Name] = content
	}
}

func TestBuildImage(t *testing.T) {
	image := testImage(t)
	var first, second bytes.Buffer
	for _, w := range []io.Writer{&first, &second} {
		if err := BuildImage(w, image); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("the same image has other bytes the second time")
	}

	_, outer := entries(t, first.Bytes())
	var manifest []archiveManifest
	if err := json.Unmarshal(outer["manifest.json"], &manifest); err != nil {
		t.Fatal(err)
	}
	want := []archiveManifest{{Config: "config.json", RepoTags: []string{image.Ref}, Layers: []string{"layer.tar"}}}
	if diff := cmp.Diff(want, manifest); diff != "" {
		t.Errorf("manifest (-want +got):\n%s", diff)
	}
	var config imageConfig
	if err := json.Unmarshal(outer["config.json"], &config); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(runtimeConfig{Entrypoint: image.Entrypoint, User: image.User, WorkingDir: "/"}, config.Config); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{digest(outer["layer.tar"])}, config.RootFS.DiffIDs); diff != "" {
		t.Errorf("layers (-want +got):\n%s", diff)
	}

	names, files := entries(t, outer["layer.tar"])
	wantNames := []string{
		"drwxr-xr-x etc/", "drwxr-xr-x etc/b/", "drwxr-xr-x usr/", "drwxr-xr-x usr/bin/",
		"-rwxr-xr-x usr/bin/b", "-rw-r--r-- etc/b/config", "-rw-r--r-- etc/passwd",
	}
	if diff := cmp.Diff(wantNames, names); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	if string(files["usr/bin/b"]) != "ELF" || string(files["etc/passwd"]) != "y" {
		t.Errorf("contents: %q", files)
	}
}

func TestBuildImageErrors(t *testing.T) {
	for name, change := range map[string]struct {
		do  func(*Image)
		err string
	}{
		"no registry":         {func(i *Image) { i.Ref = "agent:1" }, "registry and a tag"},
		"no tag":              {func(i *Image) { i.Ref = "example.org/agent" }, "registry and a tag"},
		"empty tag":           {func(i *Image) { i.Ref = "example.org/agent:" }, "registry and a tag"},
		"relative entrypoint": {func(i *Image) { i.Entrypoint = []string{"b"} }, "absolute path"},
		"relative file":       {func(i *Image) { i.ExtraFiles = map[string][]byte{"a": nil} }, "clean absolute path"},
		"escaping file":       {func(i *Image) { i.ExtraFiles = map[string][]byte{"/../a": nil} }, "clean absolute path"},
		"no binary":           {func(i *Image) { i.Binary += ".missing" }, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			image := testImage(t)
			change.do(&image)
			if err := BuildImage(io.Discard, image); err == nil || !strings.Contains(err.Error(), change.err) {
				t.Errorf("got %v, want %q", err, change.err)
			}
		})
	}
}
