// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// istioPath is where Istio's agent looks for a Workload API, in a file called socket.
const istioPath = "/var/run/secrets/workload-spiffe-uds"

// A pod that may do next to nothing, of a user that nobody knows, reaches the socket
// at the place where Istio's agent looks for it, and cannot replace it.
func testAnyUserReachesTheSocketWhereIstioLooks(t *testing.T) {
	t.Parallel()
	ctx := needCluster(t, testTimeout)
	ns := newNamespace(ctx, t)
	for _, delivery := range []string{"both", "socket"} {
		t.Run(delivery, func(t *testing.T) {
			t.Parallel()
			pod := runPod(ctx, t, ns, podSpec{
				Name: delivery, Node: nodeOne,
				Attributes: chosen(map[string]string{"delivery": delivery, "file-name-socket": "socket"}),
				Change: func(p *corev1.Pod) {
					p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsNonRoot: ptr(true), RunAsUser: ptr(int64(1000670000)), RunAsGroup: ptr(int64(4242))}
					c := &p.Spec.Containers[0]
					c.SecurityContext = &corev1.SecurityContext{
						ReadOnlyRootFilesystem: ptr(true), AllowPrivilegeEscalation: ptr(false),
						Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
					}
					c.VolumeMounts[0].MountPath = istioPath
					c.Env = []corev1.EnvVar{{Name: "SPIFFE_ENDPOINT_SOCKET", Value: "unix://" + istioPath + "/socket"}}
				},
			})
			got := decodeJSON[fetched](t, mustExecute(ctx, t, pod, "fetch", "--max-attempts=1"))
			if got.ID != spiffeID(ns, "default") {
				t.Errorf("the socket says %s", got.ID)
			}
			at, ok := list(ctx, t, pod, istioPath)["socket"]
			if !ok || at.Type != "socket" || at.Mode != "0777" {
				t.Errorf("the socket is %+v, want a socket that every user may use", at)
			}
			if _, err := execute(ctx, pod, "app", "fetch", "--output="+istioPath+"/new"); err == nil {
				t.Error("the pod writes to its volume")
			}
		})
	}
}
