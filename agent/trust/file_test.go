// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sys/unix"
)

func write(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// records is a slog.Handler that hands messages to a channel, so that a test can
// wait for what it cannot see otherwise.
type records chan string

func (r records) Enabled(context.Context, slog.Level) bool { return true }
func (r records) Handle(_ context.Context, rec slog.Record) error {
	line := rec.Message
	rec.Attrs(func(a slog.Attr) bool { line += fmt.Sprintf(" %s=%v", a.Key, a.Value); return true })
	r <- line
	return nil
}
func (r records) WithAttrs([]slog.Attr) slog.Handler { return r }
func (r records) WithGroup(string) slog.Handler      { return r }

func (r records) await(t *testing.T, words string) string {
	t.Helper()
	for {
		select {
		case line := <-r:
			if strings.Contains(line, words) {
				return line
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("no log line with %q", words)
		}
	}
}

func follow(t *testing.T, path string, opts ...Option) (*File, records) {
	t.Helper()
	log := make(records, 100)
	f, err := NewFileSource(path, domain, slog.New(log), opts...)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { f.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	return f, log
}

// awaitNames waits for changes until the bundle is as wanted.
func awaitNames(t *testing.T, s Source, want ...string) {
	t.Helper()
	late := time.After(10 * time.Second)
	for {
		b, changed := s.Bundle()
		if fmt.Sprint(names(b)) == fmt.Sprint(want) {
			return
		}
		select {
		case <-changed:
		case <-late:
			t.Fatalf("bundle holds %v, want %v", names(b), want)
		}
	}
}

// kubelet lays a ConfigMap out as ca.crt → ..data/ca.crt, ..data → ..stamp, and
// swaps ..data.
func kubeletSwap(t *testing.T, dir, stamp string, content []byte) {
	t.Helper()
	must(t, os.Mkdir(filepath.Join(dir, stamp), 0o700))
	write(t, filepath.Join(dir, stamp, "ca.crt"), content)
	old, _ := os.Readlink(filepath.Join(dir, "..data"))
	must(t, os.Symlink(stamp, filepath.Join(dir, "..data_tmp")))
	must(t, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	if old == "" {
		must(t, os.Symlink("..data/ca.crt", filepath.Join(dir, "ca.crt")))
	} else {
		must(t, os.RemoveAll(filepath.Join(dir, old)))
	}
}

func TestFileFollows(t *testing.T) {
	type scene struct {
		path   string
		change func(t *testing.T, content []byte, n int)
	}
	scenes := map[string]func(t *testing.T, dir string, first []byte) scene{
		"kubelet's symbolic link swap": func(t *testing.T, dir string, first []byte) scene {
			kubeletSwap(t, dir, "..0", first)
			return scene{filepath.Join(dir, "ca.crt"), func(t *testing.T, content []byte, n int) {
				kubeletSwap(t, dir, fmt.Sprintf("..%d", n), content)
			}}
		},
		"atomic rename": func(t *testing.T, dir string, first []byte) scene {
			path := filepath.Join(dir, "ca.crt")
			write(t, path, first)
			return scene{path, func(t *testing.T, content []byte, _ int) {
				write(t, path+".new", content)
				must(t, os.Rename(path+".new", path))
			}}
		},
		"written in place": func(t *testing.T, dir string, first []byte) scene {
			path := filepath.Join(dir, "ca.crt")
			write(t, path, first)
			return scene{path, func(t *testing.T, content []byte, _ int) { write(t, path, content) }}
		},
		"removed and made again": func(t *testing.T, dir string, first []byte) scene {
			path := filepath.Join(dir, "ca.crt")
			write(t, path, first)
			return scene{path, func(t *testing.T, content []byte, _ int) {
				must(t, os.Remove(path))
				write(t, path, content)
			}}
		},
		"directory replaced": func(t *testing.T, dir string, first []byte) scene {
			sub := filepath.Join(dir, "ca")
			must(t, os.Mkdir(sub, 0o700))
			write(t, filepath.Join(sub, "ca.crt"), first)
			return scene{filepath.Join(sub, "ca.crt"), func(t *testing.T, content []byte, n int) {
				must(t, os.Rename(sub, fmt.Sprintf("%s.old%d", sub, n)))
				must(t, os.Mkdir(sub+".new", 0o700))
				write(t, filepath.Join(sub+".new", "ca.crt"), content)
				must(t, os.Rename(sub+".new", sub))
			}}
		},
		"link to the directory swapped": func(t *testing.T, dir string, first []byte) scene {
			// The versions lie elsewhere: only the link's own directory shows the swap.
			versions := t.TempDir()
			lay := func(t *testing.T, content []byte, n int) {
				version := filepath.Join(versions, fmt.Sprint(n))
				must(t, os.Mkdir(version, 0o700))
				write(t, filepath.Join(version, "ca.crt"), content)
				must(t, os.Symlink(version, filepath.Join(dir, "next")))
				must(t, os.Rename(filepath.Join(dir, "next"), filepath.Join(dir, "current")))
			}
			lay(t, first, 0)
			return scene{filepath.Join(dir, "current", "ca.crt"), lay}
		},
	}
	for name, set := range scenes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newCert(t, "0", nil)
			s := set(t, t.TempDir(), pemOf(a))
			f, _ := follow(t, s.path)
			wantNames(t, f, "0")
			for n := 1; n <= 4; n++ {
				s.change(t, pemOf(newCert(t, fmt.Sprint(n), nil), a), n)
				awaitNames(t, f, fmt.Sprint(n), "0")
			}
		})
	}
}

// A change that came between loading and running is not lost.
func TestFileChangedBeforeRun(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ca.crt")
	write(t, path, pemOf(newCert(t, "a", nil)))
	f, err := NewFileSource(path, domain, nil)
	must(t, err)
	write(t, path, pemOf(newCert(t, "b", nil)))
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { f.Run(ctx) })
	defer running.Wait()
	defer cancel()
	awaitNames(t, f, "b")
}

