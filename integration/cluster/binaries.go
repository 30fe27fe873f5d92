// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/mod/modfile"
)

// Binaries maps a component ("kubelet", "etcd", …) to its file in the cache.
type Binaries map[string]string

// Components of a cluster that are built from source. componentCRDs is a
// file of manifests, taken from the same module as cert-manager's code.
const (
	componentAPIServer         = "kube-apiserver"
	componentControllerManager = "kube-controller-manager"
	componentScheduler         = "kube-scheduler"
	componentKubelet           = "kubelet"
	componentProxy             = "kube-proxy"
	componentKubectl           = "kubectl"
	componentEtcd              = "etcd"
	componentContainerd        = "containerd"
	componentShim              = "containerd-shim-runc-v2"
	componentCtr               = "ctr"
	componentCertManager       = "cert-manager-controller"
	componentWebhook           = "cert-manager-webhook"
	componentPause             = "pause"
	componentCRDs              = "cert-manager-crds.yaml"
)

const certManagerModule = "github.com/cert-manager/cert-manager"

// target is one file of the cache and how it is made.
type target struct {
	component string
	// dir is the tools module, below the tools directory.
	dir string
	// pkg is the package to build, relative to dir or an import path.
	pkg string
	// test packages are compiled with `go test -c`.
	test bool
	// ldflags come on top of "-s -w".
	ldflags string
	// manifests, if set, is a directory of the module named pkg whose YAML
	// files are joined instead of anything being compiled.
	manifests string
	// cgo programs need a C compiler, and become static binaries all the same.
	cgo bool
}

// targets lists what a cluster of the Kubernetes version (as "1.36.3") in the
// tools module kubernetesDir is made of.
func targets(kubernetesDir, version string) []target {
	const versionPackage = "k8s.io/component-base/version"
	major, rest, _ := strings.Cut(version, ".")
	minor, _, _ := strings.Cut(rest, ".")
	// Clients parse the server's version; unset, it is not one.
	ldflags := fmt.Sprintf("-X %[1]s.gitVersion=v%[2]s -X %[1]s.gitMajor=%[3]s -X %[1]s.gitMinor=%[4]s -X %[1]s.gitTreeState=clean",
		versionPackage, version, major, minor)

	var list []target
	for _, c := range []string{componentAPIServer, componentControllerManager, componentScheduler, componentKubelet, componentKubectl, componentProxy} {
		list = append(list, target{component: c, dir: kubernetesDir, pkg: "k8s.io/kubernetes/cmd/" + c, ldflags: ldflags})
	}
	list = append(list, target{component: componentEtcd, dir: "etcd", pkg: "."})
	for _, c := range []string{componentContainerd, componentShim, componentCtr} {
		list = append(list, target{component: c, dir: "containerd", pkg: "github.com/containerd/containerd/v2/cmd/" + c})
	}
	return append(list,
		target{component: componentCertManager, dir: "certmanager", pkg: "./" + componentCertManager},
		target{component: componentWebhook, dir: "certmanager", pkg: "./" + componentWebhook, test: true},
		target{component: componentCRDs, dir: "certmanager", pkg: certManagerModule, manifests: "deploy/crds"},
		target{component: componentPause, dir: "pause", pkg: "."},
	)
}

// key identifies what a target is built from: the sources and sums of its
// tools module, the toolchain and the flags. Equal keys, equal binaries.
func (t target) key(tools fs.FS, goVersion string) (string, error) {
	sum := sha256.New()
	// What most targets do not have is left out where it is not set: a field more
	// does not have everything built again.
	common := struct {
		component, dir, pkg string
		test                bool
		ldflags, manifests  string
	}{t.component, t.dir, t.pkg, t.test, t.ldflags, t.manifests}
	fmt.Fprintf(sum, "1\n%s %s/%s\n%+v\n", goVersion, runtime.GOOS, runtime.GOARCH, common)
	if t.cgo {
		fmt.Fprintln(sum, "cgo")
	}
	err := fs.WalkDir(tools, t.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name := d.Name()
		if name != "go.mod" && name != "go.sum" && filepath.Ext(name) != ".go" {
			return nil
		}
		content, err := fs.ReadFile(tools, path)
		if err != nil {
			return err
		}
		fmt.Fprintf(sum, "%s %x\n", path, sha256.Sum256(content))
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("key of %s: %w", t.component, err)
	}
	return hex.EncodeToString(sum.Sum(nil))[:16], nil
}

// EnsureBinaries returns the binaries of a Kubernetes version, building into
// the cache what is not there yet. It needs the go command, and the module
// proxy for what is not in the module cache. Concurrent callers, also from
// several processes, build once.
func EnsureBinaries(ctx context.Context, version string, progress io.Writer) (Binaries, error) {
	binaries, _, err := ensureBinaries(ctx, version, progress)
	return binaries, err
}

