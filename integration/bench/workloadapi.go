// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/signet-spiffe/signet/internal/hostile"
)

// WorkloadAPI is what the Workload API sockets of a node do and cost.
type WorkloadAPI struct {
	// Fetches are of an SVID on a new connection, one at a time. Attacked are the
	// same while one pod attacks its own socket, with AttackCPU of a core used by the
	// agent, in percent, and AttackBytes resident in all at the end of it. How much of
	// them is the attack's cannot be told: the runtime still gives back what the
	// measurements before have used.
	Fetches, Attacked Latencies
	AttackCPU         float64
	AttackBytes       int64
	// Streams is how many were open, each on a connection of its own, StreamBytes
	// what each added to the agent's resident memory.
	Streams     int
	StreamBytes int64
	// Pushes are changes of what all streams say.
	Pushes []Push
	// Busy is how busy the whole machine was before, in percent of all cores.
	Busy float64
}

// Push is one change. Change is from the writing of the trust bundle's file to the
// last stream, of which 100 ms are the agent's waiting for the file to be complete;
// Spread is from the first stream that has it to the last.
type Push struct{ Change, Spread time.Duration }

// workloadAPI measures the sockets of as many volumes as restarts are measured with.
func (b *bench) workloadAPI(ctx context.Context) error {
	volumes, err := b.volumes(b.Sizes.RestartVolumes)
	if err != nil {
		return err
	}
	if err := b.mount(ctx, volumes); err != nil {
		return err
	}
	if _, err := b.rest(ctx); err != nil {
		return err
	}
	r := &b.results.WorkloadAPI
	before, err := readLoad()
	if err != nil {
		return err
	}
	if err := sleep(ctx, settling); err != nil {
		return err
	}
	now, err := readLoad()
	if err != nil {
		return err
	}
	r.Busy = now.since(before)
	if r.Fetches, err = fetches(ctx, volumes, b.Sizes.Fetches); err != nil {
		return err
	}
	b.Say("fetch on a new connection: p50 %s, p99 %s; the machine was %.0f %% busy", us(r.Fetches.Percentile(50)), us(r.Fetches.Percentile(99)), r.Busy)
	if err := b.streams(ctx, volumes, r); err != nil {
		return err
	}
	if err := b.attack(ctx, volumes, r); err != nil {
		return err
	}
	if err := b.takeAway(ctx, volumes); err != nil {
		return err
	}
	b.agent.kill()
	return b.start(ctx)
}

// fetches fetches n times, in turn from each of the volumes.
func fetches(ctx context.Context, volumes []volume, n int) (Latencies, error) {
	var all Latencies
	for i := range n {
		began := time.Now()
		if _, err := volumes[i%len(volumes)].fetch(ctx); err != nil {
			return nil, fmt.Errorf("fetch from the socket of pod %s/%s: %w", volumes[i%len(volumes)].namespace, volumes[i%len(volumes)].pod.name, err)
		}
		all = append(all, time.Since(began))
	}
	return all, nil
}

