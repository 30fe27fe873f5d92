// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"

	"github.com/signet-spiffe/signet/internal/pki"
)

// keeper keeps an eye on volumes from the node, through everything that is done to
// the parts around them: it reads the files at every swap, holds a stream on every
// socket, and remembers what a pod could not have lived with.
type keeper struct {
	ctx     context.Context
	watcher *fsnotify.Watcher
	work    sync.WaitGroup

	mu      sync.Mutex // Guards the rest, and all that is kept.
	kept    map[string]*kept
	changed chan struct{} // Closed at every change.
}

// kept is one volume.
type kept struct {
	keeper *keeper
	node   onNode
	pod    *corev1.Pod
	volume string
	id     spiffeid.ID
	// SVIDs of the files, in order; the last is the present one.
	svids []kindOfSVID
	// streamed are the serials that the stream brought, in order.
	streamed []string
	// broken counts streams that had brought an SVID and ended, cutAt is when the last
	// one did. One that is turned away by an agent that is about to end is a try.
	broken int
	cutAt  time.Time
	// cuts are the times without a stream that are over.
	cuts []cut
	// resumed is how long the stream was away at most, resumedAt when it was back last.
	resumed   time.Duration
	resumedAt time.Time
	// troubles are what must not happen.
	troubles []string
	stop     context.CancelFunc
}

// cut is a time without a stream.
type cut struct{ from, to time.Time }

// away reports whether there was no stream at that time. It needs the mutex.
func (v *kept) away(at time.Time) bool {
	if !v.cutAt.IsZero() && !at.Before(v.cutAt) {
		return true
	}
	return slices.ContainsFunc(v.cuts, func(c cut) bool { return !at.Before(c.from) && !at.After(c.to) })
}

// kindOfSVID is what is remembered of an SVID.
type kindOfSVID struct {
	serial              string
	notBefore, notAfter time.Time
	// seen is when the files had it first.
	seen time.Time
}

// newKeeper begins to keep; what is kept is checked at the end of the test.
func newKeeper(ctx context.Context, t *testing.T) *keeper {
	t.Helper()
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(ctx)
	k := &keeper{ctx: ctx, watcher: watcher, kept: map[string]*kept{}, changed: make(chan struct{})}
	k.work.Go(k.watch)
	t.Cleanup(func() {
		cancel()
		if err := watcher.Close(); err != nil {
			t.Error(err)
		}
		k.work.Wait()
	})
	return k
}

// keep begins with a pod's volume, which must be published.
func (k *keeper) keep(t *testing.T, n onNode, pod *corev1.Pod, volume, id string) *kept {
	t.Helper()
	ctx, stop := context.WithCancel(k.ctx)
	v := &kept{keeper: k, node: n, pod: pod, volume: volume, id: spiffeid.RequireFromString(id), stop: stop}
	k.mu.Lock()
	k.kept[v.dir()] = v
	k.mu.Unlock()
	// Watched before it is read, so that no swap falls in between.
	if err := k.watcher.Add(v.dir()); err != nil {
		t.Fatal(err)
	}
	v.look()
	conn, err := grpc.NewClient("passthrough:///spiffe.sock",
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(v.dial),
		// A client that comes back quickly shows when the socket is.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.5, MaxDelay: 200 * time.Millisecond}, MinConnectTimeout: time.Second,
		}))
	if err != nil {
		t.Fatal(err)
	}
	k.work.Go(func() {
		defer conn.Close()
		for ctx.Err() == nil {
			err := v.stream(ctx, conn)
			v.streamEnded(ctx, err)
		}
	})
	return v
}

// keepAll keeps the identity volumes of pods.
func (k *keeper) keepAll(ctx context.Context, t *testing.T, pods ...*corev1.Pod) []*kept {
	t.Helper()
	var all []*kept
	nodes := map[string]onNode{}
	for _, pod := range pods {
		name := pod.Spec.NodeName
		if nodes[name].pid == 0 {
			nodes[name] = node(ctx, t, name)
		}
		all = append(all, k.keep(t, nodes[name], pod, volumeName, spiffeID(pod.Namespace, pod.Spec.ServiceAccountName)))
	}
	return all
}

