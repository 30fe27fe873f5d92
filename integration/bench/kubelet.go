// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	// volumeName is the pods' name of the volume.
	volumeName = "spiffe"
	// callTimeout is kubelet's own for one CSI call.
	callTimeout = 2 * time.Minute
	// unpublishers is how many volumes are taken away at the same time.
	unpublishers = 8
)

// volume is a pod's volume. A pod of the bench may have several, one after the
// other or at once: what is asked of the approver is the same.
type volume struct {
	pod
	id, name, target string
}

// kubelet speaks to the agent's CSI socket as a kubelet does.
type kubelet struct {
	layout layout
	conn   *grpc.ClientConn
	driver csipb.NodeClient
}

// quickly reconnects without the second that gRPC would wait at first.
func quickly() grpc.DialOption {
	return grpc.WithConnectParams(grpc.ConnectParams{
		Backoff:           backoff.Config{BaseDelay: 5 * time.Millisecond, Multiplier: 1.2, MaxDelay: 50 * time.Millisecond},
		MinConnectTimeout: time.Second,
	})
}

func newKubelet(l layout) (*kubelet, error) {
	conn, err := grpc.NewClient("unix://"+l.csi(), grpc.WithTransportCredentials(insecure.NewCredentials()), quickly(),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		return nil, fmt.Errorf("connect to the agent: %w", err)
	}
	return &kubelet{layout: l, conn: conn, driver: csipb.NewNodeClient(conn)}, nil
}

// volume makes a pod's volume known, as kubelet does before it calls the driver.
// Generation tells several of one pod apart.
func (k *kubelet) volume(p pod, generation int) (volume, error) {
	name := fmt.Sprintf("%s-%d", volumeName, generation)
	sum := sha256.Sum256([]byte(p.uid + name))
	v := volume{pod: p, id: "csi-" + hex.EncodeToString(sum[:]), name: name, target: k.layout.target(p.uid, name)}
	if err := os.MkdirAll(filepath.Dir(v.target), 0o750); err != nil {
		return volume{}, fmt.Errorf("make the directory of a volume: %w", err)
	}
	return v, nil
}

// obtain is NodePublishVolume.
func (k *kubelet) obtain(ctx context.Context, v volume) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := k.driver.NodePublishVolume(ctx, &csipb.NodePublishVolumeRequest{
		VolumeId: v.id, TargetPath: v.target, Readonly: true,
		VolumeCapability: &csipb.VolumeCapability{
			AccessType: &csipb.VolumeCapability_Mount{Mount: &csipb.VolumeCapability_MountVolume{}},
			AccessMode: &csipb.VolumeCapability_AccessMode{Mode: csipb.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		},
		VolumeContext: map[string]string{
			"csi.storage.k8s.io/ephemeral":           "true",
			"csi.storage.k8s.io/pod.name":            v.pod.name,
			"csi.storage.k8s.io/pod.namespace":       v.namespace,
			"csi.storage.k8s.io/pod.uid":             v.uid,
			"csi.storage.k8s.io/serviceAccount.name": v.account,
		},
	})
	return err
}

// remove is NodeUnpublishVolume, of several volumes.
func (k *kubelet) remove(ctx context.Context, volumes []volume) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(unpublishers)
	for _, v := range volumes {
		group.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, callTimeout)
			defer cancel()
			_, err := k.driver.NodeUnpublishVolume(ctx, &csipb.NodeUnpublishVolumeRequest{VolumeId: v.id, TargetPath: v.target})
			if err != nil {
				return fmt.Errorf("unpublish the volume of pod %s/%s: %w", v.namespace, v.pod.name, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// leaf reads the certificate that the pod would find in its volume.
func (v volume) leaf() (*x509.Certificate, error) {
	content, err := os.ReadFile(filepath.Join(v.target, "tls.crt"))
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(content)
	if block == nil {
		return nil, errors.New("tls.crt holds no PEM")
	}
	return x509.ParseCertificate(block.Bytes)
}

// serials reads the certificates of all volumes.
func serials(volumes []volume) (map[string]string, error) {
	all := map[string]string{}
	for _, v := range volumes {
		leaf, err := v.leaf()
		if err != nil {
			return nil, fmt.Errorf("read the files of pod %s/%s: %w", v.namespace, v.pod.name, err)
		}
		if now := time.Now(); now.After(leaf.NotAfter) {
			return nil, fmt.Errorf("the SVID of pod %s/%s has expired", v.namespace, v.pod.name)
		}
		all[v.id] = leaf.SerialNumber.Text(16)
	}
	return all, nil
}
