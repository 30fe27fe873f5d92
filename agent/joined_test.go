// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/prometheus/client_golang/prometheus"
	spiffe "github.com/spiffe/go-spiffe/v2/workloadapi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/signet-spiffe/signet/agent/issue"
	"github.com/signet-spiffe/signet/agent/issue/selfca"
	"github.com/signet-spiffe/signet/agent/trust"
	"github.com/signet-spiffe/signet/agent/workload"
	"github.com/signet-spiffe/signet/csi"
	"github.com/signet-spiffe/signet/internal/identity"
	"github.com/signet-spiffe/signet/internal/pki"
	"github.com/signet-spiffe/signet/workloadapi"
)

// inNamespace marks the process that runs in a mount namespace of its own.
const inNamespace = "SIGNET_TEST_MOUNT_NAMESPACE"

// TestMain runs the tests in a private mount namespace, so that no mount can
// leak, whatever fails.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 || os.Getenv(inNamespace) != "" {
		os.Exit(m.Run())
	}
	runtime.LockOSThread() // Pdeathsig is tied to the thread.
	child := exec.Command("/proc/self/exe", os.Args[1:]...)
	child.Stdin, child.Stdout, child.Stderr = os.Stdin, os.Stdout, os.Stderr
	child.Env = append(os.Environ(), inNamespace+"=1")
	child.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := child.Run(); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			fmt.Fprintln(os.Stderr, "run tests in a mount namespace of their own:", err)
			os.Exit(1)
		}
		os.Exit(max(exit.ExitCode(), 1))
	}
}

// node is a directory tree as kubelet's, on which agents come and go.
type node struct {
	t      testing.TB
	root   string
	issuer issue.Issuer
	issued *atomic.Int64
	limits attributeLimits
	pods   podsDir
	owner  func(context.Context, workload.Volume) (*int64, error)
}

var testLimits = attributeLimits{
	driver: "test.driver", names: fileNames{"tls.crt", "tls.key", "ca.crt", "spiffe.sock"},
	duration: time.Hour, durations: durationRange{30 * time.Minute, 2 * time.Hour},
}

// countingIssuer counts what is asked of another issuer.
type countingIssuer struct {
	issue.Issuer
	count *atomic.Int64
}

func (c countingIssuer) Issue(ctx context.Context, r issue.IssueRequest) (issue.Issued, error) {
	c.count.Add(1)
	return c.Issuer.Issue(ctx, r)
}

func newNode(t testing.TB) *node {
	t.Helper()
	if os.Geteuid() != 0 || os.Getenv(inNamespace) == "" {
		t.Skip("mounting needs root")
	}
	ca, err := selfca.New(selfca.Options{TrustDomain: td})
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, root: t.TempDir(), issued: &atomic.Int64{}, limits: testLimits}
	n.pods = podsDir(filepath.Join(n.root, "pods"))
	n.issuer = countingIssuer{ca, n.issued}
	t.Cleanup(func() {
		for _, dir := range []string{n.target("v", "mount"), filepath.Join(n.root, "plugins/test.driver/volumes/v")} {
			_ = unix.Unmount(dir, unix.MNT_DETACH) // What a failed test left.
		}
	})
	return n
}

// target is kubelet's path of a CSI volume.
func (n *node) target(volume, last string) string {
	return filepath.Join(n.root, "pods", pod.UID, "volumes/kubernetes.io~csi", volume, last)
}

// agent is one life of an agent on the node.
type agent struct {
	csipb.NodeClient
	storage  *volumes
	registry *workload.Registry
	kill     func() // Ends it without any clean-up of volumes.
}

