// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// stubAgent stores fixed files. Hooks let a test decide what happens.
type stubAgent struct {
	store *Store

	mu          sync.Mutex
	onPublish   func(ctx context.Context, v Volume) error // before the files are stored; nil does nothing
	onUnpublish func(id string) error
	published   int
	unpublished int
}

func (a *stubAgent) hooks(publish func(context.Context, Volume) error, unpublish func(string) error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.onPublish, a.onUnpublish = publish, unpublish
}

func (a *stubAgent) calls() (published, unpublished int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.published, a.unpublished
}

func (a *stubAgent) Publish(ctx context.Context, v Volume) error {
	a.mu.Lock()
	a.published++
	hook := a.onPublish
	a.mu.Unlock()
	d, err := a.store.Create(v.ID)
	if err != nil {
		return err
	}
	if hook != nil {
		if err := hook(ctx, v); err != nil {
			return err
		}
	}
	if _, err := d.ReadState(); err == nil {
		return nil
	}
	if err := d.Write(Files{Payload: map[string][]byte{"tls.crt": []byte("chain"), "tls.key": []byte("key")}, GID: v.FSGroup}); err != nil {
		return err
	}
	if _, err := d.Listen("spiffe.sock"); err != nil {
		return err
	}
	return d.WriteState([]byte("issued"))
}

func (a *stubAgent) Unpublish(_ context.Context, id string) error {
	a.mu.Lock()
	a.unpublished++
	hook := a.onUnpublish
	a.mu.Unlock()
	if hook != nil {
		return hook(id)
	}
	return nil
}

// driver is a running server with a kubelet's connection to it.
type driver struct {
	root   string
	store  *Store
	agent  *stubAgent
	client csipb.NodeClient
	conn   *grpc.ClientConn
	log    *logBuffer
}

func startDriver(t testing.TB) *driver {
	t.Helper()
	needMounts(t)
	root, log := tempDir(t), &logBuffer{}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log:\n%s", log.String())
		}
	})
	s, err := OpenStore(StoreOptions{DataRoot: filepath.Join(root, "plugins"), DriverName: testDriver, Log: log.logger()})
	if err != nil {
		t.Fatal(err)
	}
	agent := &stubAgent{store: s}
	socket := filepath.Join(root, "csi.sock")
	server, err := NewServer(ServerOptions{
		Endpoint: "unix://" + socket, DriverName: testDriver, Version: "v0.1.0", NodeID: "node-1",
		Workloads: agent, Store: s, Log: log.logger(),
	})
	if err != nil {
		t.Fatal(err)
	}
	runUntilCleanup(t, server.Run)
	conn := dial(t, socket)
	return &driver{root: root, store: s, agent: agent, client: csipb.NewNodeClient(conn), conn: conn, log: log}
}

