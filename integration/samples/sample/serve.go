// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// answer is what serve says to a caller.
type answer struct {
	ServerID     string    `json:"server_id"`
	ServerSerial string    `json:"server_serial"`
	ClientID     string    `json:"client_id"`
	ClientSerial string    `json:"client_serial"`
	Time         time.Time `json:"time"`
}

func newServeCommand(p *printer) *cobra.Command {
	var (
		o      sourceOptions
		listen string
		peers  []string
	)
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Answer callers over mTLS and say who they are",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ids, err := parsePeers(peers)
			if err != nil {
				return err
			}
			identity, err := o.open(cmd.Context(), p)
			if err != nil {
				return err
			}
			defer identity.Close()
			l, err := net.Listen("tcp", listen)
			if err != nil {
				return fmt.Errorf("listen on %s: %w", listen, err)
			}
			return serve(cmd.Context(), l, identity, ids, p)
		},
	}
	o.addFlags(cmd.Flags())
	cmd.Flags().StringVar(&listen, "listen", ":8443", "address to listen on")
	addPeerFlag(cmd, &peers)
	return cmd
}

func addPeerFlag(cmd *cobra.Command, peers *[]string) {
	cmd.Flags().StringArrayVar(peers, "peer", nil, "SPIFFE ID that the other side must have; may be given more than once")
	_ = cmd.MarkFlagRequired("peer") // fails only for a flag that does not exist
}

func parsePeers(peers []string) ([]spiffeid.ID, error) {
	ids := make([]spiffeid.ID, 0, len(peers))
	for _, s := range peers {
		id, err := spiffeid.FromString(s)
		if err != nil {
			return nil, fmt.Errorf("--peer %q: %w", s, err)
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// serve answers until ctx ends. It closes l.
func serve(ctx context.Context, l net.Listener, identity source, peers []spiffeid.ID, p *printer) error {
	server := &http.Server{
		Handler:           http.HandlerFunc(handler(p)),
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          log.New(io.Discard, "", 0), // refusals are printed by the authorizer
		ConnContext:       rememberConn,
	}
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if err := server.Shutdown(grace); err != nil {
			_ = server.Close()
		}
	})
	defer stop()
	p.event(event{Event: "listening", Address: l.Addr().String()})
	tlsListener := tls.NewListener(recordingListener{l}, serverConfig(identity, peers, p))
	if err := server.Serve(tlsListener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve on %s: %w", l.Addr(), err)
	}
	return nil
}

// serverConfig takes the identity anew for each handshake, and notes on the
// connection which one it was.
func serverConfig(identity source, peers []spiffeid.ID, p *printer) *tls.Config {
	base := tlsconfig.MTLSServerConfig(identity, identity, printRefusals(peers, p))
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			svid, err := identity.GetX509SVID()
			if err != nil {
				return nil, err
			}
			if c, ok := hello.Conn.(*recordedConn); ok {
				c.svid.Store(svid)
			}
			config := base.Clone()
			config.GetCertificate = tlsconfig.GetCertificate(svid)
			return config, nil
		},
	}
}

// printRefusals lets peers in and prints who was not.
func printRefusals(peers []spiffeid.ID, p *printer) tlsconfig.Authorizer {
	return func(id spiffeid.ID, chains [][]*x509.Certificate) error {
		if slices.Contains(peers, id) {
			return nil
		}
		err := fmt.Errorf("%s is not among the allowed peers", id)
		p.event(event{Event: "refused", PeerID: id.String(), PeerSerial: serialOf(chains[0][0]), Error: err.Error()})
		return err
	}
}

func handler(p *printer) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		own := r.Context().Value(connKey{}).(*recordedConn).svid.Load()
		peer := r.TLS.PeerCertificates[0]
		peerID, err := x509svid.IDFromCert(peer)
		if err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		a := answer{
			ServerID:     own.ID.String(),
			ServerSerial: serialOf(own.Certificates[0]),
			ClientID:     peerID.String(),
			ClientSerial: serialOf(peer),
			Time:         p.now().UTC(),
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(a) // a caller that is gone misses its answer
		p.event(event{Event: "request", OwnID: a.ServerID, OwnSerial: a.ServerSerial,
			PeerID: a.ClientID, PeerSerial: a.ClientSerial, Millis: millis(time.Since(start))})
	}
}

// recordedConn knows with which identity it was answered.
type recordedConn struct {
	net.Conn
	svid atomic.Pointer[x509svid.SVID]
}

type recordingListener struct{ net.Listener }

func (l recordingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &recordedConn{Conn: c}, nil
}

type connKey struct{}

func rememberConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c.(*tls.Conn).NetConn().(*recordedConn))
}
