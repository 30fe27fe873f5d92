// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"
)

// collected are the objects that CollectLogs writes down. Secrets are not
// among them.
var collected = []schema.GroupVersionResource{
	{Version: "v1", Resource: "events"},
	{Version: "v1", Resource: "nodes"},
	{Version: "v1", Resource: "pods"},
	{Group: "apps", Version: "v1", Resource: "daemonsets"},
	{Group: "apps", Version: "v1", Resource: "deployments"},
	{Group: "cert-manager.io", Version: "v1", Resource: "certificaterequests"},
	{Group: "cert-manager.io", Version: "v1", Resource: "clusterissuers"},
	{Group: "cert-manager.io", Version: "v1", Resource: "issuers"},
}

// CollectLogs copies into a directory what one wants to read after a failed
// test: every component's log (components/), every container's log
// (NODE/pods/), and events, pods, CertificateRequests and some more as YAML.
// It collects what it can; the error says what it could not.
func (c *Cluster) CollectLogs(ctx context.Context, dir string) error {
	errs := []error{copyTree(filepath.Join(dir, "components"), c.LogDir())}
	for _, n := range c.Nodes() {
		errs = append(errs, n.collectLogs(ctx, filepath.Join(dir, n.Name, "pods")))
	}
	client, err := dynamic.NewForConfig(c.RESTConfig())
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, resource := range collected {
		errs = append(errs, writeObjects(ctx, client, resource, filepath.Join(dir, resource.Resource+".yaml")))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("collect logs of cluster %s: %w", c.Name(), err)
	}
	return nil
}

func (n Node) collectLogs(ctx context.Context, dir string) error {
	pid, err := n.PID(ctx)
	if err != nil {
		return err
	}
	return copyTree(dir, filepath.Join("/proc", strconv.Itoa(pid), "root/var/log/pods"))
}

// copyTree copies the regular files below a directory, over what is there.
// Files that are being written are copied as far as they are.
func copyTree(to, from string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // rotated or removed meanwhile
			}
			return err
		}
		below, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, below)
		switch {
		case d.IsDir():
			return os.MkdirAll(target, 0o755)
		case d.Type().IsRegular():
			content, err := os.ReadFile(path)
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			return os.WriteFile(target, content, 0o644)
		}
		return nil
	})
}

func writeObjects(ctx context.Context, client dynamic.Interface, resource schema.GroupVersionResource, path string) error {
	list, err := client.Resource(resource).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list %s: %w", resource.Resource, err)
	}
	for i := range list.Items {
		list.Items[i].SetManagedFields(nil)
	}
	content, err := yaml.Marshal(list)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.WriteFile(path, content, 0o644); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
