// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/mod/modfile"
)

// Program is somebody else's command that tests run in pods. Its tools module pins
// it: what it depends on never enters another module of the repository.
type Program struct {
	// Name is the file's in the cache, and that of its tools module below
	// integration/tools.
	Name string
	// Module and Package are import paths: of the module that is pinned, and of the
	// command in it.
	Module, Package string
	// Cgo is for programs that do not compile without it. They need gcc.
	Cgo bool
}

// EnsurePrograms returns the programs' binaries. Like EnsureBinaries it builds into
// the cache what is not there yet, once.
func EnsurePrograms(ctx context.Context, programs []Program, progress io.Writer) (Binaries, error) {
	tools, err := toolsDir()
	if err != nil {
		return nil, err
	}
	cache, err := cacheDir()
	if err != nil {
		return nil, err
	}
	goVersion, err := goCommand(ctx, tools, "env", "GOVERSION")
	if err != nil {
		return nil, err
	}
	var list []target
	for _, p := range programs {
		list = append(list, target{component: p.Name, dir: p.Name, pkg: p.Package, cgo: p.Cgo})
	}
	return builder{tools: tools, cache: cache, goVersion: goVersion, progress: progress}.ensure(ctx, list)
}

// Version is the one that the program's tools module requires, as "v1.15.3".
func (p Program) Version() (string, error) {
	tools, err := toolsDir()
	if err != nil {
		return "", err
	}
	path := filepath.Join(tools, p.Name, "go.mod")
	content, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	mod, err := modfile.ParseLax(path, content, nil)
	if err != nil {
		return "", err
	}
	for _, r := range mod.Require {
		if r.Mod.Path == p.Module {
			return r.Mod.Version, nil
		}
	}
	return "", fmt.Errorf("%s does not require %s", path, p.Module)
}