// ensureBinaries also returns the full version.
func ensureBinaries(ctx context.Context, version string, progress io.Writer) (Binaries, string, error) {
	tools, err := toolsDir()
	if err != nil {
		return nil, "", err
	}
	dir, full, err := kubernetesModule(os.DirFS(tools), version)
	if err != nil {
		return nil, "", err
	}
	cache, err := cacheDir()
	if err != nil {
		return nil, "", err
	}
	goVersion, err := goCommand(ctx, filepath.Join(tools, dir), "env", "GOVERSION")
	if err != nil {
		return nil, "", err
	}
	b := builder{tools: tools, cache: cache, goVersion: goVersion, progress: progress}
	binaries, err := b.ensure(ctx, targets(dir, full))
	return binaries, full, err
}

// cacheDir is where binaries are kept between runs, outside the repository.
func cacheDir() (string, error) {
	if dir := os.Getenv("SIGNET_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find a cache directory (set SIGNET_CACHE): %w", err)
	}
	return filepath.Join(dir, "signet"), nil
}

// toolsDir finds integration/tools: beside the source this was compiled from,
// or, for a binary built with -trimpath, from the working directory upwards.
func toolsDir() (string, error) {
	if dir := os.Getenv("SIGNET_TOOLS"); dir != "" {
		return filepath.Abs(dir)
	}
	marker := filepath.Join("pause", "go.mod")
	var tried []string
	try := func(dir string) bool {
		tried = append(tried, dir)
		_, err := os.Stat(filepath.Join(dir, marker))
		return err == nil
	}
	if _, file, _, ok := runtime.Caller(0); ok && filepath.IsAbs(file) {
		if dir := filepath.Join(filepath.Dir(filepath.Dir(file)), "tools"); try(dir) {
			return dir, nil
		}
	}
	wd, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find integration/tools: %w", err)
	}
	for dir := wd; ; dir = filepath.Dir(dir) {
		for _, below := range []string{"tools", "integration/tools"} {
			if candidate := filepath.Join(dir, below); try(candidate) {
				return candidate, nil
			}
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("find integration/tools (run inside the repository, or set SIGNET_TOOLS): not in %s", strings.Join(tried, ", "))
		}
	}
}

// kubernetesModule finds the tools module of a Kubernetes version, given as
// "1.36" or "1.36.3", and the full version it pins.
func kubernetesModule(tools fs.FS, version string) (dir, full string, err error) {
	found, err := fs.Glob(tools, "kubernetes-*/go.mod")
	if err != nil {
		return "", "", fmt.Errorf("look for Kubernetes versions: %w", err)
	}
	var have []string
	for _, path := range found {
		pinned, err := pinnedVersion(tools, path)
		if err != nil {
			return "", "", err
		}
		have = append(have, pinned)
		if minor := pinned[:strings.LastIndexByte(pinned, '.')]; pinned == version || minor == version {
			return filepath.Dir(path), pinned, nil
		}
	}
	return "", "", fmt.Errorf("kubernetes version %q is not pinned: there are %s", version, strings.Join(have, ", "))
}

// pinnedVersion reads the version of k8s.io/kubernetes off a go.mod.
func pinnedVersion(tools fs.FS, path string) (string, error) {
	content, err := fs.ReadFile(tools, path)
	if err != nil {
		return "", err
	}
	mod, err := modfile.ParseLax(path, content, nil)
	if err != nil {
		return "", err
	}
	for _, r := range mod.Require {
		version := strings.TrimPrefix(r.Mod.Version, "v")
		if r.Mod.Path == "k8s.io/kubernetes" && strings.Count(version, ".") >= 2 {
			return version, nil
		}
	}
	return "", fmt.Errorf("%s does not require a release of k8s.io/kubernetes", path)
}

// builder fills the cache.
type builder struct {
	tools, cache, goVersion string
	progress                io.Writer
}

// job is a target that is missing from the cache.
type job struct {
	target
	path string
}

