// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	spiffe "github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"

	"github.com/signet-spiffe/signet/internal/conformance"
)

// atOnce retries without waiting, so that tests do not.
type atOnce struct{}

func (atOnce) NewBackoff() spiffe.Backoff { return atOnce{} }
func (atOnce) Next() time.Duration        { return time.Millisecond }
func (atOnce) Reset()                     {}

func clientAt(addr string) spiffe.SourceOption {
	return spiffe.WithClientOptions(spiffe.WithAddr(addr), spiffe.WithBackoffStrategy(atOnce{}))
}

func newX509Source(t *testing.T, addr string) *spiffe.X509Source {
	t.Helper()
	source, err := spiffe.NewX509Source(testContext(t), clientAt(addr))
	must(t, err)
	t.Cleanup(func() { _ = source.Close() })
	return source
}

func TestGoSpiffeX509SourceIsReadyInTheMomentTheSVIDIs(t *testing.T) {
	conformance.Proves(t, "W4")
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	w := newScripted(Identity{Status: Pending})
	addr := s.start("a", w)
	first, second := ca.identity(t, "/ns/shop/sa/web"), ca.identity(t, "/ns/shop/sa/web")
	go func() {
		w.waitAsked(1)
		w.set(first)
	}()
	source := newX509Source(t, addr)
	svid, err := source.GetX509SVID()
	must(t, err)
	wantSameSVID(t, svid, first.SVIDs[0])
	bundle, err := source.GetX509BundleForTrustDomain(trustDomain)
	must(t, err)
	if !bundle.Equal(ca.bundle()) {
		t.Error("bundle differs")
	}
	for { // what the first update announced may still be in the channel
		select {
		case <-source.Updated():
			continue
		default:
		}
		break
	}
	w.set(second)
	<-source.Updated()
	svid, err = source.GetX509SVID()
	must(t, err)
	wantSameSVID(t, svid, second.SVIDs[0])
}

func TestGoSpiffeClientsComeBackAfterARestart(t *testing.T) {
	conformance.Proves(t, "W28")
	ca := newAuthority(t, trustDomain)
	before := newTestServer(t, Options{})
	addr := before.start("a", newScripted(ca.identity(t, "/a")))
	source := newX509Source(t, addr)
	must(t, before.Shutdown(context.Background()))

	// Not newTestServer: the source lives on when this one ends, which its leak check would not understand.
	after := &testServer{Server: NewServer(Options{}), t: t, dir: before.dir}
	t.Cleanup(func() { must(t, after.Shutdown(context.Background())) })
	next := ca.identity(t, "/a")
	after.start("a", newScripted(next))
	for {
		<-source.Updated()
		svid, err := source.GetX509SVID()
		must(t, err)
		if svid.Certificates[0].Equal(next.SVIDs[0].Certificates[0]) {
			return
		}
	}
}

func TestGoSpiffeBundleAndJWTSourcesBecomeReadyWithoutJWT(t *testing.T) {
	ca, other := newAuthority(t, trustDomain), newAuthority(t, spiffeid.RequireTrustDomainFromString("example.org"))
	s := newTestServer(t, Options{})
	i := ca.identity(t, "/a")
	i.Bundles = x509bundle.NewSet(ca.bundle(), other.bundle())
	addr := s.start("a", newScripted(i))

	bundles, err := spiffe.NewBundleSource(testContext(t), clientAt(addr))
	must(t, err)
	t.Cleanup(func() { _ = bundles.Close() })
	for _, a := range []*authority{ca, other} {
		b, err := bundles.GetX509BundleForTrustDomain(a.td)
		must(t, err)
		if !b.Equal(a.bundle()) {
			t.Errorf("bundle of %s differs", a.td)
		}
	}
	keys, err := bundles.GetJWTBundleForTrustDomain(trustDomain)
	must(t, err)
	if !keys.Empty() {
		t.Error("jwt keys out of nowhere")
	}

	jwt, err := spiffe.NewJWTSource(testContext(t), clientAt(addr))
	must(t, err)
	t.Cleanup(func() { _ = jwt.Close() })
	_, err = jwt.FetchJWTSVID(testContext(t), jwtsvid.Params{Audience: "db"})
	wantStatus(t, err, codes.Unimplemented, "JWT functionality is disabled")
}

func TestTwoWorkloadsTalkMutualTLS(t *testing.T) {
	conformance.Proves(t, "W10")
	ca := newAuthority(t, trustDomain)
	s := newTestServer(t, Options{})
	server := newX509Source(t, s.start("server", newScripted(ca.identity(t, "/server"))))
	client := newX509Source(t, s.start("client", newScripted(ca.identity(t, "/client"))))
	serverID, clientID := spiffeid.RequireFromPath(trustDomain, "/server"), spiffeid.RequireFromPath(trustDomain, "/client")

	lis, err := tls.Listen("tcp", "127.0.0.1:0", tlsconfig.MTLSServerConfig(server, server, tlsconfig.AuthorizeID(clientID)))
	must(t, err)
	t.Cleanup(func() { _ = lis.Close() })
	answered := make(chan error, 1)
	go func() {
		c, err := lis.Accept()
		if err == nil {
			_, err = io.WriteString(c, "hello")
			err = errors.Join(err, c.Close())
		}
		answered <- err
	}()
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", lis.Addr().String(),
		tlsconfig.MTLSClientConfig(client, client, tlsconfig.AuthorizeID(serverID)))
	must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	got, err := io.ReadAll(c)
	must(t, err)
	must(t, <-answered)
	if string(got) != "hello" {
		t.Errorf("got %q", got)
	}
}