func (n *node) start() *agent {
	n.t.Helper()
	log := slog.New(slog.NewTextHandler(testWriter{n.t}, nil))
	store, err := csi.OpenStore(csi.StoreOptions{DataRoot: filepath.Join(n.root, "plugins"), DriverName: "test.driver", Log: log})
	if err != nil {
		n.t.Fatal(err)
	}
	template, err := identity.ParseTemplate(identity.DefaultTemplate)
	if err != nil {
		n.t.Fatal(err)
	}
	source := trust.NewObserved(td)
	server := workloadapi.NewServer(workloadapi.Options{Log: log})
	storage := newVolumes(store, server, n.limits.names, td, log)
	storage.pods = n.pods
	registry := workload.New(workload.Options{
		Issuer: n.issuer, Trust: source, Volumes: storage, Attempts: storage, ID: identify(td, template), Owner: n.owner, KeyType: pki.P256,
		Duration: time.Hour, MinDuration: n.limits.durations.min, MaxDuration: n.limits.durations.max, PublishTimeout: 10 * time.Second, Log: log, Registerer: prometheus.NewRegistry(),
	})
	restore(storage, registry, source, n.limits, log)
	endpoint := filepath.Join(n.root, "csi.sock")
	driver, err := csi.NewServer(csi.ServerOptions{
		Endpoint: "unix://" + endpoint, DriverName: "test.driver", Version: "v0", NodeID: "node-1", Workloads: workloads{registry, n.limits, storage}, Store: store, Log: log,
	})
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{}, 2)
	go func() { registry.Run(ctx); ended <- struct{}{} }()
	go func() {
		if err := driver.Run(ctx); err != nil {
			n.t.Error(err)
		}
		ended <- struct{}{}
	}()
	conn, err := grpc.NewClient("unix://"+endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		n.t.Fatal(err)
	}
	a := &agent{NodeClient: csipb.NewNodeClient(conn), registry: registry, storage: storage}
	a.kill = func() {
		_ = conn.Close()
		cancel()
		<-ended
		<-ended
		grace, done := context.WithTimeout(context.Background(), time.Second)
		defer done()
		_ = server.Shutdown(grace)
	}
	return a
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func (n *node) publishRequest() *csipb.NodePublishVolumeRequest {
	n.t.Helper()
	target := n.target("v", "mount")
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		n.t.Fatal(err)
	}
	return &csipb.NodePublishVolumeRequest{
		VolumeId: "v", TargetPath: target, Readonly: true,
		VolumeCapability: &csipb.VolumeCapability{
			AccessType: &csipb.VolumeCapability_Mount{Mount: &csipb.VolumeCapability_MountVolume{}},
			AccessMode: &csipb.VolumeCapability_AccessMode{Mode: csipb.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		},
		VolumeContext: map[string]string{
			"csi.storage.k8s.io/ephemeral": "true", "csi.storage.k8s.io/pod.namespace": pod.Namespace, "csi.storage.k8s.io/pod.name": pod.Name,
			"csi.storage.k8s.io/pod.uid": pod.UID, "csi.storage.k8s.io/serviceAccount.name": pod.ServiceAccount,
		},
	}
}

// serial reads the files as an application does, and checks that they belong
// together.
func (n *node) serial() string {
	n.t.Helper()
	dir := n.target("v", "mount")
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"))
	if err != nil {
		n.t.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		n.t.Fatal(err)
	}
	block, _ := pem.Decode(ca)
	root, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		n.t.Fatal(err)
	}
	if err := pair.Leaf.CheckSignatureFrom(root); err != nil {
		n.t.Error(err)
	}
	return pair.Leaf.SerialNumber.Text(16)
}

// shortSocket is a path to the socket as short as a socket address needs it, and
// as pods see it.
func (n *node) shortSocket() string {
	n.t.Helper()
	short := filepath.Join("/tmp", fmt.Sprintf("signet-%d.sock", os.Getpid()))
	_ = os.Remove(short)
	if err := os.Symlink(filepath.Join(n.target("v", "mount"), "spiffe.sock"), short); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = os.Remove(short) })
	return short
}

// fromSocket asks as go-spiffe does, and gives the first answer.
func (n *node) fromSocket() (id, serial string) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), 5*time.Second)
	defer cancel()
	svid, err := spiffe.FetchX509SVID(ctx, spiffe.WithAddr("unix://"+n.shortSocket()),
		// An agent that has just started may not listen yet.
		spiffe.WithDialOptions(grpc.WithDefaultCallOptions(grpc.WaitForReady(true))))
	if err != nil {
		n.t.Fatal(err)
	}
	return svid.ID.String(), svid.Certificates[0].SerialNumber.Text(16)
}

