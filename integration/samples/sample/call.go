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
	"net"
	"net/http"
	"net/http/httptrace"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// callOptions are call's flags.
type callOptions struct {
	url           string
	interval      time.Duration
	count         int
	keep          bool
	expectRefused bool
	patience      time.Duration
}

func newCallCommand(p *printer) *cobra.Command {
	var (
		o     sourceOptions
		c     callOptions
		peers []string
	)
	cmd := &cobra.Command{
		Use:   "call",
		Short: "Call a server over mTLS, again and again, and say with which certificates",
		Long: `Call a server over mTLS, again and again, and say with which certificates.

One HTTP client lives as long as the command does and follows rotation: each
new connection uses the newest identity. By default each request makes a new
connection; with --keep one connection is kept, which outlives the certificates
that it was made with.`,
		Args: cobra.NoArgs,
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
			return newCaller(identity, ids, c, p).run(cmd.Context())
		},
	}
	o.addFlags(cmd.Flags())
	addPeerFlag(cmd, &peers)
	f := cmd.Flags()
	f.StringVar(&c.url, "url", "", "what to call, https://HOST:PORT/")
	f.DurationVar(&c.interval, "interval", time.Second, "pause between requests")
	f.IntVar(&c.count, "count", 0, "stop after so many requests; 0: never")
	f.BoolVar(&c.keep, "keep", false, "keep one connection instead of making a new one for each request")
	f.BoolVar(&c.expectRefused, "expect-refused", false, "succeed when, and only when, one side refuses the other in the TLS handshake")
	f.DurationVar(&c.patience, "patience", 30*time.Second, "how long to try to reach a server that was not there yet")
	_ = cmd.MarkFlagRequired("url") // fails only for a flag that does not exist
	return cmd
}

// caller is the client side.
type caller struct {
	callOptions
	identity source
	tls      *tls.Config
	client   *http.Client
	print    *printer
}

func newCaller(identity source, peers []spiffeid.ID, o callOptions, p *printer) *caller {
	c := &caller{
		callOptions: o,
		identity:    identity,
		tls:         tlsconfig.MTLSClientConfig(identity, identity, authorize(peers)),
		print:       p,
	}
	c.client = &http.Client{
		Timeout:   10 * time.Second,
		Transport: &http.Transport{DisableKeepAlives: !o.keep, DialTLSContext: c.dial},
	}
	return c
}

// errNotAuthorized is our own refusal of a server.
var errNotAuthorized = errors.New("not among the allowed peers")

func authorize(peers []spiffeid.ID) tlsconfig.Authorizer {
	return func(id spiffeid.ID, _ [][]*x509.Certificate) error {
		if slices.Contains(peers, id) {
			return nil
		}
		return fmt.Errorf("%s is %w", id, errNotAuthorized)
	}
}

// dial makes a connection with the newest identity and notes on it which one
// that is.
func (c *caller) dial(ctx context.Context, network, address string) (net.Conn, error) {
	svid, err := c.identity.GetX509SVID()
	if err != nil {
		return nil, err
	}
	tcp, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	recorded := &recordedConn{Conn: tcp}
	recorded.svid.Store(svid)
	config := c.tls.Clone()
	config.GetClientCertificate = tlsconfig.GetClientCertificate(svid)
	conn := tls.Client(recorded, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, tcp.Close())
	}
	return conn, nil
}

var errFailures = errors.New("requests failed")