// runUntilCleanup runs something that ends with its context.
func runUntilCleanup(t testing.TB, run func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func dial(t testing.TB, socket string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)),
		grpc.WithContextDialer(func(ctx context.Context, path string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// request is a publish of a volume in this driver's temporary kubelet.
func (d *driver) request(t testing.TB, id string) *csipb.NodePublishVolumeRequest {
	t.Helper()
	r := validRequest()
	r.VolumeId = id
	r.TargetPath = makeTargetParent(t, d.root, testPodUID, "vol-"+id)
	return r
}

func (d *driver) publish(t testing.TB, r *csipb.NodePublishVolumeRequest) error {
	t.Helper()
	_, err := d.client.NodePublishVolume(contextOf(t), r)
	return err
}

func (d *driver) unpublish(t testing.TB, id, target string) error {
	t.Helper()
	_, err := d.client.NodeUnpublishVolume(contextOf(t), &csipb.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: target})
	return err
}

func (d *driver) mustPublish(t testing.TB, r *csipb.NodePublishVolumeRequest) {
	t.Helper()
	if err := d.publish(t, r); err != nil {
		t.Fatal(err)
	}
}

// checkNothingLeft is what an unpublish promises.
func (d *driver) checkNothingLeft(t testing.TB, target string) {
	t.Helper()
	if left := mountsUnder(t, d.root); len(left) != 0 {
		t.Errorf("mounts left: %v", left)
	}
	if left, err := os.ReadDir(d.store.root); err != nil || len(left) != 0 {
		t.Errorf("state left: %v, %v", left, err)
	}
	if _, err := os.Lstat(target); !os.IsNotExist(err) {
		t.Errorf("target left: %v", err)
	}
}

func wantCode(t testing.TB, err error, want codes.Code, words ...string) {
	t.Helper()
	if status.Code(err) != want {
		t.Errorf("got %v, want %v", err, want)
	}
	for _, w := range words {
		if !strings.Contains(fmt.Sprint(err), w) {
			t.Errorf("error %v does not mention %q", err, w)
		}
	}
}

func TestPublishAndUnpublish(t *testing.T) {
	d := startDriver(t)
	r := d.request(t, "vol-1")
	d.mustPublish(t, r)
	for name, want := range map[string]string{"tls.crt": "chain", "tls.key": "key"} {
		if b, err := os.ReadFile(filepath.Join(r.TargetPath, name)); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	if at, err := os.Stat(filepath.Join(r.TargetPath, "spiffe.sock")); err != nil || at.Mode().Type() != os.ModeSocket {
		t.Errorf("socket: %v", err)
	}
	at, err := lookAt(r.TargetPath)
	if err != nil {
		t.Fatal(err)
	}
	m, err := topMount(r.TargetPath, at)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(m.MountOptions, ","); !strings.HasPrefix(got, "rw,nosuid,nodev,noexec") {
		t.Errorf("options at the target: %s", got)
	}
	if err := d.unpublish(t, "vol-1", r.TargetPath); err != nil {
		t.Fatal(err)
	}
	d.checkNothingLeft(t, r.TargetPath)
	if p, u := d.agent.calls(); p != 1 || u != 1 {
		t.Errorf("the agent was called %d and %d times", p, u)
	}
}

func TestThousandPublishesOneMount(t *testing.T) {
	d := startDriver(t)
	r := d.request(t, "vol-1")
	d.mustPublish(t, r)
	before, err := os.Stat(filepath.Join(r.TargetPath, "tls.key"))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 250 {
				if err := d.publish(t, r); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if n := mountsAt(t, r.TargetPath); n != 1 {
		t.Errorf("%d mounts at the target", n)
	}
	if n := len(mountsUnder(t, d.root)); n != 2 {
		t.Errorf("%d mounts altogether", n)
	}
	after, err := os.Stat(filepath.Join(r.TargetPath, "tls.key"))
	if err != nil || !os.SameFile(before, after) {
		t.Errorf("the key was replaced: %v", err)
	}
}

// Two publishes overlap: neither returns before the files exist, both succeed.
func TestOverlappingPublishes(t *testing.T) {
	d := startDriver(t)
	issued, both := make(chan struct{}), make(chan struct{}, 2)
	d.agent.hooks(func(context.Context, Volume) error {
		both <- struct{}{}
		<-issued
		return nil
	}, nil)
	r := d.request(t, "vol-1")
	results := make(chan error, 2)
	for range 2 {
		go func() {
			err := d.publish(t, r)
			if _, statErr := os.Stat(filepath.Join(r.TargetPath, "tls.key")); err == nil && statErr != nil {
				err = statErr
			}
			results <- err
		}()
	}
	<-both
	<-both
	close(issued)
	for range 2 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if n := mountsAt(t, r.TargetPath); n != 1 {
		t.Errorf("%d mounts at the target", n)
	}
}

func TestRepublishNeverHurts(t *testing.T) {
	d := startDriver(t)
	r := d.request(t, "vol-1")
	d.mustPublish(t, r)
	before, err := lookAt(r.TargetPath)
	if err != nil {
		t.Fatal(err)
	}
	for _, refusal := range []error{ErrDenied, ErrInvalid, ErrUnavailable, ErrPending, errors.New("boom"), context.DeadlineExceeded} {
		d.agent.hooks(func(context.Context, Volume) error { return refusal }, nil)
		if err := d.publish(t, r); err != nil {
			t.Errorf("republish while the agent says %q: %v", refusal, err)
		}
		after, err := lookAt(r.TargetPath)
		if err != nil || after != before {
			t.Errorf("the mount changed: %+v, %+v, %v", before, after, err)
		}
		if b, err := os.ReadFile(filepath.Join(r.TargetPath, "tls.key")); err != nil || string(b) != "key" {
			t.Errorf("the key: %q, %v", b, err)
		}
	}
	if _, unpublished := d.agent.calls(); unpublished != 0 {
		t.Error("the identity was ended")
	}
	if !strings.Contains(d.log.String(), "republish failed") {
		t.Error("nothing was logged")
	}
}

// Kubelet does not come back after a final error: nothing may be left. After the others it does.
func TestFailedPublish(t *testing.T) {
	for _, c := range []struct {
		err  error
		code codes.Code
		kept bool
	}{
		{fmt.Errorf("%w: rule issuer", ErrDenied), codes.PermissionDenied, false},
		{ErrInvalid, codes.InvalidArgument, false},
		{errors.New("boom"), codes.Internal, false},
		{fmt.Errorf("%w: waiting for approval", ErrPending), codes.DeadlineExceeded, true},
		{ErrUnavailable, codes.Unavailable, true},
		{ErrAborted, codes.Aborted, true},
		{fmt.Errorf("write: %w", unix.ENOSPC), codes.ResourceExhausted, true},
	} {
		t.Run(c.code.String(), func(t *testing.T) {
			d := startDriver(t)
			d.agent.hooks(func(context.Context, Volume) error { return c.err }, nil)
			r := d.request(t, "vol-1")
			wantCode(t, d.publish(t, r), c.code, c.err.Error())
			if mountsAt(t, r.TargetPath) != 0 {
				t.Error("mounted all the same")
			}
			_, unpublished := d.agent.calls()
			if _, kept := d.store.Get("vol-1"); kept != c.kept || (unpublished == 0) != c.kept {
				t.Errorf("kept %v, identity ended %d times", kept, unpublished)
			}
			if !c.kept {
				d.checkNothingLeft(t, r.TargetPath)
			}
			d.agent.hooks(nil, nil)
			d.mustPublish(t, r)
			if len(mountsUnder(t, d.root)) != 2 {
				t.Error("the retry did not mount")
			}
		})
	}
}

// One of two overlapping publishes fails for good: the other's volume stays.
func TestFailedPublishLeavesTheOtherAlone(t *testing.T) {
	d := startDriver(t)
	r := d.request(t, "vol-1")
	first, refuse := make(chan struct{}), make(chan struct{})
	var once sync.Once
	d.agent.hooks(func(context.Context, Volume) error {
		mine := false
		once.Do(func() { mine = true })
		if !mine {
			return nil
		}
		close(first)
		<-refuse
		return ErrDenied
	}, nil)
	refused := make(chan error, 1)
	other := d.request(t, "vol-1")
	other.TargetPath = makeTargetParent(t, d.root, testPodUID, "elsewhere")
	go func() { refused <- d.publish(t, other) }()
	<-first
	d.mustPublish(t, r)
	close(refuse)
	wantCode(t, <-refused, codes.PermissionDenied)
	if b, err := os.ReadFile(filepath.Join(r.TargetPath, "tls.key")); err != nil || string(b) != "key" {
		t.Errorf("the published volume reads %q, %v", b, err)
	}
}

func TestUnpublishIsAlwaysOK(t *testing.T) {
	d := startDriver(t)
	target := makeTargetParent(t, d.root, testPodUID, "x")
	mkdir := func() {
		if err := os.Mkdir(target, 0o750); err != nil {
			t.Fatal(err)
		}
	}
	for name, prepare := range map[string]func(){
		"unknown volume, no target": func() {},
		"unknown volume, empty dir": mkdir,
		"published, target unmounted": func() {
			r := d.request(t, "vol-1")
			r.TargetPath = target
			d.mustPublish(t, r)
			mustUnmount(t, target)
		},
		"published, target removed": func() {
			r := d.request(t, "vol-1")
			r.TargetPath = target
			d.mustPublish(t, r)
			mustUnmount(t, target)
			if err := os.Remove(target); err != nil {
				t.Fatal(err)
			}
		},
		"published, tmpfs unmounted": func() {
			r := d.request(t, "vol-1")
			r.TargetPath = target
			d.mustPublish(t, r)
			// The socket keeps the mount busy.
			if err := unix.Unmount(filepath.Join(d.store.root, "vol-1"), unix.MNT_DETACH); err != nil {
				t.Fatal(err)
			}
		},
		"never bound": func() {
			if _, err := d.store.Create("vol-1"); err != nil {
				t.Fatal(err)
			}
		},
		"bound in three layers": func() {
			v := create(t, d.store, "vol-1")
			for range 3 {
				mustMount(t, filepath.Join(v.path, podDir), target, "", unix.MS_BIND, "")
			}
		},
		"csi-driver-spiffe's mount": func() { mustMount(t, "tmpfs", target, "tmpfs", 0, "") },
		"parent missing": func() {
			if err := os.RemoveAll(filepath.Join(d.root, "pods")); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
				t.Fatal(err)
			}
			prepare()
			for range 2 {
				if err := d.unpublish(t, "vol-1", target); err != nil {
					t.Error(err)
				}
			}
			d.checkNothingLeft(t, target)
		})
	}
	t.Run("target not empty", func(t *testing.T) {
		if err := os.MkdirAll(filepath.Join(target, "left"), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := d.unpublish(t, "vol-1", target); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(filepath.Join(target, "left")); err != nil {
			t.Errorf("somebody's file was removed: %v", err)
		}
	})
	wantCode(t, d.unpublish(t, "", target), codes.InvalidArgument, "volume_id")
	wantCode(t, d.unpublish(t, "vol-1", ""), codes.InvalidArgument, "target_path")
	wantCode(t, d.unpublish(t, "../x", target), codes.InvalidArgument, "volume_id")
	wantCode(t, d.unpublish(t, "vol-1", d.store.root), codes.InvalidArgument, "target_path")
}

func TestForeignMountAtTheTarget(t *testing.T) {
	d := startDriver(t)
	r := d.request(t, "vol-1")
	mustMount(t, "somebody", r.TargetPath, "tmpfs", 0, "")
	wantCode(t, d.publish(t, r), codes.FailedPrecondition, r.TargetPath, "somebody")
	if p, _ := d.agent.calls(); p != 0 {
		t.Error("an identity was asked for in vain")
	}
	if mountsAt(t, r.TargetPath) != 1 {
		t.Error("the foreign mount was touched")
	}
	// Not kubelet's layout: nobody asked us to unmount that.
	other := filepath.Join(d.root, "precious")
	mustMount(t, "somebody", other, "tmpfs", 0, "")
	wantCode(t, d.unpublish(t, "vol-2", other), codes.FailedPrecondition, other, "somebody")
	mustMount(t, "proc", filepath.Join(d.root, "pods/x/volumes/kubernetes.io~csi/y/mount"), "proc", 0, "")
	wantCode(t, d.unpublish(t, "vol-2", filepath.Join(d.root, "pods/x/volumes/kubernetes.io~csi/y/mount")), codes.FailedPrecondition, "proc")
	// Kubelet's layout, but a Signet with another driver name made it.
	second := filepath.Join(d.root, "pods/x/volumes/kubernetes.io~csi/z/mount")
	mustMount(t, mountSource+"second.example", second, "tmpfs", 0, "")
	wantCode(t, d.unpublish(t, "vol-2", second), codes.FailedPrecondition, "second.example")
	if mountsAt(t, second) != 1 {
		t.Error("another driver's volume was touched")
	}
	// Another volume of ours.
	one := d.request(t, "one")
	d.mustPublish(t, one)
	two := d.request(t, "two")
	two.TargetPath = one.TargetPath
	wantCode(t, d.publish(t, two), codes.FailedPrecondition, "one")
	wantCode(t, d.unpublish(t, "two", one.TargetPath), codes.FailedPrecondition, "one")
	if b, err := os.ReadFile(filepath.Join(one.TargetPath, "tls.key")); err != nil || string(b) != "key" {
		t.Errorf("the other volume reads %q, %v", b, err)
	}
	// A file, or a missing parent.
	three := d.request(t, "three")
	if err := os.WriteFile(three.TargetPath, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	wantCode(t, d.publish(t, three), codes.FailedPrecondition, "not a directory")
	four := d.request(t, "four")
	if err := os.RemoveAll(filepath.Dir(four.TargetPath)); err != nil {
		t.Fatal(err)
	}
	wantCode(t, d.publish(t, four), codes.FailedPrecondition, "parent")
	if _, err := os.Stat(filepath.Dir(four.TargetPath)); !os.IsNotExist(err) {
		t.Errorf("the pod's directory was made anew: %v", err)
	}
}

// The agent lost its tmpfs (no propagation, a container runtime that cleans up): what is still at the target
// is of no use to anybody.
func TestStaleMountAtTheTargetIsReplaced(t *testing.T) {
	d := startDriver(t)
	r := d.request(t, "vol-1")
	d.mustPublish(t, r)
	if err := unix.Unmount(filepath.Join(d.store.root, "vol-1"), unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	d.mustPublish(t, r)
	if n := mountsAt(t, r.TargetPath); n != 1 {
		t.Errorf("%d mounts at the target", n)
	}
	v, ok := d.store.Get("vol-1")
	if !ok {
		t.Fatal("no volume")
	}
	if bound, err := v.IsBoundAt(r.TargetPath); !bound || err != nil {
		t.Errorf("bound: %v, %v", bound, err)
	}
}

// An unpublish overtakes a publish that waits for its identity.
func TestUnpublishDuringIssuance(t *testing.T) {
	d := startDriver(t)
	waiting, ended := make(chan struct{}), make(chan struct{})
	d.agent.hooks(
		func(context.Context, Volume) error {
			close(waiting)
			<-ended
			return fmt.Errorf("%w: unpublished", ErrAborted)
		},
		func(string) error { close(ended); return nil })
	r := d.request(t, "vol-1")
	result := make(chan error, 1)
	go func() { result <- d.publish(t, r) }()
	<-waiting
	if err := d.unpublish(t, "vol-1", r.TargetPath); err != nil {
		t.Fatal(err)
	}
	wantCode(t, <-result, codes.Aborted)
	d.checkNothingLeft(t, r.TargetPath)
}

// The agent hands over the identity, and only then comes the unpublish: the publish must notice.
func TestUnpublishBetweenIssuanceAndMount(t *testing.T) {
	d := startDriver(t)
	waiting, ended := make(chan struct{}), make(chan struct{})
	d.agent.hooks(func(context.Context, Volume) error { close(waiting); <-ended; return nil }, nil)
	r := d.request(t, "vol-1")
	result := make(chan error, 1)
	go func() { result <- d.publish(t, r) }()
	<-waiting
	if err := d.unpublish(t, "vol-1", r.TargetPath); err != nil {
		t.Fatal(err)
	}
	close(ended)
	wantCode(t, <-result, codes.Aborted)
	d.checkNothingLeft(t, r.TargetPath)
}

// As before, and the volume is being published anew when the old call comes back: it must not mount what the
// new one has not finished.
func TestOldPublishDoesNotMountTheNewVolume(t *testing.T) {
	d := startDriver(t)
	entered, goOn := make(chan struct{}), []chan struct{}{make(chan struct{}), make(chan struct{})}
	var mu sync.Mutex
	n := 0
	d.agent.hooks(func(context.Context, Volume) error {
		mu.Lock()
		mine := goOn[n]
		n++
		mu.Unlock()
		entered <- struct{}{}
		<-mine
		return nil
	}, nil)
	r := d.request(t, "vol-1")
	results := []chan error{make(chan error, 1), make(chan error, 1)}
	publish := func(i int) {
		go func() { results[i] <- d.publish(t, r) }()
		<-entered
	}
	publish(0)
	if err := d.unpublish(t, "vol-1", r.TargetPath); err != nil {
		t.Fatal(err)
	}
	publish(1)
	// The stub's first call holds a Dir that is gone; it must not matter, so it is given the new one's state.
	v, ok := d.store.Get("vol-1")
	if !ok {
		t.Fatal("no volume")
	}
	call := d.server(t)
	err := call.publish(contextOf(t), &publishCall{gates: &call.gates, gate: &gate{departures: 1}, id: "vol-1"}, Volume{ID: "vol-1", TargetPath: r.TargetPath})
	if !errors.Is(err, ErrAborted) || mountsAt(t, r.TargetPath) != 0 {
		t.Errorf("an overtaken publish: %v, %d mounts", err, mountsAt(t, r.TargetPath))
	}
	close(goOn[0])
	wantCode(t, <-results[0], codes.Aborted)
	if bound, err := v.IsBoundAt(r.TargetPath); bound || err != nil {
		t.Errorf("mounted before it was finished: %v, %v", bound, err)
	}
	close(goOn[1])
	if err := <-results[1]; err != nil {
		t.Error(err)
	}
}

// server is a node service on the driver's store whose agent always agrees.
func (d *driver) server(t testing.TB) *node {
	t.Helper()
	return &node{store: d.store, workloads: agreeable{}, log: testLog(t)}
}

type agreeable struct{}

func (agreeable) Publish(context.Context, Volume) error   { return nil }
func (agreeable) Unpublish(context.Context, string) error { return nil }

// While an unpublish runs no publish begins.
func TestPublishDuringUnpublish(t *testing.T) {
	d := startDriver(t)
	inside, leave := make(chan struct{}), make(chan struct{})
	d.agent.hooks(nil, func(string) error { close(inside); <-leave; return nil })
	r := d.request(t, "vol-1")
	d.mustPublish(t, r)
	result := make(chan error, 1)
	go func() { result <- d.unpublish(t, "vol-1", r.TargetPath) }()
	<-inside
	wantCode(t, d.publish(t, r), codes.Aborted, "vol-1")
	close(leave)
	if err := <-result; err != nil {
		t.Error(err)
	}
	d.checkNothingLeft(t, r.TargetPath)
	d.agent.hooks(nil, nil)
	d.mustPublish(t, r)
}

// An agent that cannot let go keeps the volume: kubelet asks again.
func TestUnpublishThatFails(t *testing.T) {
	d := startDriver(t)
	r := d.request(t, "vol-1")
	d.mustPublish(t, r)
	d.agent.hooks(nil, func(string) error { return ErrUnavailable })
	wantCode(t, d.unpublish(t, "vol-1", r.TargetPath), codes.Unavailable, "vol-1")
	if mountsAt(t, r.TargetPath) != 1 {
		t.Error("unmounted although the identity may still be written")
	}
	d.agent.hooks(nil, nil)
	if err := d.unpublish(t, "vol-1", r.TargetPath); err != nil {
		t.Error(err)
	}
	d.checkNothingLeft(t, r.TargetPath)
}

func TestPublishesAndUnpublishesAtRandom(t *testing.T) {
	d := startDriver(t)
	requests := []*csipb.NodePublishVolumeRequest{d.request(t, "a"), d.request(t, "b"), d.request(t, "c")}
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			for j := range 30 {
				r := requests[(i+j)%len(requests)]
				if err := d.publish(t, r); err != nil && status.Code(err) != codes.Aborted {
					t.Errorf("publish: %v", err)
				}
				if (i+j)%2 == 0 {
					if err := d.unpublish(t, r.VolumeId, r.TargetPath); err != nil {
						t.Errorf("unpublish: %v", err)
					}
				}
			}
		})
	}
	wg.Wait()
	for _, r := range requests {
		if n := mountsAt(t, r.TargetPath); n > 1 {
			t.Errorf("%d mounts at %s", n, r.TargetPath)
		}
		if err := d.unpublish(t, r.VolumeId, r.TargetPath); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(r.TargetPath); !os.IsNotExist(err) {
			t.Errorf("target left: %v", err)
		}
	}
	if left := mountsUnder(t, d.root); len(left) != 0 {
		t.Errorf("mounts left: %v", left)
	}
}

func TestRequestsAreRefusedOverTheWire(t *testing.T) {
	d := startDriver(t)
	r := d.request(t, "vol-1")
	r.Readonly = false
	wantCode(t, d.publish(t, r), codes.InvalidArgument, "readOnly")
	r = d.request(t, "vol-1")
	r.VolumeContext["colour"] = "blue"
	wantCode(t, d.publish(t, r), codes.InvalidArgument, "colour")
	if p, u := d.agent.calls(); p+u != 0 {
		t.Error("the agent was asked")
	}
	_, err := d.client.NodeGetVolumeStats(contextOf(t), &csipb.NodeGetVolumeStatsRequest{})
	wantCode(t, err, codes.Unimplemented)
}

// No token and nothing from the volume reaches the log or an error, at the finest level.
func TestNoSecretInLogsAndErrors(t *testing.T) {
	d := startDriver(t)
	var texts []string
	for _, answer := range []error{nil, ErrDenied, errors.New("boom"), ErrPending} {
		for _, where := range []string{"secrets", "context"} {
			d.agent.hooks(func(_ context.Context, v Volume) error {
				if v.Token.Value() != testToken {
					t.Errorf("the agent got token %q", v.Token.Value())
				}
				d.log.logger().Info("agent", "volume", v, "token", v.Token)
				if answer != nil {
					return fmt.Errorf("%w: for %+v", answer, v)
				}
				return nil
			}, nil)
			r := d.request(t, "vol-1")
			if where == "secrets" {
				r.Secrets = map[string]string{keyTokens: testTokenJSON}
			} else {
				r.VolumeContext[keyTokens] = testTokenJSON
			}
			if err := d.publish(t, r); err != nil {
				texts = append(texts, err.Error())
			}
			r.Readonly = false
			texts = append(texts, fmt.Sprint(d.publish(t, r)))
			if err := d.unpublish(t, "vol-1", r.TargetPath); err != nil {
				t.Error(err)
			}
		}
	}
	all := d.log.String() + strings.Join(texts, "\n")
	if !strings.Contains(all, "vol-1") || !strings.Contains(all, "web-0") {
		t.Errorf("the log says nothing:\n%s", all)
	}
	for _, secret := range []string{testToken, "c2VjcmV0", "chain"} {
		if strings.Contains(all, secret) {
			t.Errorf("%q appears", secret)
		}
	}
}

func TestPanicOfTheAgentIsAnError(t *testing.T) {
	d := startDriver(t)
	d.agent.hooks(func(context.Context, Volume) error { panic(testToken) }, nil)
	r := d.request(t, "vol-1")
	wantCode(t, d.publish(t, r), codes.Internal, "internal error")
	if strings.Contains(d.log.String(), testToken) {
		t.Error("the panic's value was logged")
	}
	d.agent.hooks(nil, nil)
	d.mustPublish(t, r)
}

func TestIdentityService(t *testing.T) {
	d := startDriver(t)
	client := csipb.NewIdentityClient(d.conn)
	info, err := client.GetPluginInfo(contextOf(t), &csipb.GetPluginInfoRequest{})
	if err != nil || info.GetName() != testDriver || info.GetVendorVersion() != "v0.1.0" {
		t.Errorf("info: %v, %v", info, err)
	}
	capabilities, err := client.GetPluginCapabilities(contextOf(t), &csipb.GetPluginCapabilitiesRequest{})
	if err != nil || len(capabilities.GetCapabilities()) != 0 {
		t.Errorf("capabilities: %v, %v", capabilities, err)
	}
	node, err := d.client.NodeGetInfo(contextOf(t), &csipb.NodeGetInfoRequest{})
	if err != nil || node.GetNodeId() != "node-1" {
		t.Errorf("node: %v, %v", node, err)
	}
	of, err := d.client.NodeGetCapabilities(contextOf(t), &csipb.NodeGetCapabilitiesRequest{})
	if err != nil || len(of.GetCapabilities()) != 1 ||
		of.GetCapabilities()[0].GetRpc().GetType() != csipb.NodeServiceCapability_RPC_VOLUME_MOUNT_GROUP {
		t.Errorf("node capabilities: %v, %v", of, err)
	}
}

func TestProbeAsksTheAgent(t *testing.T) {
	notReady := errors.New("not synced")
	i := &identity{ready: func() error { return notReady }, log: testLog(t)}
	if r, err := i.Probe(contextOf(t), nil); err != nil || r.GetReady().GetValue() {
		t.Errorf("probe while not ready: %v, %v", r, err)
	}
	notReady = nil
	if r, err := i.Probe(contextOf(t), nil); err != nil || !r.GetReady().GetValue() {
		t.Errorf("probe while ready: %v, %v", r, err)
	}
}
