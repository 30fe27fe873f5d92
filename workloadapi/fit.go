// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"cmp"
	"maps"
	"slices"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"
)

// leaveOut takes the bundles of federated trust domains out of a message, the largest first, until clients accept its size,
// and returns whose it took. What belongs to the own trust domain stays, whatever its size.
//
// A message above the limit reaches no client: its gRPC library ends the stream, the client comes back and is sent the same
// again. The workload would lose its own SVID, and every partner with it, for what one partner publishes. Without that
// partner's bundle it fails closed towards that partner alone. The largest is taken because it is the one that does not fit,
// and because then the fewest are.
func leaveOut(m proto.Message, own spiffeid.TrustDomain) (left []string) {
	var bundles map[string][]byte
	switch r := m.(type) {
	case *workload.X509SVIDResponse:
		bundles = r.FederatedBundles
	case *workload.X509BundlesResponse:
		bundles = r.Bundles
	case *workload.JWTBundlesResponse:
		bundles = r.Bundles
	}
	largestFirst := slices.SortedFunc(maps.Keys(bundles), func(a, b string) int {
		return cmp.Or(cmp.Compare(len(bundles[b]), len(bundles[a])), cmp.Compare(a, b))
	})
	for _, name := range largestFirst {
		if proto.Size(m) <= maxMessageBytes {
			break
		}
		if name != own.IDString() {
			delete(bundles, name)
			left = append(left, name)
		}
	}
	return left
}
