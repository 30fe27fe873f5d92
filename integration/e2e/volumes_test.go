// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"crypto/ed25519"
	"crypto/x509"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	corev1 "k8s.io/api/core/v1"

	"github.com/signet-spiffe/signet/integration/install"
	"github.com/signet-spiffe/signet/internal/request"
)

// A pod with several volumes, one of another trust domain: each socket speaks for
// its own and knows nothing of the others.
func testEachSocketSpeaksForItsOwnVolume(t *testing.T) {
	t.Parallel()
	ctx := needCluster(t, testTimeout)
	needLab(t)
	ns := newNamespace(ctx, t)
	volumes := map[string]struct {
		driver     string
		attributes map[string]string
		id         string
		ed25519    bool
	}{
		volumeName: {driver: install.DriverName, id: spiffeID(ns, "default")},
		"second":   {install.DriverName, map[string]string{request.Prefix + "key-type": "Ed25519", request.Prefix + "delivery": "socket"}, spiffeID(ns, "default"), true},
		"lab":      {driver: lab.DriverName(), attributes: labAttributes(), id: labID(ns)},
	}
	pod := runPod(ctx, t, ns, podSpec{Name: "app", Node: nodeTwo, Change: func(pod *corev1.Pod) {
		for name, v := range volumes {
			if name == volumeName {
				continue // every pod of these tests has it
			}
			pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
				CSI: &corev1.CSIVolumeSource{Driver: v.driver, ReadOnly: ptr(true), VolumeAttributes: v.attributes},
			}})
			app := &pod.Spec.Containers[0]
			app.VolumeMounts = append(app.VolumeMounts, corev1.VolumeMount{Name: name, MountPath: "/" + name, ReadOnly: true})
		}
	}})
	n := node(ctx, t, nodeTwo)
	serials := map[string]string{}
	for name, v := range volumes {
		socket := "unix:///" + name + "/spiffe.sock"
		if name == volumeName {
			socket = socketURL
		}
		got := decodeJSON[fetched](t, mustExecute(ctx, t, pod, "fetch", "--socket="+socket))
		if got.ID != v.id {
			t.Errorf("socket of volume %s speaks for %s, want %s", name, got.ID, v.id)
		}
		if other, twice := serials[got.Serial]; twice {
			t.Errorf("volumes %s and %s have one certificate, %s", name, other, got.Serial)
		}
		serials[got.Serial] = name

		answer := firstMessage(t, n, pod, name)
		if len(answer.GetSvids()) != 1 || len(answer.GetFederatedBundles()) != 0 {
			t.Errorf("socket of volume %s has %d SVIDs and %d foreign bundles, want its own SVID alone", name, len(answer.GetSvids()), len(answer.GetFederatedBundles()))
		}
		if err := wantKeyType(answer, v.ed25519); err != nil {
			t.Errorf("socket of volume %s: %v", name, err)
		}
	}
}

// firstMessage is the first message of a volume's socket, asked for from the
// node.
func firstMessage(t *testing.T, n onNode, pod *corev1.Pod, volume string) *workload.X509SVIDResponse {
	t.Helper()
	conn := n.dialUnix(t, filepath.Join(volumeDirOf(pod, volume), "mount", "spiffe.sock"))
	stream, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(withMetadata(t.Context(), "workload.spiffe.io", "true"), &workload.X509SVIDRequest{})
	if err != nil {
		t.Fatal(err)
	}
	answer, err := stream.Recv()
	if err != nil {
		t.Fatalf("volume %s: %v", volume, err)
	}
	return answer
}

func wantKeyType(answer *workload.X509SVIDResponse, wantEd25519 bool) error {
	chain, err := x509.ParseCertificates(answer.GetSvids()[0].GetX509Svid())
	if err != nil {
		return err
	}
	if _, is := chain[0].PublicKey.(ed25519.PublicKey); is != wantEd25519 {
		return fmt.Errorf("its key is a %T, Ed25519 was chosen: %t", chain[0].PublicKey, wantEd25519)
	}
	return nil
}