// release ends with a volume, before its pod is deleted.
func (k *keeper) release(v *kept) {
	v.stop()
	_ = k.watcher.Remove(v.dir()) // The volume may be gone.
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.kept, v.dir())
}

// dir is what the pod mounts.
func (v *kept) dir() string {
	return v.node.path(filepath.Join(volumeDirOf(v.pod, v.volume), "mount"))
}

func (v *kept) name() string {
	return fmt.Sprintf("volume %s of %s/%s on %s", v.volume, v.pod.Namespace, v.pod.Name, v.node.Name)
}

func (v *kept) dial(ctx context.Context, _ string) (net.Conn, error) {
	dir, err := os.Open(v.dir())
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	var d net.Dialer
	return d.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/spiffe.sock", dir.Fd()))
}

func (k *keeper) watch() {
	for {
		select {
		case event, ok := <-k.watcher.Events:
			if !ok {
				return
			}
			if filepath.Base(event.Name) == "..data" && event.Has(fsnotify.Create) {
				k.mu.Lock()
				v := k.kept[filepath.Dir(event.Name)]
				k.mu.Unlock()
				if v != nil {
					v.look()
				}
			}
		case err, ok := <-k.watcher.Errors:
			if !ok {
				return
			}
			k.mu.Lock()
			for _, v := range k.kept {
				v.trouble("watch: %v", err)
			}
			k.mu.Unlock()
		}
	}
}

// look reads the files.
func (v *kept) look() {
	leaf, err := readVolume(v.dir(), v.id)
	k := v.keeper
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil {
		v.trouble("files: %v", err)
		return
	}
	now, serial := time.Now(), leaf.SerialNumber.Text(16)
	if n := len(v.svids); n > 0 {
		before := v.svids[n-1]
		if before.serial == serial {
			return // The same again, by an agent that took the volume up.
		}
		if now.After(before.notAfter) {
			v.trouble("SVID %s expired at %s, the next came at %s", before.serial, before.notAfter, now)
		}
		if leaf.NotAfter.Before(before.notAfter) {
			v.trouble("SVID %s, until %s, was followed by %s, until %s", before.serial, before.notAfter, serial, leaf.NotAfter)
		}
	}
	v.svids = append(v.svids, kindOfSVID{serial, leaf.NotBefore, leaf.NotAfter, now})
	k.tell()
}

// readVolume reads files as the strictest of their readers, of one generation.
func readVolume(dir string, id spiffeid.ID) (*x509.Certificate, error) {
	for {
		generation, err := os.Readlink(filepath.Join(dir, "..data"))
		if err != nil {
			return nil, err
		}
		leaf, err := readGeneration(filepath.Join(dir, generation), id)
		if errors.Is(err, fs.ErrNotExist) {
			if now, again := os.Readlink(filepath.Join(dir, "..data")); again == nil && now != generation {
				continue // Two swaps came during the read.
			}
		}
		return leaf, err
	}
}

func readGeneration(dir string, id spiffeid.ID) (*x509.Certificate, error) {
	content := map[string][]byte{}
	for _, name := range []string{"tls.crt", "tls.key", "ca.crt"} {
		var err error
		if content[name], err = os.ReadFile(filepath.Join(dir, name)); err != nil {
			return nil, err
		}
	}
	chain, err := pki.ParseCertificates(content["tls.crt"])
	if err != nil {
		return nil, err
	}
	key, err := pki.ParsePrivateKeyPEM(content["tls.key"])
	if err != nil {
		return nil, err
	}
	authorities, err := pki.ParseCertificates(content["ca.crt"])
	if err != nil {
		return nil, err
	}
	return chain[0], pki.VerifySVID(chain, pki.Expectation{
		ID: id, Key: key, Now: time.Now(), Bundle: x509bundle.FromX509Authorities(id.TrustDomain(), authorities),
	})
}