// Bad content never replaces good, is logged and counted, and good content after
// it is taken.
func TestFileBadContentKeepsGood(t *testing.T) {
	good := newCert(t, "good", nil)
	for name, bad := range map[string][]byte{
		"empty":   {},
		"garbage": []byte("garbage"),
		"half":    pemOf(good)[:100],
		"leaf":    pemOf(good, newCert(t, "leaf", notCA)),
		"key":     append(pemOf(good), "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n"...),
		"expired": pemOf(newCert(t, "x", expiredCA)),
		"huge":    append(pemOf(good), make([]byte, maxBundleBytes)...),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "ca.crt")
			write(t, path, pemOf(good))
			registry := prometheus.NewRegistry()
			metrics, err := NewMetrics(registry)
			must(t, err)
			f, log := follow(t, path, WithMetrics(metrics))
			_, changed := f.Bundle()

			write(t, path+".new", bad)
			must(t, os.Rename(path+".new", path))
			line := log.await(t, "trust bundle refused")
			if strings.Contains(line, "c2VjcmV0") {
				t.Errorf("log holds key material: %s", line)
			}
			if closed(changed) {
				t.Error("the bundle changed")
			}
			wantNames(t, f, "good")
			if n := testutil.ToFloat64(metrics.refusals.WithLabelValues(domain.Name())); n != 1 {
				t.Errorf("%v refusals counted, want 1", n)
			}

			write(t, path+".new", pemOf(newCert(t, "better", nil)))
			must(t, os.Rename(path+".new", path))
			awaitNames(t, f, "better")
			if n := testutil.ToFloat64(metrics.authorities.WithLabelValues(domain.Name())); n != 1 {
				t.Errorf("gauge of authorities is %v", n)
			}
		})
	}
}

func TestFileLeavesExpiredOut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ca.crt")
	write(t, path, pemOf(newCert(t, "old", expiredCA), newCert(t, "a", nil)))
	f, err := NewFileSource(path, domain, nil)
	must(t, err)
	wantNames(t, f, "a")
}

func TestNewFileSourceFails(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	must(t, unix.Mkfifo(fifo, 0o600))
	leaf := filepath.Join(dir, "leaf")
	write(t, leaf, pemOf(newCert(t, "x", notCA)))
	empty := filepath.Join(dir, "empty")
	write(t, empty, nil)
	loop := filepath.Join(dir, "loop")
	must(t, os.Symlink(loop, loop))
	for name, path := range map[string]string{
		"missing": filepath.Join(dir, "missing"), "directory": dir, "fifo": fifo, "leaf": leaf, "empty": empty, "loop": loop,
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := NewFileSource(path, domain, nil); err == nil || !strings.Contains(err.Error(), path) {
				t.Errorf("error %v, want one that names %s", err, path)
			}
		})
	}
}

// The way to a file survives anything that can stand in a file system.
func TestWayToStrangePlaces(t *testing.T) {
	dir := t.TempDir()
	loop := filepath.Join(dir, "loop")
	must(t, os.Symlink("loop/../loop/x", loop))
	if steps := wayTo(loop).steps; len(steps) == 0 {
		t.Error("no steps to a loop")
	}
	missing := filepath.Join(dir, "a", "b", "c")
	if _, ok := wayTo(missing).steps[missing]; !ok {
		t.Error("the missing file is no step of its own way")
	}
	must(t, os.Mkdir(filepath.Join(dir, "d"), 0o700))
	must(t, os.Symlink("../target", filepath.Join(dir, "d", "up")))
	if steps := wayTo(filepath.Join(dir, "d", "up")).steps; !hasStep(steps, filepath.Join(dir, "target")) {
		t.Errorf("relative link was not followed: %v", steps)
	}
}

func hasStep(steps map[string]string, path string) bool { _, ok := steps[path]; return ok }

func FuzzParseFile(f *testing.F) {
	a, b := newCert(f, "a", nil), newCert(f, "b", expiredCA)
	f.Add(pemOf(a))
	f.Add(pemOf(a, b, a))
	f.Add(pemOf(b))
	f.Add(pemOf(newCert(f, "c", notCA)))
	f.Add(append([]byte("# comment\n"), pemOf(a)...))
	f.Add([]byte("-----BEGIN CERTIFICATE-----"))
	f.Fuzz(func(t *testing.T, content []byte) {
		roots, _, err := parseFile(content, time.Now())
		if err != nil {
			if roots != nil {
				t.Fatal("roots beside an error")
			}
			return
		}
		checkAll(t, roots)
		again, _, err := parseFile(pemOf(roots...), time.Now())
		if err != nil || !sameSet(roots, again) {
			t.Fatalf("does not survive a round trip: %v", err)
		}
	})
}

func BenchmarkBundle(b *testing.B) {
	o := NewObserved(domain)
	defer o.Close()
	var roots []*x509.Certificate
	for range 4 {
		roots = append(roots, newCert(b, "x", nil))
	}
	if _, err := o.Observe(pemOf(roots...), time.Now().Add(time.Minute)); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		o.Bundle()
	}
}
