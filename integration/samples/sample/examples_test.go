// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/yaml"
)

// The example manifests call this program with arguments that it knows: with
// --help added, a command line is parsed to its end and nothing is started.
func TestExampleManifestsUseArgumentsThatExist(t *testing.T) {
	found := 0
	for _, name := range []string{"app.yaml", "mtls.yaml"} {
		content, err := os.ReadFile(filepath.Join("../../../deploy/examples", name))
		if err != nil {
			t.Fatal(err)
		}
		for _, args := range containerArgs(t, content) {
			found++
			out, err := run(t, append(slices.Clone(args), "--help")...)
			if err != nil || !strings.Contains(out, "Usage:") {
				t.Errorf("%s: %v: %v\n%s", name, args, err, out)
			}
		}
	}
	if found < 4 {
		t.Errorf("found %d containers in the examples, want at least 4", found)
	}
}

func containerArgs(t *testing.T, manifests []byte) [][]string {
	t.Helper()
	var all [][]string
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(manifests), 4096)
	for {
		var object struct {
			Spec struct {
				Template struct {
					Spec struct {
						Containers []struct {
							Args []string `json:"args"`
						} `json:"containers"`
					} `json:"spec"`
				} `json:"template"`
			} `json:"spec"`
		}
		if err := decoder.Decode(&object); err == io.EOF {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		for _, c := range object.Spec.Template.Spec.Containers {
			all = append(all, c.Args)
		}
	}
}
