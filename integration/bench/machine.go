// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/mod/modfile"
	"golang.org/x/sys/unix"
)

// Machine is where it was measured. Nothing in it names the machine.
type Machine struct {
	CPU         string
	CPUs        int
	MemoryBytes int64
	Kernel      string
}

func thisMachine() (Machine, error) {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return Machine{}, err
	}
	memory, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return Machine{}, err
	}
	kib, err := kibibytes(memory, "MemTotal")
	if err != nil {
		return Machine{}, fmt.Errorf("/proc/meminfo: %w", err)
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return Machine{}, fmt.Errorf("uname: %w", err)
	}
	// What a builder adds to the version names the builder.
	kernel, _, _ := strings.Cut(unix.ByteSliceToString(name.Release[:]), "-")
	return Machine{CPU: cpuModel(info), CPUs: runtime.NumCPU(), MemoryBytes: kib << 10, Kernel: kernel}, nil
}

// cpuModel reads /proc/cpuinfo, which has no model name on some architectures.
func cpuModel(info []byte) string {
	for line := range bytes.Lines(info) {
		name, value, _ := strings.Cut(string(line), ":")
		if strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

// Versions are those of what was measured.
type Versions struct{ Kubernetes, CertManager, Go, Signet string }

// pinned reads the version of a module off a go.mod.
func pinned(goMod []byte, module string) (string, error) {
	mod, err := modfile.ParseLax("go.mod", goMod, nil)
	if err != nil {
		return "", err
	}
	for _, r := range mod.Require {
		if r.Mod.Path == module {
			return r.Mod.Version, nil
		}
	}
	return "", fmt.Errorf("go.mod does not require %s", module)
}

func readVersions(ctx context.Context, kubernetes, agent string) (Versions, error) {
	root, err := Repository()
	if err != nil {
		return Versions{}, err
	}
	goMod, err := os.ReadFile(filepath.Join(root, "integration", "tools", "certmanager", "go.mod"))
	if err != nil {
		return Versions{}, err
	}
	certManager, err := pinned(goMod, "github.com/cert-manager/cert-manager")
	if err != nil {
		return Versions{}, err
	}
	said, err := exec.CommandContext(ctx, agent, "--version").Output()
	if err != nil {
		return Versions{}, fmt.Errorf("ask the agent for its version: %w", err)
	}
	words := strings.Fields(string(said))
	if len(words) == 0 {
		return Versions{}, fmt.Errorf("the agent says no version")
	}
	signet := words[len(words)-1]
	// Which commit is worth knowing, but a source tree need not be a clone.
	if commit, err := exec.CommandContext(ctx, "git", "-C", root, "rev-parse", "--short=12", "HEAD").Output(); err == nil {
		signet += " at " + strings.TrimSpace(string(commit))
	}
	return Versions{Kubernetes: kubernetes, CertManager: certManager, Go: runtime.Version(), Signet: signet}, nil
}

// Repository is the root of the source tree that this was compiled from.
func Repository() (string, error) {
	_, file, _, ok := runtime.Caller(0)
	root := filepath.Join(filepath.Dir(file), "..", "..")
	if ok && filepath.IsAbs(file) {
		if _, err := os.Stat(filepath.Join(root, "deploy", "manifests")); err == nil {
			return root, nil
		}
	}
	return "", fmt.Errorf("find the repository: no deploy/manifests in %s; build this program without -trimpath, inside the repository", root)
}
