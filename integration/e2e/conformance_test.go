// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/signet-spiffe/signet/internal/conformance"
)

// The agent listens on the network for its metrics and its health. None of these
// ports speaks the Workload API, whatever is asked of it.
func testTheAPIIsOnNoNetwork(t *testing.T) {
	conformance.Proves(t, "E1", "E2", "E4", "E5")
	t.Parallel()
	ctx := needCluster(t, testTimeout)
	ns := newNamespace(ctx, t)
	runPod(ctx, t, ns, podSpec{Name: "app", Node: nodeOne}) // so that there is an identity to be had
	agent := agentProcess(ctx, t, mustAgentOn(ctx, t, nodeOne))
	inAgent := node(ctx, t, nodeOne)
	inAgent.pid = agent.Pid // its network, whether or not that is the node's
	listeners := tcpListeners(t, agent.Pid)
	if len(listeners) == 0 {
		t.Fatal("the agent listens nowhere, not even for its metrics: is this its process?")
	}
	for _, at := range listeners {
		conn, err := grpc.NewClient("passthrough:///agent", grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return inAgent.dialTCP(ctx, "", at.String()) }))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		stream, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(withMetadata(ctx, "workload.spiffe.io", "true"), &workload.X509SVIDRequest{})
		if err == nil {
			_, err = stream.Recv()
		}
		if err == nil {
			t.Errorf("the agent gives identities to whoever connects to %s", at)
		}
		t.Logf("%s: %v", at, err)
	}
}

// tcpListeners are the addresses that a process listens on, in its own network.
func tcpListeners(t *testing.T, pid int) []netip.AddrPort {
	t.Helper()
	own := map[string]bool{} // inodes of its sockets
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil || len(files) == 0 {
		t.Fatalf("look at the agent's files: %d, %v", len(files), err)
	}
	for _, file := range files {
		if target, err := os.Readlink(file); err == nil { // else it has been closed
			own[strings.TrimSuffix(strings.TrimPrefix(target, "socket:["), "]")] = true
		}
	}
	var found []netip.AddrPort
	for _, table := range []string{"tcp", "tcp6"} {
		content, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, table))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(content)) {
			fields := strings.Fields(line) // proc_net_tcp: sl, local, remote, state, ..., inode
			if len(fields) < 10 || fields[3] != "0A" || !own[fields[9]] {
				continue
			}
			at, err := parseSocketAddress(fields[1])
			if err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			found = append(found, at)
		}
	}
	return found
}

// parseSocketAddress reads an address of /proc/net/tcp: words in the machine's
// order, each in hexadecimal.
func parseSocketAddress(s string) (netip.AddrPort, error) {
	address, port, _ := strings.Cut(s, ":")
	n, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, err
	}
	var raw []byte
	for ; len(address) >= 8; address = address[8:] {
		word, err := strconv.ParseUint(address[:8], 16, 32)
		if err != nil {
			return netip.AddrPort{}, err
		}
		raw = binary.NativeEndian.AppendUint32(raw, uint32(word))
	}
	ip, ok := netip.AddrFromSlice(raw)
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("%q is no address", s)
	}
	if ip.IsUnspecified() {
		ip = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.AddrPortFrom(ip, uint16(n)), nil
}
