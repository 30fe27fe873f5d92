// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"fmt"
	"sync"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc"
)

// BenchmarkSDSPush is a renewal of all SVIDs of a node, until the last of 1,000 proxies' streams has its new certificate and
// has acknowledged it. Clients share the process and its processors.
func BenchmarkSDSPush(b *testing.B) {
	const streams = 1000
	for _, variant := range []struct {
		name string
		open func(testing.TB, *grpc.ClientConn, *sync.WaitGroup)
	}{{"stream", pushedStream}, {"delta", pushedDelta}} {
		for _, workloads := range []int{1, 100, streams} {
			b.Run(fmt.Sprintf("%s/%dx%d", variant.name, workloads, streams/workloads), func(b *testing.B) {
				ca := newAuthority(b, trustDomain)
				s := newTestServer(b, Options{})
				var states [2][]Identity
				var entries []*scripted
				var received sync.WaitGroup
				received.Add(streams)
				for n := range workloads {
					path := fmt.Sprint("/w/", n)
					states[0], states[1] = append(states[0], ca.identity(b, path)), append(states[1], ca.identity(b, path))
					entries = append(entries, newScripted(states[0][n]))
					addr := s.start(fmt.Sprint(n), entries[n])
					for at := 0; at < streams/workloads; at += 100 {
						cc := dial(b, addr)
						for range min(streams/workloads-at, 100) {
							variant.open(b, cc, &received)
						}
					}
				}
				received.Wait()
				b.ReportAllocs()
				turn := 0
				for b.Loop() {
					turn = 1 - turn
					received.Add(streams)
					for n, w := range entries {
						w.set(states[turn][n])
					}
					received.Wait()
				}
			})
		}
	}
}

func pushedStream(t testing.TB, cc *grpc.ClientConn, received *sync.WaitGroup) {
	stream, err := secretv3.NewSecretDiscoveryServiceClient(cc).StreamSecrets(t.Context())
	must(t, err)
	must(t, stream.Send(&discoveryv3.DiscoveryRequest{TypeUrl: secretType, ResourceNames: []string{"default"}}))
	go func() {
		for {
			r, err := stream.Recv()
			if err != nil {
				return
			}
			_ = stream.Send(&discoveryv3.DiscoveryRequest{TypeUrl: secretType, ResourceNames: []string{"default"}, VersionInfo: r.GetVersionInfo(), ResponseNonce: r.GetNonce()})
			received.Done()
		}
	}()
}

func pushedDelta(t testing.TB, cc *grpc.ClientConn, received *sync.WaitGroup) {
	stream, err := secretv3.NewSecretDiscoveryServiceClient(cc).DeltaSecrets(t.Context())
	must(t, err)
	must(t, stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: secretType, ResourceNamesSubscribe: []string{"default"}}))
	go func() {
		for {
			r, err := stream.Recv()
			if err != nil {
				return
			}
			_ = stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: secretType, ResponseNonce: r.GetNonce()})
			received.Done()
		}
	}()
}
