// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"
	"maps"
	"net"
	"path/filepath"
	"testing"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	. "github.com/onsi/ginkgo/v2" //nolint:revive // as csi-test is used
	. "github.com/onsi/gomega"    //nolint:revive // as csi-test is used
	"google.golang.org/grpc"
)

// provisioner stands in for the pod spec: csi-sanity gets its volumes from a controller, ours are written
// inline. It is no part of the driver under test.
type provisioner struct {
	csipb.UnimplementedControllerServer
}

func (provisioner) ControllerGetCapabilities(context.Context, *csipb.ControllerGetCapabilitiesRequest) (*csipb.ControllerGetCapabilitiesResponse, error) {
	return &csipb.ControllerGetCapabilitiesResponse{}, nil
}

func (provisioner) CreateVolume(_ context.Context, r *csipb.CreateVolumeRequest) (*csipb.CreateVolumeResponse, error) {
	return &csipb.CreateVolumeResponse{Volume: &csipb.Volume{VolumeId: r.GetName(), VolumeContext: validRequest().GetVolumeContext()}}, nil
}

func (provisioner) DeleteVolume(context.Context, *csipb.DeleteVolumeRequest) (*csipb.DeleteVolumeResponse, error) {
	return &csipb.DeleteVolumeResponse{}, nil
}

// readOnly completes a publish as a pod spec with readOnly: true does.
func readOnly(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	if r, ok := request.(*csipb.NodePublishVolumeRequest); ok {
		r.Readonly = true
	}
	return invoke(ctx, method, request, reply, conn, options...)
}

// TestSanity runs the CSI community's identity and node suites against the real server and real mounts.
//
// They skip what the driver does not offer, and rightly so: staging, expansion, statistics, health
// (NodeGetCapabilities does not list them: a volume is inline, small and belongs to one pod), several writers
// on one node, and two life cycles that a controller drives. TestThousandPublishesOneMount and
// TestPublishAndUnpublish go through those.
func TestSanity(t *testing.T) {
	d := startDriver(t)
	controller := filepath.Join(d.root, "provisioner.sock")
	l, err := net.Listen("unix", controller)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	csipb.RegisterControllerServer(server, provisioner{})
	csipb.RegisterIdentityServer(server, &identity{driverName: testDriver, version: "v1", ready: func() error { return nil }, log: testLog(t)})
	runUntilCleanup(t, func(ctx context.Context) error { return serve(ctx, server, l) })

	config := sanity.NewTestConfig()
	config.Address = filepath.Join(d.root, "csi.sock")
	config.ControllerAddress = controller
	config.DialOptions = append(config.DialOptions, grpc.WithUnaryInterceptor(readOnly))
	config.TargetPath = filepath.Join(d.root, "sanity-target")
	config.StagingPath = filepath.Join(d.root, "sanity-staging")

	passed, skipped := 0, map[string]int{}
	ReportAfterEach(func(r SpecReport) {
		switch state := r.State.String(); {
		case state == "passed":
			passed++
		case state == "skipped" && r.Failure.Message != "": // those out of focus have none
			skipped[r.Failure.Message]++
		}
	})
	suite := sanity.GinkgoTest(&config)
	defer suite.Finalize()
	RegisterFailHandler(Fail)
	run, reporter := GinkgoConfiguration()
	run.FocusStrings = []string{"Identity Service", "Node Service"}
	reporter.NoColor, reporter.Succinct = true, true
	RunSpecs(t, "csi-sanity", run, reporter)

	t.Logf("csi-sanity: %d passed; skipped: %v", passed, skipped)
	want := map[string]int{
		"Controller Service not provided: CreateVolume not supported": 2,
		"Service does not have single node multi writer capability":   1,
		"NodeStageVolume not supported":                               3,
		"NodeUnstageVolume not supported":                             2,
		"NodeGetVolume not supported":                                 4,
		"NodeExpandVolume not supported":                              4,
		"NodeGetVolumeHealth not supported":                           2,
		"NodeGetStorageHealth not supported":                          1,
	}
	if passed != 11 || !maps.Equal(skipped, want) {
		t.Errorf("%d passed, skipped %v; want 11 and %v", passed, skipped, want)
	}
	if published, unpublished := d.agent.calls(); published == 0 || unpublished == 0 {
		t.Error("no volume was published and unpublished")
	}
	if left := mountsUnder(t, d.root); len(left) != 0 {
		t.Errorf("mounts left: %v", left)
	}
}