// stream holds one stream until it ends.
func (v *kept) stream(ctx context.Context, conn *grpc.ClientConn) error {
	stream, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(
		withMetadata(ctx, "workload.spiffe.io", "true"), &workload.X509SVIDRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	for {
		answer, err := stream.Recv()
		if err != nil {
			return err
		}
		v.streamBrought(answer)
	}
}

func (v *kept) streamBrought(answer *workload.X509SVIDResponse) {
	k := v.keeper
	k.mu.Lock()
	defer k.mu.Unlock()
	svid := answer.GetSvids()[0]
	chain, err := x509.ParseCertificates(svid.GetX509Svid())
	if err != nil {
		v.trouble("stream: %v", err)
		return
	}
	if err := matches(chain[0], svid.GetX509SvidKey()); err != nil {
		v.trouble("stream: %v", err)
	}
	if svid.GetSpiffeId() != v.id.String() || len(chain[0].URIs) != 1 || chain[0].URIs[0].String() != v.id.String() {
		v.trouble("the stream brought an SVID of %s, want %s", svid.GetSpiffeId(), v.id)
	}
	if now := time.Now(); now.After(chain[0].NotAfter) {
		v.trouble("the stream brought an SVID that had expired at %s", chain[0].NotAfter)
	}
	if !v.cutAt.IsZero() {
		v.resumedAt = time.Now()
		v.resumed = max(v.resumed, v.resumedAt.Sub(v.cutAt))
		v.cuts = append(v.cuts, cut{v.cutAt, v.resumedAt})
		v.cutAt = time.Time{}
	}
	if serial := chain[0].SerialNumber.Text(16); len(v.streamed) == 0 || v.streamed[len(v.streamed)-1] != serial {
		v.streamed = append(v.streamed, serial)
	}
	k.tell()
}

// matches says whether a PKCS #8 key is a certificate's.
func matches(leaf *x509.Certificate, pkcs8 []byte) error {
	key, err := x509.ParsePKCS8PrivateKey(pkcs8)
	if err != nil {
		return err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return fmt.Errorf("a key of type %T", key)
	}
	if public, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(leaf.PublicKey) {
		return fmt.Errorf("the key is not that of SVID %s", leaf.SerialNumber.Text(16))
	}
	return nil
}

func (v *kept) streamEnded(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	k := v.keeper
	k.mu.Lock()
	defer k.mu.Unlock()
	if v.cutAt.IsZero() {
		v.broken++
		v.cutAt = time.Now()
	}
	if err == nil {
		v.trouble("the stream ended with OK")
	}
	k.tell()
}

// trouble needs the keeper's mutex.
func (v *kept) trouble(format string, args ...any) {
	v.troubles = append(v.troubles, time.Now().Format(time.TimeOnly)+" "+fmt.Sprintf(format, args...))
	v.keeper.tell()
}

// tell wakes those who wait; it needs the mutex.
func (k *keeper) tell() {
	close(k.changed)
	k.changed = make(chan struct{})
}

// wait waits until done is content with each of the volumes. Done is called with
// the keeper locked, at every change; what depends on time alone is not seen.
func (k *keeper) wait(ctx context.Context, t *testing.T, what string, volumes []*kept, done func(*kept) error) {
	t.Helper()
	if err := k.await(ctx, volumes, done); err != nil {
		t.Fatalf("wait for %s: %v", what, err)
	}
}

func (k *keeper) await(ctx context.Context, volumes []*kept, done func(*kept) error) error {
	for {
		var missing error
		k.mu.Lock()
		for _, v := range volumes {
			if err := done(v); err != nil {
				missing = fmt.Errorf("%s: %w", v.name(), err)
				break
			}
		}
		changed := k.changed
		k.mu.Unlock()
		if missing == nil {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), missing)
		}
	}
}

