// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/signet-spiffe/signet/integration/install"
	"github.com/signet-spiffe/signet/internal/request"
)

const pluginsDir = "/var/lib/kubelet/plugins"

// After all that was done: no mount and no folder of a volume whose pod is gone, and
// no request of one, of any of the drivers. What agents hold in memory is looked at
// where they live long enough (checkLeaks).
func testNothingIsLeft(t *testing.T) {
	ctx := needCluster(t, testTimeout)
	for _, name := range []string{nodeOne, nodeTwo} {
		n := node(ctx, t, name)
		n.waitMounts(ctx, t, func(all []mount) error {
			pods := podsOn(ctx, t, name)
			handles := n.handles(t, pods)
			for _, m := range all {
				if err := ofSomebody(m.Point, pods, handles); err != nil {
					return err
				}
			}
			return n.foldersOfSomebody(handles)
		})
	}
	err := install.AwaitNone(ctx, install.Selection{
		Client: env.CertManager.CertmanagerV1().RESTClient(), Resource: "certificaterequests",
		What: "no CertificateRequest of a pod that is gone to be left",
	}, func(cr *cmapi.CertificateRequest) bool {
		if cr.Labels[request.LabelAgent] == "" || len(cr.OwnerReferences) != 1 {
			return false
		}
		pod, err := env.Kube.CoreV1().Pods(cr.Namespace).Get(ctx, cr.OwnerReferences[0].Name, metav1.GetOptions{})
		return err != nil || pod.UID != cr.OwnerReferences[0].UID
	})
	if err != nil {
		t.Error(err)
	}
}

// podsOn are the pods that the API server knows on a node.
func podsOn(ctx context.Context, t *testing.T, node string) map[types.UID]*corev1.Pod {
	t.Helper()
	list, err := env.Kube.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + node})
	if err != nil {
		t.Fatal(err)
	}
	pods := map[types.UID]*corev1.Pod{}
	for i := range list.Items {
		pods[list.Items[i].UID] = &list.Items[i]
	}
	return pods
}

// handles are kubelet's names of the pods' CSI volumes.
func (n onNode) handles(t *testing.T, pods map[types.UID]*corev1.Pod) map[string]bool {
	t.Helper()
	found, err := filepath.Glob(n.path(filepath.Join(podsDir, "*", "volumes", "kubernetes.io~csi", "*", "vol_data.json")))
	if err != nil {
		t.Fatal(err)
	}
	handles := map[string]bool{}
	for _, path := range found {
		relative, err := filepath.Rel(n.path(podsDir), path)
		if err != nil {
			t.Fatal(err)
		}
		uid, _, _ := strings.Cut(relative, string(filepath.Separator))
		content, err := os.ReadFile(path)
		if err != nil || pods[types.UID(uid)] == nil {
			continue // gone meanwhile, or a folder that kubelet is about to remove
		}
		var data struct{ VolumeHandle string }
		if err := json.Unmarshal(content, &data); err != nil {
			t.Fatal(err)
		}
		handles[data.VolumeHandle] = true
	}
	return handles
}

// ofSomebody says whether a mount is of a pod that exists, or none of a volume.
func ofSomebody(point string, pods map[types.UID]*corev1.Pod, handles map[string]bool) error {
	if rest, ok := strings.CutPrefix(point, podsDir+"/"); ok {
		uid, volume, _ := strings.Cut(rest, "/")
		if strings.Contains(volume, "kubernetes.io~csi") && pods[types.UID(uid)] == nil {
			return fmt.Errorf("%s is mounted, its pod is gone", point)
		}
	}
	if rest, ok := strings.CutPrefix(point, pluginsDir+"/"); ok {
		if _, handle, ok := strings.Cut(rest, "/volumes/"); ok && !handles[handle] {
			return fmt.Errorf("%s is mounted, its pod is gone", point)
		}
	}
	return nil
}

// foldersOfSomebody looks at the drivers' folders.
func (n onNode) foldersOfSomebody(handles map[string]bool) error {
	found, err := filepath.Glob(n.path(filepath.Join(pluginsDir, "*", "volumes", "*")))
	if err != nil {
		return err
	}
	for _, path := range found {
		if name := filepath.Base(path); !handles[name] {
			return fmt.Errorf("there is a folder %s, its pod is gone", path)
		}
	}
	return nil
}
