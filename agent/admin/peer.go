// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// Peer is the process at the other end, as the kernel saw it when it connected
// (SO_PEERCRED). PID is 0 where that process is not in the agent's PID namespace.
type Peer struct {
	PID      int32
	UID, GID uint32
}

// LogValue implements slog.LogValuer.
func (p Peer) LogValue() slog.Value {
	return slog.GroupValue(slog.Int64("pid", int64(p.PID)), slog.Uint64("uid", uint64(p.UID)))
}

// PeerFrom returns who is calling; false if that is not known, which only happens
// outside of a Server.
func PeerFrom(ctx context.Context) (Peer, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Peer{}, false
	}
	info, ok := p.AuthInfo.(authInfo)
	return info.peer, ok
}

// errRefused says that the caller may not.
var errRefused = errors.New("not allowed")

// administrator allows root and the agent's own user.
func administrator(p Peer) error {
	if own := os.Geteuid(); p.UID != 0 && p.UID != uint32(own) {
		return fmt.Errorf("%w: user %d is neither root nor the agent's user (%d)", errRefused, p.UID, own)
	}
	return nil
}

// peerCredentials puts who is calling into the connection's AuthInfo. Without welcome
// it lets everybody connect who got to the socket: a refusal is the answer to a call,
// in words, and not a connection that ends.
type peerCredentials struct {
	// welcome says why a peer may not even connect. Where every user gets to the
	// socket, one who may call nothing would cost the agent descriptors and its log
	// lines, as many as he likes.
	welcome func(Peer) error
}

var _ credentials.TransportCredentials = peerCredentials{}

type authInfo struct {
	credentials.CommonAuthInfo
	peer Peer
}

// AuthType implements credentials.AuthInfo.
func (authInfo) AuthType() string { return "peercred" }

// ServerHandshake implements credentials.TransportCredentials.
func (c peerCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	p, err := peerOf(conn)
	if err != nil {
		return nil, nil, fmt.Errorf("find out who connects: %w", err)
	}
	if c.welcome != nil {
		if err := c.welcome(p); err != nil {
			return nil, nil, err
		}
	}
	return conn, authInfo{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, peer: p}, nil
}

func peerOf(conn net.Conn) (Peer, error) {
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return Peer{}, fmt.Errorf("a %T is no Unix connection", conn)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return Peer{}, err
	}
	var found *unix.Ucred
	closed := raw.Control(func(fd uintptr) { found, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(closed, err); err != nil {
		return Peer{}, err
	}
	return Peer{PID: found.Pid, UID: found.Uid, GID: found.Gid}, nil
}

// ClientHandshake implements credentials.TransportCredentials; this side is a server.
func (peerCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("admin: these credentials are a server's")
}

// Info implements credentials.TransportCredentials.
func (peerCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "peercred"}
}

// Clone implements credentials.TransportCredentials.
func (c peerCredentials) Clone() credentials.TransportCredentials { return c }

// OverrideServerName implements credentials.TransportCredentials.
func (peerCredentials) OverrideServerName(string) error { return nil }
