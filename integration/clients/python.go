// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package clients

import (
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/signet-spiffe/signet/integration/cluster"
)

// PythonImage is what pods name to run workload.py.
const PythonImage = "third-party.example/python3-grpcio:installed"

// ErrNoPython says that Python with gRPC is not there.
var ErrNoPython = errors.New("python3-grpcio, of Debian, is not installed (apt-get install --no-install-recommends python3-grpcio)")

//go:embed workload.py
var workloadScript []byte

// grpcPackage is where Debian's python3-grpcio has gRPC's C core.
const grpcPackage = "/usr/lib/python3/dist-packages/grpc"

// Python makes an image of the machine's own Python, of Debian, with gRPC's C core,
// that runs workload.py. Without them the error is ErrNoPython.
func Python() (cluster.Image, error) {
	python, err := filepath.EvalSymlinks("/usr/bin/python3")
	if err != nil {
		return cluster.Image{}, ErrNoPython
	}
	library := "/usr/lib/" + filepath.Base(python)
	files := map[string][]byte{"/workload.py": workloadScript}
	var binaries []string
	for _, path := range append(pythonFiles(grpcPackage), append(pythonFiles(library), python)...) {
		if files[path], err = os.ReadFile(path); err != nil {
			return cluster.Image{}, fmt.Errorf("make an image of Python: %w", err)
		}
		if filepath.Ext(path) != ".py" {
			binaries = append(binaries, path)
		}
	}
	if !slices.ContainsFunc(binaries, func(path string) bool { return strings.HasPrefix(path, grpcPackage) }) {
		return cluster.Image{}, ErrNoPython
	}
	loader, libraries, err := needed(binaries)
	if err != nil {
		return cluster.Image{}, fmt.Errorf("make an image of Python: %w", err)
	}
	for _, path := range libraries {
		if files[path], err = os.ReadFile(path); err != nil {
			return cluster.Image{}, fmt.Errorf("make an image of Python: %w", err)
		}
	}
	// The loader is what the kernel executes: it maps the rest, which needs to be
	// readable only.
	return cluster.Image{
		Ref: PythonImage, Binary: loader, Entrypoint: []string{loader, python, "-B", "/workload.py"},
		User: "65532:65532", ExtraFiles: files,
	}, nil
}

// pythonFiles are the sources and extensions below a folder, without what no program
// imports.
func pythonFiles(dir string) []string {
	var files []string
	// A folder that is not there has no files.
	_ = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return nil
		case entry.IsDir() && slices.Contains([]string{"test", "tests", "__pycache__", "idlelib", "lib2to3", "tkinter", "ensurepip"}, entry.Name()):
			return fs.SkipDir
		case entry.Type().IsRegular() && (filepath.Ext(path) == ".py" || filepath.Ext(path) == ".so"):
			files = append(files, path)
		}
		return nil
	})
	return files
}

// A line of ldd(1): the loader has no arrow.
var loaded = regexp.MustCompile(`(?m)^\s+(?:\S+ => )?(/\S+) \(0x`)

// needed are the shared libraries of the binaries, and the loader that loads them.
func needed(binaries []string) (loader string, libraries []string, err error) {
	// ldd complains of what is not executable and goes on.
	out, err := exec.Command("ldd", binaries...).Output()
	if err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) || len(out) == 0 {
			return "", nil, fmt.Errorf("ldd: %w", err)
		}
	}
	for _, match := range loaded.FindAllSubmatch(out, -1) {
		path := string(match[1])
		if strings.HasPrefix(filepath.Base(path), "ld-linux") {
			loader = path
		} else if !slices.Contains(libraries, path) {
			libraries = append(libraries, path)
		}
	}
	if loader == "" {
		return "", nil, errors.New("ldd names no loader")
	}
	return loader, libraries, nil
}