// run makes requests until count is reached or ctx ends.
func (c *caller) run(ctx context.Context) error {
	if err := c.reach(ctx); err != nil {
		return ignoreStop(ctx, err)
	}
	ticker := time.NewTicker(c.interval)
	defer ticker.Stop()
	failed := 0
	for n := 1; ; n++ {
		err := c.request(ctx)
		if stopped(ctx, err) {
			return nil
		}
		if !c.asExpected(n, err) {
			failed++
		}
		if c.expectRefused && refusal(err) != "" {
			return nil
		}
		if n == c.count {
			return c.verdict(failed)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (c *caller) verdict(failed int) error {
	switch {
	case c.expectRefused:
		return fmt.Errorf("expected to be refused by %s: not in any of %d requests", c.url, c.count)
	case failed > 0:
		return fmt.Errorf("%d of %d %w", failed, c.count, errFailures)
	}
	return nil
}

// asExpected prints what came of the n-th request and judges it.
func (c *caller) asExpected(n int, err error) bool {
	if err == nil {
		return !c.expectRefused
	}
	e := event{Event: "error", Count: n, Error: err.Error(), Code: refusal(err)}
	if e.Code != "" {
		e.Event = "refused"
	}
	c.print.event(e)
	return c.expectRefused && e.Code != ""
}

// reach waits for the server to listen: pods of a pair start in any order.
func (c *caller) reach(ctx context.Context) error {
	deadline, cancel := context.WithTimeoutCause(ctx, c.patience, fmt.Errorf("not reachable after %s", c.patience))
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url, nil)
	if err != nil {
		return fmt.Errorf("--url %q: %w", c.url, err)
	}
	if request.URL.Scheme != "https" || request.URL.Host == "" {
		return fmt.Errorf("--url %q: must be https://HOST:PORT/", c.url)
	}
	address := request.URL.Host
	if request.URL.Port() == "" {
		address = net.JoinHostPort(request.URL.Hostname(), "443")
	}
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(deadline, "tcp", address)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-time.After(pause):
		case <-deadline.Done():
			return fmt.Errorf("reach %s: %w", address, withCause(deadline, err))
		}
	}
}

// maxUndecided bounds how often a request is made again whose connection was
// cut without a word.
const maxUndecided = 10

// request makes one request and prints it if it is answered.
//
// In TLS 1.3 a client has finished its handshake before the server has judged
// its certificate. A server that refuses sends an alert and closes; the request
// that is under way by then may turn the close into a reset that overtakes the
// alert. Such an attempt says nothing, and is made again.
func (c *caller) request(ctx context.Context) error {
	for attempt := 1; ; attempt++ {
		err := c.attempt(ctx)
		if !cutOff(err) || attempt == maxUndecided || c.keep {
			return err
		}
	}
}

func (c *caller) attempt(ctx context.Context) error {
	start := time.Now()
	var used httptrace.GotConnInfo
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { used = i }})
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url, nil)
	if err != nil {
		return err
	}
	response, err := c.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<16))
	if err != nil {
		return fmt.Errorf("read answer of %s: %w", c.url, err)
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %s: %s", c.url, response.Status, body)
	}
	var theirs answer
	if err := json.Unmarshal(body, &theirs); err != nil {
		return fmt.Errorf("parse answer of %s: %w", c.url, err)
	}
	ours, err := seen(used.Conn.(*tls.Conn), theirs.Time)
	if err != nil {
		return err
	}
	if theirs != ours {
		return fmt.Errorf("the two sides disagree on the connection: server saw %+v, client saw %+v", theirs, ours)
	}
	c.print.event(event{Event: "request", OwnID: ours.ClientID, OwnSerial: ours.ClientSerial,
		PeerID: ours.ServerID, PeerSerial: ours.ServerSerial, NewConn: !used.Reused, Millis: millis(time.Since(start))})
	return nil
}

// seen is what the server should have answered on conn.
func seen(conn *tls.Conn, at time.Time) (answer, error) {
	peer := conn.ConnectionState().PeerCertificates[0]
	peerID, err := x509svid.IDFromCert(peer)
	if err != nil {
		return answer{}, err
	}
	own := conn.NetConn().(*recordedConn).svid.Load()
	return answer{
		ServerID: peerID.String(), ServerSerial: serialOf(peer),
		ClientID: own.ID.String(), ClientSerial: serialOf(own.Certificates[0]), Time: at,
	}, nil
}

// Who refused whom, as the code of a refused event.
const (
	byPeer = "by peer"
	byUs   = "by us"
)

// refusal tells which side turned the other away in the handshake: the peer by
// a TLS alert, or we because its certificate is not what was asked for. It is
// empty when err is something else.
func refusal(err error) string {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" {
		return byPeer
	}
	var (
		unknown x509.UnknownAuthorityError
		invalid x509.CertificateInvalidError
	)
	if errors.Is(err, errNotAuthorized) || errors.As(err, &unknown) || errors.As(err, &invalid) {
		return byUs
	}
	return ""
}

// cutOff reports whether the connection ended without a word.
func cutOff(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

func ignoreStop(ctx context.Context, err error) error {
	if stopped(ctx, err) {
		return nil
	}
	return err
}