// streams measures memory and pushes with an agent whose trust bundle is a file: a
// new authority in it is news to all streams at the same moment.
func (b *bench) streams(ctx context.Context, volumes []volume, r *WorkloadAPI) error {
	bundle := filepath.Join(b.Dir, "bundle.pem")
	pem, err := os.ReadFile(filepath.Join(volumes[0].target, "ca.crt"))
	if err != nil {
		return err
	}
	if err := os.WriteFile(bundle, pem, 0o644); err != nil {
		return err
	}
	b.agent.kill()
	if err := b.start(ctx, "--source-ca-bundle="+bundle); err != nil {
		return err
	}
	if _, err := b.rest(ctx); err != nil {
		return err
	}
	if err := sleep(ctx, settling); err != nil {
		return err
	}
	before, err := memory(b.agent.pid)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	heard := make(chan time.Time, b.Sizes.Streams)
	if err := openStreams(ctx, volumes, b.Sizes.Streams, heard); err != nil {
		return err
	}
	if _, _, err := hearFrom(ctx, heard, b.Sizes.Streams); err != nil {
		return err
	}
	if err := sleep(ctx, settling); err != nil {
		return err
	}
	after, err := memory(b.agent.pid)
	if err != nil {
		return err
	}
	r.Streams, r.StreamBytes = b.Sizes.Streams, (after.RSS-before.RSS)/int64(b.Sizes.Streams)
	b.Say("%d streams, each on its connection: %.1f KB of the agent's memory each", r.Streams, float64(r.StreamBytes)/1000)
	for range b.Sizes.Pushes {
		more, err := anyAuthority()
		if err != nil {
			return err
		}
		pem = append(pem, more...)
		began := time.Now()
		if err := replace(bundle, pem); err != nil {
			return err
		}
		first, end, err := hearFrom(ctx, heard, b.Sizes.Streams)
		if err != nil {
			return fmt.Errorf("a change of the trust bundle: %w", err)
		}
		p := Push{Change: end.Sub(began), Spread: end.Sub(first)}
		r.Pushes = append(r.Pushes, p)
		b.Say("a change has reached %d streams %s after it was written, %s after the first of them", r.Streams, ms(p.Change), ms(p.Spread))
	}
	return nil
}

// openStreams opens n streams, each on a connection of its own, spread over the
// volumes. Each message's arrival is sent to heard. They end with ctx.
func openStreams(ctx context.Context, volumes []volume, n int, heard chan<- time.Time) error {
	var opening errgroup.Group
	opening.SetLimit(16)
	for i := range n {
		opening.Go(func() error {
			conn, err := volumes[i%len(volumes)].connect()
			if err != nil {
				return err
			}
			context.AfterFunc(ctx, func() { _ = conn.Close() })
			stream, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true"), &workload.X509SVIDRequest{})
			if err != nil {
				return err
			}
			go func() {
				for {
					if _, err := stream.Recv(); err != nil {
						return // which hearFrom notices
					}
					heard <- time.Now()
				}
			}()
			return nil
		})
	}
	return opening.Wait()
}

// pushTimeout bounds a change's way to all streams; a tenth of a second is wanted.
const pushTimeout = time.Minute

// hearFrom waits for a message on each of n streams.
func hearFrom(ctx context.Context, heard <-chan time.Time, n int) (first, end time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, pushTimeout)
	defer cancel()
	for i := range n {
		select {
		case at := <-heard:
			if first.IsZero() || at.Before(first) {
				first = at
			}
			if at.After(end) {
				end = at
			}
		case <-ctx.Done():
			return first, end, fmt.Errorf("only %d of %d streams have heard of it: %w", i, n, context.Cause(ctx))
		}
	}
	return first, end, nil
}

