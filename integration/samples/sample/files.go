// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/fsnotify/fsnotify"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

const (
	certFile   = "tls.crt"
	keyFile    = "tls.key"
	bundleFile = "ca.crt"
	// currentLink is the symbolic link that a volume of Kubernetes' kind swaps
	// when its content changes.
	currentLink = "..data"
)

// identity is one generation of the files.
type identity struct {
	svid   *x509svid.SVID
	bundle *x509bundle.Bundle
	// generation names the directory that it was read from.
	generation string
}

// maxSwaps bounds how often a read starts again. Each new start needs two swaps
// during one read of three small files.
const maxSwaps = 100

// readFiles reads key, certificates and bundle of one generation.
//
// A program that opens tls.crt and then tls.key by name can meet a swap in
// between and hold a key that does not belong to its certificate. The way around
// it: follow ..data once, by opening the directory it leads to, and read all
// files in there.
func readFiles(dir string) (identity, error) {
	var err error
	for range maxSwaps {
		var generation string
		generation, err = os.Readlink(filepath.Join(dir, currentLink))
		if err != nil {
			return identity{}, fmt.Errorf("find the current files in %s: %w", dir, err)
		}
		var id identity
		id, err = readGeneration(filepath.Join(dir, generation))
		id.generation = generation
		// The generation that was current a moment ago may be gone by now.
		if !errors.Is(err, fs.ErrNotExist) {
			return id, err
		}
		if now, linkErr := os.Readlink(filepath.Join(dir, currentLink)); linkErr == nil && now == generation {
			return identity{}, err
		}
	}
	return identity{}, fmt.Errorf("files in %s changed %d times while they were read: %w", dir, maxSwaps, err)
}

func readGeneration(dir string) (identity, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return identity{}, fmt.Errorf("open current files: %w", err)
	}
	defer root.Close()
	content := map[string][]byte{}
	for _, name := range []string{certFile, keyFile, bundleFile} {
		if content[name], err = root.ReadFile(name); err != nil {
			return identity{}, fmt.Errorf("read identity in %s: %w", dir, err)
		}
	}
	svid, err := x509svid.Parse(content[certFile], content[keyFile])
	if err != nil {
		return identity{}, fmt.Errorf("parse %s and %s in %s: %w", certFile, keyFile, dir, err)
	}
	bundle, err := x509bundle.Parse(svid.ID.TrustDomain(), content[bundleFile])
	if err != nil {
		return identity{}, fmt.Errorf("parse %s in %s: %w", bundleFile, dir, err)
	}
	if bundle.Empty() {
		return identity{}, fmt.Errorf("parse %s in %s: no certificate in it", bundleFile, dir)
	}
	return identity{svid: svid, bundle: bundle}, nil
}

// files is an identity from a volume's files, which it follows.
type files struct {
	dir     string
	watcher *fsnotify.Watcher
	report  func(error)
	ended   chan struct{}

	mu      sync.Mutex // guards what follows; never held while reading
	now     identity
	changed chan struct{} // closed when now is superseded
}

var _ source = (*files)(nil)

// openFiles reads the files in dir and again whenever they change. What goes
// wrong later is reported and leaves the identity as it was.
func openFiles(dir string, report func(error)) (*files, error) {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	f := &files{dir: dir, watcher: watcher, report: report, ended: make(chan struct{}), changed: make(chan struct{})}
	// Watched before it is read, so that no change falls in between.
	if err := watcher.Add(dir); err != nil {
		return nil, errors.Join(fmt.Errorf("watch %s: %w", dir, err), watcher.Close())
	}
	if f.now, err = readFiles(dir); err != nil {
		return nil, errors.Join(err, watcher.Close())
	}
	go f.follow()
	return f, nil
}

// follow ends when the watcher is closed.
func (f *files) follow() {
	defer close(f.ended)
	for {
		select {
		case e, ok := <-f.watcher.Events:
			if !ok {
				return
			}
			if filepath.Base(e.Name) == currentLink {
				f.reload()
			}
		case err, ok := <-f.watcher.Errors:
			if !ok {
				return
			}
			// Events were lost (overflow): look for ourselves.
			f.report(fmt.Errorf("watch %s: %w", f.dir, err))
			f.reload()
		}
	}
}

func (f *files) reload() {
	next, err := readFiles(f.dir)
	if err != nil {
		f.report(fmt.Errorf("keep the identity as it is: %w", err))
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if next.generation == f.now.generation {
		return
	}
	f.now = next
	close(f.changed)
	f.changed = make(chan struct{})
}

// current returns the identity and a channel that is closed when it changes.
func (f *files) current() (identity, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now, f.changed
}

// GetX509SVID implements x509svid.Source.
func (f *files) GetX509SVID() (*x509svid.SVID, error) {
	id, _ := f.current()
	return id.svid, nil
}

// GetX509BundleForTrustDomain implements x509bundle.Source.
func (f *files) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	id, _ := f.current()
	return id.bundle.GetX509BundleForTrustDomain(td)
}

// Close stops following. The last identity stays readable.
func (f *files) Close() error {
	err := f.watcher.Close()
	<-f.ended
	return err
}