func (b builder) ensure(ctx context.Context, list []target) (Binaries, error) {
	bin := filepath.Join(b.cache, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return nil, fmt.Errorf("create the cache: %w", err)
	}
	all := Binaries{}
	var jobs []job
	for _, t := range list {
		key, err := t.key(os.DirFS(b.tools), b.goVersion)
		if err != nil {
			return nil, err
		}
		path := filepath.Join(bin, t.component+"-"+key)
		all[t.component] = path
		jobs = append(jobs, job{t, path})
	}
	if len(missing(jobs)) == 0 {
		return all, nil
	}

	unlock, err := b.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	// Somebody else may have built while this waited for the lock.
	jobs = missing(jobs)
	began := time.Now()
	for i, j := range jobs {
		if err := b.build(ctx, j, i+1, len(jobs), began); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func missing(jobs []job) []job {
	var out []job
	for _, j := range jobs {
		if _, err := os.Stat(j.path); err != nil {
			out = append(out, j)
		}
	}
	return out
}

// lock makes this process the only one that builds into the cache, and
// removes what a builder that was killed left.
func (b builder) lock(ctx context.Context) (unlock func(), err error) {
	path := filepath.Join(b.cache, "lock")
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock the cache: %w", err)
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		fmt.Fprintf(b.progress, "waiting for another build into %s\n", b.cache)
		if err := flockContext(ctx, file); err != nil {
			return nil, fmt.Errorf("lock the cache: %w", errors.Join(err, file.Close()))
		}
	}
	leftovers, err := filepath.Glob(filepath.Join(b.cache, "build-*"))
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	for _, l := range leftovers {
		if err := os.RemoveAll(l); err != nil {
			return nil, errors.Join(err, file.Close())
		}
	}
	return func() { file.Close() }, nil
}

// flockContext waits for an exclusive lock or the end of the context. When
// the context ends first, the waiting goroutine stays until the lock is free
// and gives it up at once.
func flockContext(ctx context.Context, file *os.File) error {
	duplicate, err := syscall.Dup(int(file.Fd()))
	if err != nil {
		return err
	}
	syscall.CloseOnExec(duplicate)
	locked := make(chan error, 1)
	go func() {
		err := syscall.Flock(duplicate, syscall.LOCK_EX)
		for errors.Is(err, syscall.EINTR) {
			err = syscall.Flock(duplicate, syscall.LOCK_EX)
		}
		locked <- errors.Join(err, syscall.Close(duplicate))
	}()
	select {
	case err := <-locked:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// build makes one file beside the cache and renames it into it, so that a
// file in the cache is always whole.
func (b builder) build(ctx context.Context, j job, n, of int, began time.Time) error {
	tmp, err := os.MkdirTemp(b.cache, "build-")
	if err != nil {
		return fmt.Errorf("build %s: %w", j.component, err)
	}
	defer os.RemoveAll(tmp)

	line := func() {
		fmt.Fprintf(b.progress, "building %s (%d of %d), %s elapsed\n", j.component, n, of, time.Since(began).Round(time.Second))
	}
	line()
	stop := every(10*time.Second, line)
	defer stop()

	out := filepath.Join(tmp, "out")
	dir := filepath.Join(b.tools, j.dir)
	if j.manifests != "" {
		err = joinManifests(ctx, dir, j.pkg, j.manifests, out)
	} else {
		_, err = goCommandWith(ctx, j.environment(), dir, j.arguments(out)...)
	}
	if err != nil {
		return fmt.Errorf("build %s: %w", j.component, err)
	}
	if err := os.Rename(out, j.path); err != nil {
		return fmt.Errorf("build %s: %w", j.component, err)
	}
	return nil
}

// arguments are those of the go command that builds the target into out.
func (t target) arguments(out string) []string {
	args := []string{"build"}
	if t.test {
		args = []string{"test", "-c"}
	}
	ldflags := "-s -w " + t.ldflags
	if t.cgo {
		// Without what libc would load at run time: names and users are looked up by
		// Go's own code.
		args = append(args, "-tags=netgo,osusergo")
		ldflags += "-extldflags=-static"
	}
	return append(args, "-mod=readonly", "-trimpath", "-buildvcs=false",
		"-ldflags", strings.TrimSpace(ldflags), "-o", out, t.pkg)
}

// environment is what the target's build has of its own. Static binaries run on
// every node's root file system and in every image.
func (t target) environment() []string {
	if t.cgo {
		return []string{"CGO_ENABLED=1"}
	}
	return []string{"CGO_ENABLED=0"}
}

// every calls f at each interval until stopped; stop waits for a running call.
func every(interval time.Duration, f func()) (stop func()) {
	done := make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				f()
			case <-done:
				return
			}
		}
	})
	return func() { close(done); group.Wait() }
}

// joinManifests writes the YAML files of a module's directory as one stream.
func joinManifests(ctx context.Context, dir, module, below, out string) error {
	root, err := goCommand(ctx, dir, "list", "-mod=readonly", "-m", "-f", "{{.Dir}}", module)
	if err != nil {
		return err
	}
	paths, err := filepath.Glob(filepath.Join(root, below, "*.yaml"))
	if err != nil {
		return err
	}
	if len(paths) == 0 {
		return fmt.Errorf("no YAML files in %s of %s", below, module)
	}
	slices.Sort(paths)
	var stream bytes.Buffer
	for _, path := range paths {
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		stream.WriteString("---\n")
		stream.Write(content)
		stream.WriteString("\n")
	}
	return os.WriteFile(out, stream.Bytes(), 0o644)
}

// goCommand runs the go command in a module and returns what it printed.
func goCommand(ctx context.Context, dir string, args ...string) (string, error) {
	return goCommandWith(ctx, []string{"CGO_ENABLED=0"}, dir, args...)
}

// goCommandWith does the same with more in the environment.
func goCommandWith(ctx context.Context, environment []string, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), "GOWORK=off", "GOFLAGS="), environment...)
	// The compilers the go command started must end with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return "", fmt.Errorf("go %s in %s: %w\n%s", args[0], dir, err, tail(stderr.Bytes(), 20))
	}
	return strings.TrimSpace(stdout.String()), nil
}

// tail returns the last n lines of a text.
func tail(text []byte, n int) string {
	lines := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, "\n")
}
