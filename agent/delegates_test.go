// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
)

// TestDelegatesSeeWhatIsMounted: a volume appears with its SVID when it is
// published, with or without a socket and after a restart too, and goes with it.
func TestDelegatesSeeWhatIsMounted(t *testing.T) {
	for _, delivery := range []string{"both", "files"} {
		t.Run(delivery, func(t *testing.T) {
			n := newNode(t)
			a := n.start()
			none, changed := delegated{volumes: a.storage}.Workloads()
			if len(none) != 0 {
				t.Fatalf("before any mount: %d workloads", len(none))
			}
			r := n.publishRequest()
			r.VolumeContext["test.driver/delivery"] = delivery
			if _, err := a.NodePublishVolume(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			<-changed
			serial := n.serial()
			n.wantDelegated(a, serial)
			a.kill()

			a = n.start()
			if _, err := a.NodePublishVolume(t.Context(), r); err != nil { // The volume is taken up by then.
				t.Fatal(err)
			}
			n.wantDelegated(a, serial)
			_, changed = delegated{volumes: a.storage}.Workloads()
			if _, err := a.NodeUnpublishVolume(t.Context(), &csipb.NodeUnpublishVolumeRequest{VolumeId: "v", TargetPath: n.target("v", "mount")}); err != nil {
				t.Fatal(err)
			}
			<-changed
			if left, _ := (delegated{volumes: a.storage}).Workloads(); len(left) != 0 {
				t.Errorf("after the unmount: %d workloads", len(left))
			}
			a.kill()
		})
	}
}

func (n *node) wantDelegated(a *agent, serial string) {
	n.t.Helper()
	workloads, _ := delegated{volumes: a.storage}.Workloads()
	if len(workloads) != 1 {
		n.t.Fatalf("%d workloads, want 1", len(workloads))
	}
	w := workloads[0]
	if w.Namespace != pod.Namespace || w.Pod != pod.Name || w.PodUID != pod.UID || w.ServiceAccount != pod.ServiceAccount || w.Volume != "v" {
		n.t.Errorf("workload is %s/%s %s %s %s", w.Namespace, w.Pod, w.PodUID, w.ServiceAccount, w.Volume)
	}
	if w.SVID == nil || w.SVID.Certificates[0].SerialNumber.Text(16) != serial {
		n.t.Errorf("its SVID is not the one in the files (%s)", serial)
	}
}