// waitNext waits until each volume has another SVID than it had, by files and by
// stream.
func (k *keeper) waitNext(ctx context.Context, t *testing.T, volumes []*kept) {
	t.Helper()
	serials := map[*kept]string{}
	k.mu.Lock()
	for _, v := range volumes {
		serials[v] = v.present().serial
	}
	k.mu.Unlock()
	k.wait(ctx, t, "the next SVID", volumes, func(v *kept) error {
		if now := v.present().serial; now == serials[v] || !slices.Contains(v.streamed, now) {
			return fmt.Errorf("the files have %s, the stream brought %q; it had %s", now, v.streamed, serials[v])
		}
		return nil
	})
}

// waitFresh waits until no SVID is due for renewal: each has more than a third of
// its life left.
func (k *keeper) waitFresh(ctx context.Context, t *testing.T, volumes []*kept) {
	t.Helper()
	k.wait(ctx, t, "due renewals", volumes, func(v *kept) error {
		p := v.present()
		if left := time.Until(p.notAfter); left < p.notAfter.Sub(p.notBefore)/3 {
			return fmt.Errorf("SVID %s has %s left", p.serial, left)
		}
		return nil
	})
}

// waitQuiet waits until no SVID is due for renewal for a while, by the plan: at two
// thirds of the life, less a tenth by chance. Volumes that were not made at the same
// time may never come to that; then it gives up after a life and says so.
func (k *keeper) waitQuiet(ctx context.Context, volumes []*kept, quiet time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, svidLife)
	defer cancel()
	err := k.await(ctx, volumes, func(v *kept) error {
		p := v.present()
		life := p.notAfter.Sub(p.notBefore)
		if due := time.Until(p.notBefore.Add(life*2/3 - life/10)); due < quiet {
			return fmt.Errorf("SVID %s may be renewed in %s", p.serial, due)
		}
		return nil
	})
	return err == nil
}

// broke counts the streams that ended.
func (k *keeper) broke(volumes ...*kept) (n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, v := range volumes {
		n += v.broken
	}
	return n
}

// serials are the present SVIDs of volumes.
func (k *keeper) serials(volumes ...*kept) (serials []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, v := range volumes {
		serials = append(serials, v.present().serial)
	}
	return serials
}

// waitStreams waits until every stream is there and shows what the files have.
func (k *keeper) waitStreams(ctx context.Context, t *testing.T, volumes []*kept) {
	t.Helper()
	k.wait(ctx, t, "streams", volumes, func(v *kept) error {
		if n := len(v.streamed); !v.cutAt.IsZero() || n == 0 || v.streamed[n-1] != v.present().serial {
			return fmt.Errorf("the stream is cut: %t; it brought %q, the files have %s", !v.cutAt.IsZero(), v.streamed, v.present().serial)
		}
		return nil
	})
}

// present needs the mutex.
func (v *kept) present() kindOfSVID {
	if len(v.svids) == 0 {
		return kindOfSVID{}
	}
	return v.svids[len(v.svids)-1]
}

// check reports what went wrong with any volume that is or was kept, and that the
// stream brought what the files had, but for what was replaced while there was no
// stream.
func (k *keeper) check(t *testing.T, volumes []*kept) {
	t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, v := range volumes {
		for _, trouble := range v.troubles {
			t.Errorf("%s: %s", v.name(), trouble)
		}
		if now := time.Now(); now.After(v.present().notAfter) {
			t.Errorf("%s: its SVID expired at %s, it is %s", v.name(), v.present().notAfter, now)
		}
		for i, svid := range v.svids[:max(len(v.svids)-1, 0)] {
			if !slices.Contains(v.streamed, svid.serial) && !v.away(v.svids[i+1].seen) {
				t.Errorf("%s: the files had SVID %s, which the stream did not bring (%q)", v.name(), svid.serial, v.streamed)
			}
		}
	}
}
