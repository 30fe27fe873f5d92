// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// BenchmarkWarmFetch is a workload that connects, fetches its SVID and leaves.
func BenchmarkWarmFetch(b *testing.B) {
	ca := newAuthority(b, trustDomain)
	s := newTestServer(b, Options{Limits: Limits{Rate: 1e9}}) // a workload that is measured asks more often than any other
	addr := s.start("a", newScripted(ca.identity(b, "/a")))
	b.ReportAllocs()
	for b.Loop() {
		cc, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
		must(b, err)
		stream, err := workload.NewSpiffeWorkloadAPIClient(cc).FetchX509SVID(withHeader(b.Context()), &workload.X509SVIDRequest{})
		must(b, err)
		_, err = stream.Recv()
		must(b, err)
		must(b, cc.Close())
	}
}

// BenchmarkPush is a change of all identities of a node, until the last of 2,000 streams has it. Clients share the process
// and its processors.
func BenchmarkPush(b *testing.B) {
	for _, shape := range []struct{ workloads, streams int }{{1, 2000}, {100, 20}, {1000, 2}} {
		b.Run(fmt.Sprintf("%dx%d", shape.workloads, shape.streams), func(b *testing.B) {
			ca := newAuthority(b, trustDomain)
			s := newTestServer(b, Options{Limits: Limits{RPCs: shape.streams}})
			states := [2][]Identity{}
			var entries []*scripted
			var received sync.WaitGroup
			received.Add(shape.workloads * shape.streams)
			for n := range shape.workloads {
				path := fmt.Sprintf("/w/%d", n)
				states[0], states[1] = append(states[0], ca.identity(b, path)), append(states[1], ca.identity(b, path))
				entries = append(entries, newScripted(states[0][n]))
				addr := s.start(fmt.Sprint(n), entries[n])
				for range (shape.streams + 99) / 100 { // a connection for up to 100 streams
					cc := dial(b, addr)
					for range min(shape.streams, 100) {
						stream, err := workload.NewSpiffeWorkloadAPIClient(cc).FetchX509SVID(withHeader(b.Context()), &workload.X509SVIDRequest{})
						must(b, err)
						go func() {
							for {
								if _, err := stream.Recv(); err != nil {
									return
								}
								received.Done()
							}
						}()
					}
				}
			}
			received.Wait()
			turn := 0
			for b.Loop() {
				turn = 1 - turn
				received.Add(shape.workloads * shape.streams)
				for n, w := range entries {
					w.set(states[turn][n])
				}
				received.Wait()
			}
		})
	}
}

// clientEnv makes the test binary a client that opens a stream on each socket named in it, and holds them until its
// standard input ends.
const clientEnv = "WORKLOADAPI_BENCH_CLIENT"

func TestMain(m *testing.M) {
	if sockets := os.Getenv(clientEnv); sockets != "" {
		holdStreams(strings.Split(sockets, ","))
		return
	}
	if socket := os.Getenv(hostileEnv); socket != "" {
		attackUntilTold(socket)
		return
	}
	os.Exit(m.Run())
}

func holdStreams(sockets []string) {
	for _, addr := range sockets {
		cc, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			panic(err)
		}
		ctx := withHeader(context.Background())
		stream, err := workload.NewSpiffeWorkloadAPIClient(cc).FetchX509SVID(ctx, &workload.X509SVIDRequest{})
		if err != nil {
			panic(err)
		}
		if _, err := stream.Recv(); err != nil {
			panic(err)
		}
	}
	fmt.Println("ready")
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
}

// BenchmarkMemory reports what one workload (listener, connection, stream) costs the server's process. The clients are in
// another one.
func BenchmarkMemory(b *testing.B) {
	const workloads = 500
	ca := newAuthority(b, trustDomain)
	s := newTestServer(b, Options{})
	identities := make([]Identity, workloads)
	for n := range identities {
		identities[n] = ca.identity(b, "/w/"+strconv.Itoa(n))
	}
	for b.Loop() {
		start := measure()
		var addrs []string
		var entries []*scripted
		for n, i := range identities {
			entries = append(entries, newScripted(i))
			addrs = append(addrs, s.start(strconv.Itoa(n), entries[n]))
		}
		listening := measure()
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), clientEnv+"="+strings.Join(addrs, ","))
		cmd.Stderr = os.Stderr
		stdin, err := cmd.StdinPipe()
		must(b, err)
		stdout, err := cmd.StdoutPipe()
		must(b, err)
		must(b, cmd.Start())
		line, err := bufio.NewReader(stdout).ReadString('\n')
		if err != nil || line != "ready\n" {
			b.Fatalf("client said %q, %v", line, err)
		}
		streaming := measure()
		b.ReportMetric(listening.per(start, workloads), "B/listener")
		b.ReportMetric(streaming.per(listening, workloads), "B/conn+stream")
		b.ReportMetric(float64(streaming.goroutines-start.goroutines)/workloads, "goroutines/workload")
		must(b, stdin.Close())
		must(b, cmd.Wait())
		for _, w := range entries {
			s.Detach(w)
		}
	}
}

type cost struct {
	bytes      uint64
	goroutines int
}

// measure returns heap and stacks in use after a collection.
func measure() cost {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return cost{bytes: m.HeapInuse + m.StackInuse, goroutines: runtime.NumGoroutine()}
}

func (c cost) per(before cost, n int) float64 {
	return (float64(c.bytes) - float64(before.bytes)) / float64(n)
}
