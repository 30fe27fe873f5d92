// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sys/unix"
)

const (
	// settleTime is how long a file must be left alone before it is read: a
	// writer that does not rename leaves half a bundle for a moment, and half a
	// bundle may be valid PEM.
	settleTime = 100 * time.Millisecond
	// maxSettle bounds the wait for a writer that never pauses.
	maxSettle = 2 * time.Second
	// rewatchPause is the pause after the system refused to watch. The file is
	// read again after each, so that changes arrive even then.
	rewatchPause = 10 * time.Second
)

// File is a Source that follows a PEM file. Its content is refused as a whole if
// it holds anything but CA certificates; expired ones among others are left out.
type File struct {
	*present
	path string
	log  *slog.Logger
}

var _ Source = (*File)(nil)

// NewFileSource reads the file and fails if that gives no bundle. Run follows
// later changes.
func NewFileSource(path string, domain spiffeid.TrustDomain, log *slog.Logger, opts ...Option) (*File, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	absolute, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("trust bundle %s: %w", path, err)
	}
	f := &File{present: newPresent(domain, collect(opts)), path: absolute, log: log}
	roots, err := f.read()
	if err != nil {
		return nil, err
	}
	f.set(roots)
	return f, nil
}

// Run follows the file until ctx ends.
func (f *File) Run(ctx context.Context) {
	for ctx.Err() == nil {
		f.round(ctx)
	}
}

// round watches the way to the file as it is now, then reads the file, then
// waits for a change on the way. Whatever changes after the watches are in place
// is seen by the wait, whatever changed before by the read. Watches are made anew
// each time since the way itself may have changed.
func (f *File) round(ctx context.Context) {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		f.reload()
		f.unwatched(ctx, err)
		return
	}
	// Closing fails only if it was closed before.
	defer func() { _ = watcher.Close() }()

	way := wayTo(f.path)
	if err := way.watch(watcher); err != nil {
		f.reload()
		f.unwatched(ctx, err)
		return
	}
	if !way.same(wayTo(f.path)) {
		return // Changed between looking and watching: look again.
	}
	f.reload()
	if err := way.wait(ctx, watcher); err != nil && ctx.Err() == nil {
		f.log.Warn("watch of trust bundle was interrupted", "path", f.path, "error", err)
	}
}

func (f *File) unwatched(ctx context.Context, err error) {
	f.log.Error("cannot watch trust bundle; reading it now and then", "path", f.path, "error", err)
	pause := time.NewTimer(rewatchPause)
	defer pause.Stop()
	select {
	case <-pause.C:
	case <-ctx.Done():
	}
}

// reload reads the file. What cannot be used changes nothing.
func (f *File) reload() {
	roots, err := f.read()
	if err != nil {
		f.metrics.refused(f.domain)
		f.log.Error("trust bundle refused; the previous one stays", "path", f.path, "trust_domain", f.domain.Name(), "error", err)
		return
	}
	if f.set(roots) {
		f.log.Info("trust bundle changed", "path", f.path, "trust_domain", f.domain.Name(), "authorities", len(roots))
	}
}

func (f *File) read() ([]*x509.Certificate, error) {
	content, err := readRegular(f.path)
	if err != nil {
		return nil, fmt.Errorf("trust bundle %s: %w", f.path, err)
	}
	roots, expired, err := parseFile(content, time.Now())
	if err != nil {
		return nil, fmt.Errorf("trust bundle %s: %w", f.path, err)
	}
	for _, err := range expired {
		f.log.Warn("trust bundle holds an expired CA; it is left out", "path", f.path, "error", err)
	}
	return roots, nil
}

// parseFile takes CA certificates and nothing else, of which at least one must
// be alive.
func parseFile(content []byte, now time.Time) (roots []*x509.Certificate, expired []error, err error) {
	certs, err := parse(content)
	if err != nil {
		return nil, nil, err
	}
	for _, c := range certs {
		if err := checkAuthority(c); err != nil {
			return nil, nil, err
		}
		if err := checkAlive(c, now); err != nil {
			expired = append(expired, err)
			continue
		}
		roots = append(roots, c)
	}
	if len(roots) == 0 {
		return nil, nil, errors.Join(expired...)
	}
	return roots, expired, nil
}

// readRegular reads a file of bounded size. It does not hang on a FIFO.
func readRegular(path string) ([]byte, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	// Nothing was written: a failing close loses nothing.
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("is not a regular file but %s", info.Mode().Type())
	}
	// One byte more than allowed tells parse that it is too much.
	return io.ReadAll(io.LimitReader(file, maxBundleBytes+1))
}
