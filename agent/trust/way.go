// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

// maxSteps bounds how far a way is followed, loops of links included. The kernel
// gives up after 40 links.
const maxSteps = 512

// way is every step from the root directory to a file: each name that is looked
// up, with what it leads to if it is a symbolic link. Directories in it are
// physical: no step before the name is a link. A change of any step may change
// the content found at the end.
type way struct {
	steps map[string]string // path of the step → link target, or ""
}

// wayTo follows an absolute path as far as it exists.
func wayTo(path string) way {
	w := way{steps: map[string]string{}}
	at, todo := "/", parts(path)
	for range maxSteps {
		if len(todo) == 0 {
			break
		}
		name := todo[0]
		todo = todo[1:]
		if name == ".." {
			at = filepath.Dir(at)
			continue
		}
		step := filepath.Join(at, name)
		target, err := os.Readlink(step)
		w.steps[step] = target
		switch {
		case err == nil && filepath.IsAbs(target):
			at, todo = "/", append(parts(target), todo...)
		case err == nil:
			todo = append(parts(target), todo...)
		default:
			at = step // Not a link; if it does not exist, nothing below does.
		}
	}
	return w
}

func parts(path string) []string {
	return strings.FieldsFunc(filepath.ToSlash(path), func(r rune) bool { return r == '/' })
}

func (w way) same(other way) bool { return maps.Equal(w.steps, other.steps) }

// watch watches each directory of the way that exists. One that does not yet
// exist is a step of its parent, where it will show up.
func (w way) watch(watcher *fsnotify.Watcher) error {
	dirs := map[string]bool{}
	for step := range w.steps {
		dirs[filepath.Dir(step)] = true
	}
	for dir := range dirs {
		err := watcher.Add(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
			return fmt.Errorf("watch directory %s: %w", dir, err)
		}
	}
	return nil
}

// wait returns after a step of the way has changed and then been left alone.
func (w way) wait(ctx context.Context, watcher *fsnotify.Watcher) error {
	var quiet, enough <-chan time.Time // nil until the first change
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-watcher.Errors:
			return err
		case event := <-watcher.Events:
			if _, ours := w.steps[event.Name]; !ours {
				continue
			}
			quiet = time.After(settleTime)
			if enough == nil {
				enough = time.After(maxSettle)
			}
		case <-quiet:
			return nil
		case <-enough:
			return nil
		}
	}
}