// One life of a volume through all the parts, over three lives of the agent.
func TestVolumeOutlivesAgents(t *testing.T) {
	n := newNode(t)
	a := n.start()
	if _, err := a.NodePublishVolume(t.Context(), n.publishRequest()); err != nil {
		t.Fatal(err)
	}
	first := n.serial()
	id, serial := n.fromSocket()
	if id != cartID.String() || serial != first {
		t.Errorf("socket: %s %s; files: %s", id, serial, first)
	}
	for range 2 {
		a.kill()
		if n.serial() != first {
			t.Error("the files changed when the agent ended")
		}
		a = n.start()
		if _, serial := n.fromSocket(); serial != first {
			t.Errorf("after a restart the socket says %s, want %s", serial, first)
		}
		if _, err := a.NodePublishVolume(t.Context(), n.publishRequest()); err != nil {
			t.Errorf("republish after a restart: %v", err)
		}
		if n.serial() != first {
			t.Error("the restart replaced the SVID")
		}
	}
	if got := n.issued.Load(); got != 1 {
		t.Errorf("%d issuances, want 1", got)
	}
	for range 2 {
		if _, err := a.NodeUnpublishVolume(t.Context(), &csipb.NodeUnpublishVolumeRequest{VolumeId: "v", TargetPath: n.target("v", "mount")}); err != nil {
			t.Fatal(err)
		}
	}
	a.kill()
	n.wantNothingLeft()
}

func (n *node) wantNothingLeft() {
	n.t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		n.t.Fatal(err)
	}
	if strings.Contains(string(mounts), n.root) {
		n.t.Error("a mount is left")
	}
	left, err := os.ReadDir(filepath.Join(n.root, "plugins/test.driver/volumes"))
	if err != nil || len(left) != 0 {
		n.t.Errorf("left in the store: %v, %v", left, err)
	}
	if _, err := os.Stat(n.target("v", "mount")); !os.IsNotExist(err) {
		n.t.Errorf("target path: %v, want it gone", err)
	}
}

// A volume that the next agent cannot take up is left to its pod: a republish is
// OK and takes nothing away, not even when a new SVID would be denied. Unpublish
// removes it.
func TestVolumeThatCannotBeTakenUpIsLeftAlone(t *testing.T) {
	n := newNode(t)
	a := n.start()
	if _, err := a.NodePublishVolume(t.Context(), n.publishRequest()); err != nil {
		t.Fatal(err)
	}
	serial := n.serial()
	dir, ok := a.storage.store.Get("v")
	if !ok {
		t.Fatal("the volume is not in the store")
	}
	if err := dir.WriteState([]byte(`{"version":9}`)); err != nil {
		t.Fatal(err)
	}
	a.kill()
	n.issuer = deniedIssuer{}
	a = n.start()
	if _, err := a.NodePublishVolume(t.Context(), n.publishRequest()); err != nil {
		t.Errorf("republish: %v, want OK", err)
	}
	if n.serial() != serial {
		t.Error("the pod's files changed")
	}
	if _, err := a.NodeUnpublishVolume(t.Context(), &csipb.NodeUnpublishVolumeRequest{VolumeId: "v", TargetPath: n.target("v", "mount")}); err != nil {
		t.Fatal(err)
	}
	if a.storage.leftAlone("v") != nil {
		t.Error("the volume is still remembered")
	}
	a.kill()
	n.wantNothingLeft()
}

// deniedIssuer says no.
type deniedIssuer struct{}

func (deniedIssuer) Issue(context.Context, issue.IssueRequest) (issue.Issued, error) {
	return issue.Issued{}, fmt.Errorf("%w: CertificateRequest shop/x: wrong duration", issue.ErrDenied)
}

func TestDeniedMountSaysWhyAndLeavesNothing(t *testing.T) {
	n := newNode(t)
	n.issuer = deniedIssuer{}
	a := n.start()
	_, err := a.NodePublishVolume(t.Context(), n.publishRequest())
	if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "wrong duration") {
		t.Errorf("%v, want PermissionDenied with the approver's words", err)
	}
	a.kill()
	n.wantNothingLeft()
}
