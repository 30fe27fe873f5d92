// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/signet-spiffe/signet/internal/hostile"
)

// hostileEnv makes the test binary attack the socket named in it until its standard input ends.
const hostileEnv = "WORKLOADAPI_HOSTILE_CLIENT"

func attackUntilTold(socket string) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { hostile.All(ctx, socket, func() { fmt.Println("ready") }) })
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	cancel()
	running.Wait()
}

// attack has another process attack the socket at addr, and returns once 10,000 streams have been tried. Its end is that of
// the test, or before by calling stop.
func attack(t testing.TB, addr string) (stop func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), hostileEnv+"="+strings.TrimPrefix(addr, "unix://"))
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	must(t, err)
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	stop = sync.OnceFunc(func() {
		_ = stdin.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	t.Cleanup(stop)
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || line != "ready\n" {
		t.Fatalf("attacker said %q, %v", line, err)
	}
	return stop
}

// One workload does all it can think of, from a process of its own; the others are served, their rotations arrive, and the
// memory and goroutines that it costs have a bound. How long things take is measured by the benchmarks.
func TestAHostileWorkloadHarmsNobodyElse(t *testing.T) {
	t.Run("with all limits", func(t *testing.T) {
		hostileTest{rotations: 20, fetches: 100, slowest: 5 * time.Second, reached: []limit{limitRate}}.run(t)
	})
	// The rate keeps nearly everything away from the other limits. They have to hold without it; but then attacker and server
	// take all the CPU there is, and how long the others wait is the scheduler's doing.
	t.Run("without the rate", func(t *testing.T) {
		hostileTest{limits: Limits{Rate: 1e9}, rotations: 3, fetches: 20, slowest: patience, reached: []limit{limitConnections, limitRPCs, limitUnfinished, limitUnread, limitReflection}}.run(t)
	})
}

type hostileTest struct {
	limits             Limits
	rotations, fetches int           // of the quiet ones, during the attack
	slowest            time.Duration // that one of them may be
	reached            []limit       // one of them, by the attacker; which comes first is a matter of speed
}

func (h hostileTest) run(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{Limits: h.limits})
	const quiet = 20
	// One for all streams: it has to outlast everything that follows.
	ctx, cancel := context.WithCancel(withHeader(context.Background()))
	defer cancel()
	var workloads []*scripted
	var addrs []string
	received := make(chan time.Duration, quiet)
	var rotated atomic.Int64 // when, in nanoseconds since the epoch
	for n := range quiet {
		w := newScripted(ca.identity(t, fmt.Sprintf("/w/%d", n)))
		workloads, addrs = append(workloads, w), append(addrs, s.start(fmt.Sprint(n), w))
		stream, err := workload.NewSpiffeWorkloadAPIClient(dial(t, addrs[n])).FetchX509SVID(ctx, &workload.X509SVIDRequest{})
		must(t, err)
		recv(t, stream)
		go func() {
			for {
				if _, err := stream.Recv(); err != nil {
					return
				}
				received <- time.Since(time.Unix(0, rotated.Load()))
			}
		}()
	}
	before := measure()
	bad := newScripted(ca.identity(t, "/hostile"))
	addr := s.start("hostile", bad)
	start := time.Now()
	stop := attack(t, addr)

	var slowest time.Duration
	for n := range h.fetches {
		began := time.Now()
		cc, err := grpc.NewClient(addrs[n%quiet], grpc.WithTransportCredentials(insecure.NewCredentials()))
		must(t, err)
		must(t, fetchOnce(t, cc))
		must(t, cc.Close())
		slowest = max(slowest, time.Since(began))
	}
	var slowestPush time.Duration
	// Not before the attack has come to a limit, either.
	for n := 0; n < h.rotations || !h.atALimit(s) && time.Since(start) < patience; n++ {
		next := make([]Identity, quiet)
		for n := range next {
			next[n] = ca.identity(t, fmt.Sprintf("/w/%d", n))
		}
		rotated.Store(time.Now().UnixNano())
		for n, w := range workloads {
			w.set(next[n])
		}
		for range workloads {
			select {
			case took := <-received:
				slowestPush = max(slowestPush, took)
			case <-time.After(patience):
				t.Fatal("a rotation does not arrive")
			}
		}
	}
	during := measure()
	t.Logf("slowest fetch %s, slowest push to %d workloads %s; %.0f MB and %d goroutines for the attack", slowest, quiet, slowestPush,
		during.per(before, 1<<20), during.goroutines-before.goroutines)

	// Bounds, from the limits: 100 connections with three goroutines each, and 100 RPCs each whose requests need not come.
	if n := during.goroutines - before.goroutines; n > 13_000 {
		t.Errorf("%d goroutines", n)
	}
	if mb := during.per(before, 1<<20); mb > 300 {
		t.Errorf("%.0f MB", mb)
	}
	if slowest > h.slowest || slowestPush > h.slowest {
		t.Errorf("slowest fetch %s, slowest push %s", slowest, slowestPush)
	}
	s.mu.Lock()
	ep := s.endpoints[bad]
	s.mu.Unlock()
	ep.mu.Lock()
	conns, rpcs := len(ep.conns), ep.rpcs
	ep.mu.Unlock()
	if l := DefaultLimits(); conns > l.Connections || rpcs > l.RPCs || conns == 0 || rpcs == 0 {
		t.Errorf("%d connections and %d RPCs on one socket", conns, rpcs)
	}
	if !h.atALimit(s) {
		t.Errorf("none of the limits %q was reached: the attack attacks nothing", h.reached)
	}
	if lines, most := strings.Count(s.log.String(), "at a limit"), 1+int(time.Since(start)/complainEvery); lines == 0 || lines > most {
		t.Errorf("%d log lines", lines)
	}

	// The end is prompt in the middle of it.
	start = time.Now()
	s.Detach(bad)
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("Detach takes %s", took)
	}
	stop()
	must(t, fetchOnce(t, dial(t, addrs[0])))
}

// atALimit says whether the attacker was turned away by one of the limits that it is to reach. Each limit has a test of its
// own (limits_test.go).
func (h hostileTest) atALimit(s *testServer) bool {
	return slices.ContainsFunc(h.reached, func(l limit) bool { return testutil.ToFloat64(s.metrics.limited[l]) > 0 })
}

// Shutdown is prompt, too.
func TestShutdownDuringAnAttack(t *testing.T) {
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	attack(t, s.start("hostile", newScripted(ca.identity(t, "/hostile"))))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	began := time.Now()
	must(t, s.Shutdown(ctx))
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("took %s", took)
	}
}
