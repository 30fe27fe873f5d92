// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// Another is one more installation of Signet on a cluster that has one: a driver
// of its own, with its own agents, approvers and trust domain, beside the first on
// every node. Everything that a cluster has once gets a name of its own.
type Another struct {
	Options
	// Name tells it from others: a DNS label.
	Name string
	// AgentImage, if set, is run in place of the manifests'.
	AgentImage string
	// AgentEnv is added to the agent's environment.
	AgentEnv map[string]string
}

// Namespace is where its agents and approvers are.
func (a Another) Namespace() string { return "signet-" + a.Name }

// DriverName is what pods name in their volumes.
func (a Another) DriverName() string { return a.Name + ".csi.signet.example" }

// Another installs one more Signet, or changes it, and waits until it is ready on
// every node.
func (in *Installer) Another(ctx context.Context, a Another) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	manifest, err := kustomize(ctx, in.kubectl, filepath.Join(in.root, "deploy"), a.Options)
	if err != nil {
		return fmt.Errorf("install signet %s: %w", a.Name, err)
	}
	if manifest, err = edit(manifest, a.Options); err != nil {
		return fmt.Errorf("install signet %s: %w", a.Name, err)
	}
	if manifest, err = a.rename(manifest); err != nil {
		return fmt.Errorf("install signet %s: %w", a.Name, err)
	}
	if err := in.cluster.Apply(ctx, manifest); err != nil {
		return fmt.Errorf("install signet %s: %w", a.Name, err)
	}
	if err := in.waitReady(ctx, a.Namespace(), a.DriverName()); err != nil {
		return fmt.Errorf("install signet %s: %w", a.Name, err)
	}
	return nil
}

// rename gives the objects of the manifests names of their own. Driver and
// namespace are part of paths, flags and rights: they are replaced wherever they
// stand.
func (a Another) rename(manifest []byte) ([]byte, error) {
	manifest = bytes.ReplaceAll(manifest, []byte(DriverName), []byte(a.DriverName()))
	manifest = bytes.ReplaceAll(manifest, []byte(Namespace), []byte(a.Namespace()))
	objects, err := decode(manifest)
	if err != nil {
		return nil, err
	}
	for _, object := range objects {
		switch object.GetKind() {
		case "ClusterRole", "ClusterRoleBinding":
			object.SetName(object.GetName() + "-" + a.Name)
		}
		role, found, err := unstructured.NestedString(object.Object, "roleRef", "name")
		if err != nil {
			return nil, err
		}
		if kind, _, _ := unstructured.NestedString(object.Object, "roleRef", "kind"); found && kind == "ClusterRole" {
			if err := unstructured.SetNestedField(object.Object, role+"-"+a.Name, "roleRef", "name"); err != nil {
				return nil, err
			}
		}
	}
	agents := find(objects, "DaemonSet", AgentName)
	if agents == nil {
		return nil, fmt.Errorf("the manifests have no DaemonSet %s", AgentName)
	}
	if err := a.changeAgent(agents); err != nil {
		return nil, fmt.Errorf("DaemonSet %s: %w", AgentName, err)
	}
	return encode(objects)
}

func (a Another) changeAgent(agents *unstructured.Unstructured) error {
	path := []string{"spec", "template", "spec", "containers"}
	containers, _, err := unstructured.NestedSlice(agents.Object, path...)
	if err != nil || len(containers) != 1 {
		return errors.Join(fmt.Errorf("has %d containers, one was expected", len(containers)), err)
	}
	container, ok := containers[0].(map[string]any)
	if !ok {
		return errors.New("its container is not an object")
	}
	if a.AgentImage != "" {
		container["image"] = a.AgentImage
	}
	env, _, err := unstructured.NestedSlice(container, "env")
	if err != nil {
		return err
	}
	for name, value := range a.AgentEnv {
		env = append(env, map[string]any{"name": name, "value": value})
	}
	container["env"] = env
	return unstructured.SetNestedSlice(agents.Object, containers, path...)
}
