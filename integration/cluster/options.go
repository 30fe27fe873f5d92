// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
)

// DefaultKubernetesVersion is what a cluster runs unless told otherwise.
const DefaultKubernetesVersion = "1.36.3"

// maxNodes is how many node networks the pod network is divided into.
const maxNodes = 8

// Options say what cluster to bring up. The zero value is one node of
// DefaultKubernetesVersion with a random name.
type Options struct {
	// Name distinguishes clusters on one machine: lower-case letters, digits
	// and dashes, at most 30, beginning with a letter. The state directory,
	// the cgroups and the command lines of its processes carry it. Default:
	// random.
	Name string

	// KubernetesVersion is one of the versions pinned below
	// integration/tools, as "1.36.3" or "1.36".
	KubernetesVersion string

	// Nodes is the number of nodes, named node-1, node-2, … Default 1.
	Nodes int

	// LogDir is a host directory that receives every component's log and is
	// left behind by Down. Default: inside the state directory, and gone with
	// it.
	LogDir string

	// Progress receives one line per step. Default: nowhere.
	Progress io.Writer

	// APIServerArgs are added to the kube-apiserver's command line, e.g.
	// "--runtime-config=certificates.k8s.io/v1beta1=true".
	APIServerArgs []string

	// KubeletConfig is laid over the kubelet's configuration, key by key at
	// the top level, e.g. {"maxPods": 110}.
	KubeletConfig map[string]any
}

// plan is a cluster as the janitor and the supervisor are told to make it:
// Options with every default filled in and everything found on the machine.
type plan struct {
	Name              string
	KubernetesVersion string
	Nodes             int
	StateDir          string
	LogDir            string
	Binaries          Binaries
	Programs          programs
	APIServerArgs     []string
	KubeletConfig     map[string]any
	// Port is the API server's, on the host's loopback address. The janitor
	// chooses it.
	Port int
}

var namePattern = regexp.MustCompile(`^[a-z][a-z0-9-]{0,29}$`)

// complete checks the options and fills in the defaults.
func (o Options) complete() (Options, error) {
	if o.Name == "" {
		var random [4]byte
		if _, err := rand.Read(random[:]); err != nil {
			return o, fmt.Errorf("choose a cluster name: %w", err)
		}
		o.Name = "c" + hex.EncodeToString(random[:])
	}
	if err := checkName(o.Name); err != nil {
		return o, err
	}
	if o.KubernetesVersion == "" {
		o.KubernetesVersion = DefaultKubernetesVersion
	}
	if o.Nodes == 0 {
		o.Nodes = 1
	}
	if o.Nodes < 1 || o.Nodes > maxNodes {
		return o, fmt.Errorf("a cluster has 1 to %d nodes, not %d", maxNodes, o.Nodes)
	}
	if o.LogDir != "" {
		abs, err := filepath.Abs(o.LogDir)
		if err != nil {
			return o, fmt.Errorf("log directory %s: %w", o.LogDir, err)
		}
		o.LogDir = abs
	}
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	return o, nil
}

func checkName(name string) error {
	if !namePattern.MatchString(name) {
		return fmt.Errorf("cluster name %q: must be lower-case letters, digits and dashes, begin with a letter and have at most 30 characters", name)
	}
	return nil
}

func nodeName(i int) string { return fmt.Sprintf("node-%d", i) }
