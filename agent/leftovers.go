// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/signet-spiffe/signet/csi"
)

// podsDir is kubelet's directory of pods (<kubelet's root>/pods), one folder for
// each by UID. Empty: there is none to ask, and no pod is ever gone.
//
// Kubelet makes a pod's folder before it asks for the pod's first volume, and
// removes it after the last one is unmounted. While kubelet is down or starting
// the folders are there: they are on disk.
type podsDir string

// gone says that kubelet knows no pod of that UID any more. Whenever that is not
// certain it is an error.
func (d podsDir) gone(uid string) (bool, error) {
	if d == "" {
		return false, nil
	}
	if uid == "" || !filepath.IsLocal(uid) || filepath.Base(uid) != uid {
		return false, fmt.Errorf("pod UID %q is not one", uid)
	}
	// A directory that is not there, or not mounted, would make every pod look gone.
	info, err := os.Stat(string(d))
	if err != nil {
		return false, fmt.Errorf("kubelet's directory of pods (see --kubelet-root-dir): %w", err)
	}
	if !info.IsDir() {
		return false, fmt.Errorf("kubelet's directory of pods (see --kubelet-root-dir): %s is not a directory", d)
	}
	_, err = os.Lstat(filepath.Join(string(d), uid))
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	return false, err
}

// isLeftover says that the pod of a volume went away while no agent was there to
// be told: kubelet has no folder of it, and the volume is mounted for nobody. It
// would be renewed for ever, since nobody unpublishes it.
//
// It is asked before kubelet is served, so no publish is under way: one that the
// agent before did not finish comes again, and the folder of its pod is there. A
// volume that is mounted somewhere is kept whatever the folder says: kubelet's
// root may be elsewhere.
func (v *volumes) isLeftover(dir *csi.Dir, r recovered) (bool, error) {
	gone, err := v.pods.gone(r.volume.Pod.UID)
	if !gone || err != nil {
		return false, err
	}
	bound, err := dir.IsBoundAnywhere()
	return !bound && err == nil, err
}

// dropLeftovers removes the volumes of pods that are gone and returns the others.
func (v *volumes) dropLeftovers(found []recovered) []recovered {
	var kept []recovered
	for _, r := range found {
		log := v.log.With("volume", r.volume.ID, "namespace", r.volume.Pod.Namespace, "pod", r.volume.Pod.Name, "uid", r.volume.Pod.UID)
		dir, ok := v.store.Get(r.volume.ID)
		if !ok {
			continue
		}
		leftover, err := v.isLeftover(dir, r)
		switch {
		case err != nil:
			log.Warn("could not find out whether the pod of a volume still exists; the volume is kept", "error", err)
		case leftover:
			if err := v.store.Remove(r.volume.ID); err != nil {
				log.Error("could not remove the volume of a pod that is gone; the next start tries again", "error", err)
			} else {
				log.Info("removed the volume of a pod that went away while no agent was running")
			}
			continue
		}
		kept = append(kept, r)
	}
	return kept
}
