// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
)

// Image is a container image made of one static binary.
type Image struct {
	// Ref is its full name, e.g. "ghcr.io/signet-spiffe/signet-agent:dev".
	Ref string
	// Binary is the host path of a statically linked executable.
	Binary string
	// Entrypoint is the command line. Default: the binary, which is at /app;
	// the first element, if given, is also where the binary is put.
	Entrypoint []string
	// User is "uid" or "uid:gid". Default root.
	User string
	// ExtraFiles maps absolute paths in the image to contents, mode 0644.
	ExtraFiles map[string][]byte
}

// imageConfig is the part of the OCI image configuration that a runtime needs
// (image-spec, config.md).
type imageConfig struct {
	Architecture string        `json:"architecture"`
	OS           string        `json:"os"`
	Config       runtimeConfig `json:"config"`
	RootFS       rootFS        `json:"rootfs"`
}

type runtimeConfig struct {
	Entrypoint []string `json:"Entrypoint"`
	User       string   `json:"User,omitempty"`
	WorkingDir string   `json:"WorkingDir"`
}

type rootFS struct {
	Type    string   `json:"type"`
	DiffIDs []string `json:"diff_ids"`
}

// archiveManifest is an entry of manifest.json in a docker-archive.
type archiveManifest struct {
	Config   string   `json:"Config"`
	RepoTags []string `json:"RepoTags"`
	Layers   []string `json:"Layers"`
}

// BuildImage writes the image as a docker-archive, which needs no Docker. The
// same input gives the same bytes.
func BuildImage(w io.Writer, img Image) error {
	if err := img.check(); err != nil {
		return err
	}
	layer, err := img.layer()
	if err != nil {
		return fmt.Errorf("build image %s: %w", img.Ref, err)
	}
	config, err := json.Marshal(imageConfig{
		Architecture: runtime.GOARCH,
		OS:           "linux",
		Config:       runtimeConfig{Entrypoint: img.entrypoint(), User: img.User, WorkingDir: "/"},
		RootFS:       rootFS{Type: "layers", DiffIDs: []string{digest(layer)}},
	})
	if err != nil {
		return fmt.Errorf("build image %s: %w", img.Ref, err)
	}
	manifest, err := json.Marshal([]archiveManifest{{
		Config: "config.json", RepoTags: []string{img.Ref}, Layers: []string{"layer.tar"},
	}})
	if err != nil {
		return fmt.Errorf("build image %s: %w", img.Ref, err)
	}
	archive := tar.NewWriter(w)
	err = errors.Join(
		addFile(archive, "layer.tar", 0o644, layer),
		addFile(archive, "config.json", 0o644, config),
		addFile(archive, "manifest.json", 0o644, manifest),
		archive.Close(),
	)
	if err != nil {
		return fmt.Errorf("build image %s: %w", img.Ref, err)
	}
	return nil
}

func (img Image) check() error {
	// Anything shorter would be completed by some tools and not by others,
	// and then not found.
	name, tag, _ := strings.Cut(path.Base(img.Ref), ":")
	if host, _, ok := strings.Cut(img.Ref, "/"); !ok || !strings.Contains(host, ".") || name == "" || tag == "" {
		return fmt.Errorf("image %q: the name must have a registry and a tag, as in example.org/name:tag", img.Ref)
	}
	if !path.IsAbs(img.entrypoint()[0]) {
		return fmt.Errorf("image %s: entrypoint %q must begin with an absolute path", img.Ref, img.Entrypoint)
	}
	for name := range img.ExtraFiles {
		if !path.IsAbs(name) || path.Clean(name) != name || name == "/" {
			return fmt.Errorf("image %s: extra file %q must be a clean absolute path", img.Ref, name)
		}
	}
	return nil
}

func (img Image) entrypoint() []string {
	if len(img.Entrypoint) > 0 {
		return img.Entrypoint
	}
	return []string{"/app"}
}

// layer is the image's only layer: the directories, the binary, and the extra
// files, owned by root.
func (img Image) layer() ([]byte, error) {
	binary, err := os.ReadFile(img.Binary)
	if err != nil {
		return nil, err
	}
	var buffer bytes.Buffer
	archive := tar.NewWriter(&buffer)
	files := slices.Sorted(maps.Keys(img.ExtraFiles))
	for _, dir := range parents(append(slices.Clone(files), img.entrypoint()[0])) {
		header := &tar.Header{Typeflag: tar.TypeDir, Name: strings.TrimPrefix(dir, "/") + "/", Mode: 0o755}
		if err := archive.WriteHeader(header); err != nil {
			return nil, err
		}
	}
	if err := addFile(archive, img.entrypoint()[0], 0o755, binary); err != nil {
		return nil, err
	}
	for _, name := range files {
		if err := addFile(archive, name, 0o644, img.ExtraFiles[name]); err != nil {
			return nil, err
		}
	}
	if err := archive.Close(); err != nil {
		return nil, err
	}
	return buffer.Bytes(), nil
}

// parents lists the directories above the paths, each once, outermost first.
func parents(paths []string) []string {
	var dirs []string
	for _, p := range paths {
		for dir := path.Dir(p); dir != "/"; dir = path.Dir(dir) {
			dirs = append(dirs, dir)
		}
	}
	slices.Sort(dirs)
	return slices.Compact(dirs)
}

func addFile(archive *tar.Writer, name string, mode int64, content []byte) error {
	header := &tar.Header{
		Typeflag: tar.TypeReg, Name: strings.TrimPrefix(name, "/"), Mode: mode, Size: int64(len(content)),
	}
	if err := archive.WriteHeader(header); err != nil {
		return err
	}
	_, err := archive.Write(content)
	return err
}

func digest(content []byte) string {
	return fmt.Sprintf("sha256:%x", sha256.Sum256(content))
}