// anyAuthority makes a CA certificate, in PEM.
func anyAuthority() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "another"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// replace puts content at path in one step.
func replace(path string, content []byte) error {
	temporary := path + ".new"
	if err := os.WriteFile(temporary, content, 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}

// attack measures fetches of all but one pod while that one attacks.
func (b *bench) attack(ctx context.Context, volumes []volume, r *WorkloadAPI) error {
	stop, err := startAttack(volumes[0])
	if err != nil {
		return err
	}
	defer stop()
	began := time.Now()
	used, err := cpuTime(b.agent.pid)
	if err != nil {
		return err
	}
	if r.Attacked, err = fetches(ctx, volumes[1:], b.Sizes.Fetches); err != nil {
		return fmt.Errorf("while a pod attacks: %w", err)
	}
	if err := sleep(ctx, time.Second); err != nil {
		return err
	}
	after, err := cpuTime(b.agent.pid)
	if err != nil {
		return b.agent.explain(fmt.Errorf("the agent ended under attack: %w", err))
	}
	r.AttackCPU = 100 * (after - used).Seconds() / time.Since(began).Seconds()
	now, err := memory(b.agent.pid)
	if err != nil {
		return err
	}
	r.AttackBytes = now.RSS
	b.Say("fetch while another pod attacks: p50 %s, p99 %s; the agent uses %.0f %% of a core and has %s resident",
		us(r.Attacked.Percentile(50)), us(r.Attacked.Percentile(99)), r.AttackCPU, mib(r.AttackBytes))
	return nil
}

// attackEnv makes this program attack the socket that is named in it.
const attackEnv = "SIGNET_BENCH_ATTACK"

// startAttack has another process attack a volume's socket, and returns when it has
// tried its 10,000 streams.
func startAttack(v volume) (stop func(), err error) {
	dir, err := os.Open(v.target)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), attackEnv+"=/proc/self/fd/3/"+socketName)
	cmd.ExtraFiles = []*os.File{dir}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	in, err := cmd.StdinPipe() // whose end, with this process, is the attacker's
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the attacker: %w", err)
	}
	stop = sync.OnceFunc(func() {
		_ = in.Close()
		_ = cmd.Process.Signal(syscall.SIGKILL)
		_ = cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != attacking {
		stop()
		return nil, errors.Join(fmt.Errorf("the attacker said %q", line), err)
	}
	return stop, nil
}

const attacking = "attacking\n"

// Attack is what a program that measures does first: in a process that startAttack has
// made it attacks until its standard input ends, and reports true.
func Attack() bool {
	socket := os.Getenv(attackEnv)
	if socket == "" {
		return false
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = bufio.NewReader(os.Stdin).ReadByte()
		cancel()
	}()
	hostile.All(ctx, socket, func() { fmt.Print(attacking) })
	return true
}

// connect makes a client of a volume's socket.
func (v volume) connect() (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+socketName, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			// sun_path is 108 bytes: the name is reached through its directory.
			dir, err := os.Open(v.target)
			if err != nil {
				return nil, err
			}
			defer dir.Close()
			var d net.Dialer
			return d.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), socketName))
		}))
}

// What SPIRE's agent (1.15.3) needs, which is the target; its p99 is 2.4 ms.
const (
	maxFetch       = 870 * time.Microsecond
	maxFetchP99    = 2400 * time.Microsecond
	maxStreamBytes = 55_000
	maxPush        = 100 * time.Millisecond
)

func (r *Results) workloadAPIRows() []Row {
	w := r.WorkloadAPI
	if w.Streams == 0 {
		return nil
	}
	var change, spread Latencies
	for _, p := range w.Pushes {
		change, spread = append(change, p.Change), append(spread, p.Spread)
	}
	const fetch, attacked = "Workload API, fetch on a new connection: ", "… while another pod attacks its socket: "
	streams := fmt.Sprintf("Workload API, %d streams: ", w.Streams)
	p50, p99 := w.Fetches.Percentile(50), w.Fetches.Percentile(99)
	return []Row{
		Row{What: fetch + "p50", Signet: us(p50)}.against("< 0.87 ms", verdict(p50 > 0 && p50 < maxFetch)),
		Row{What: fetch + "p99", Signet: us(p99)}.against("< 2.4 ms", verdict(p99 > 0 && p99 < maxFetchP99)),
		{What: attacked + "p50", Signet: us(w.Attacked.Percentile(50))},
		{What: attacked + "p99", Signet: us(w.Attacked.Percentile(99))},
		{What: attacked + "agent's CPU", Signet: fmt.Sprintf("%.0f %% of a core", w.AttackCPU)},
		{What: attacked + "agent's memory (RSS)", Signet: mib(w.AttackBytes)},
		Row{What: streams + "memory (RSS) of each, with its connection", Signet: fmt.Sprintf("%.1f KB", float64(w.StreamBytes)/1000)}.
			against("< 55 KB", verdict(w.StreamBytes < maxStreamBytes)),
		Row{What: streams + "a change, from the first stream to the last", Signet: fmt.Sprintf("%s (worst of %d: %s)", ms(spread.Percentile(50)), len(spread), ms(spread.Percentile(100)))}.
			against("< 100 ms", verdict(len(spread) > 0 && spread.Percentile(50) < maxPush)),
		{What: streams + "a change, from the bundle's file to the last", Signet: ms(change.Percentile(50))},
	}
}

func us(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond)) }
