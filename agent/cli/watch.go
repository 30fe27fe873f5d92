// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
)

func newWatch() *cobra.Command {
	var (
		e      endpoint
		output Output
	)
	c := &cobra.Command{
		Use: "watch", Short: "Print every update of the identity, until Ctrl-C",
		Long: `Print every update of the identity as the Workload API pushes it, until Ctrl-C: the
first at once, the next when an SVID is renewed or a trust bundle changes. When the
stream ends the reason goes to standard error and go-spiffe connects again, as it does
in a program. -output json prints one line for each update, without keys.

` + socketHelp,
		Args: NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			path, err := e.path()
			if err != nil {
				return err
			}
			if err := Reach(c.Context(), path); err != nil {
				return err
			}
			return watch(c.Context(), path, &watcher{ctx: c.Context(), path: path, out: c.OutOrStdout(), problems: c.ErrOrStderr(), output: output, last: time.Now()})
		},
	}
	c.Flags().StringVar(&e.socketPath, "socketPath", "", "Socket of the Workload API, a path or unix:///path (default $"+workloadapi.SocketEnv+", else well-known places)")
	output.AddFlag(c.Flags())
	return c
}

// watch follows the Workload API until ctx ends.
func watch(ctx context.Context, path string, w *watcher) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w.stop = cancel
	dial := func(ctx context.Context, _ string) (net.Conn, error) { return dialUnix(ctx, path) }
	err := workloadapi.WatchX509Context(ctx, w, workloadapi.WithAddr("unix:///socket"), workloadapi.WithDialOptions(grpc.WithContextDialer(dial)))
	switch {
	case w.failed != nil:
		return w.failed
	case ctx.Err() != nil:
		return nil
	}
	return fmt.Errorf("%s: %w", path, Explain(ctx, err))
}

// watcher implements workloadapi.X509ContextWatcher. Its methods are called one
// after the other.
type watcher struct {
	ctx           context.Context
	stop          context.CancelFunc
	path          string
	out, problems io.Writer
	output        Output
	last          time.Time
	failed        error // The output is gone.
}

// OnX509ContextUpdate implements workloadapi.X509ContextWatcher.
func (w *watcher) OnX509ContextUpdate(c *workloadapi.X509Context) {
	now := time.Now()
	if w.output.JSON() {
		w.failed = WriteProtoJSON(w.out, asResponse(c))
	} else {
		w.failed = printX509(w.out, asSVIDs(c), now.Sub(w.last))
	}
	w.last = now
	if w.failed != nil {
		w.stop()
	}
}

// OnX509ContextWatchError implements workloadapi.X509ContextWatcher.
func (w *watcher) OnX509ContextWatchError(err error) {
	if w.ctx.Err() != nil {
		return // We hung up.
	}
	problem := Explain(w.ctx, err).Error()
	if hint := hintFor(err); hint != "" {
		problem += "; " + hint
	}
	_, _ = fmt.Fprintf(w.problems, "%s: %s\n", w.path, problem) // Nobody to tell.
}

// bundlesOf are the authorities of td, and those of the others in order.
func bundlesOf(c *workloadapi.X509Context, td string) (own []*x509.Certificate, others []federatedBundle) {
	all := c.Bundles.Bundles()
	slices.SortFunc(all, func(a, b *x509bundle.Bundle) int {
		return strings.Compare(a.TrustDomain().Name(), b.TrustDomain().Name())
	})
	for _, b := range all {
		if b.TrustDomain().Name() == td {
			own = b.X509Authorities()
			continue
		}
		others = append(others, federatedBundle{domain: b.TrustDomain().Name(), authorities: b.X509Authorities()})
	}
	return own, others
}

func asSVIDs(c *workloadapi.X509Context) []x509SVID {
	var svids []x509SVID
	for _, svid := range c.SVIDs {
		own, others := bundlesOf(c, svid.ID.TrustDomain().Name())
		svids = append(svids, x509SVID{id: svid.ID.String(), hint: Clean(svid.Hint), chain: svid.Certificates, bundle: own, federated: others})
	}
	return svids
}

// asResponse is the update as the Workload API sent it, without keys.
func asResponse(c *workloadapi.X509Context) *workload.X509SVIDResponse {
	r := &workload.X509SVIDResponse{}
	for i, svid := range c.SVIDs {
		own, others := bundlesOf(c, svid.ID.TrustDomain().Name())
		r.Svids = append(r.Svids, &workload.X509SVID{SpiffeId: svid.ID.String(), Hint: svid.Hint, X509Svid: raw(svid.Certificates), Bundle: raw(own)})
		if i == 0 && len(others) > 0 {
			r.FederatedBundles = map[string][]byte{}
			for _, f := range others {
				r.FederatedBundles["spiffe://"+f.domain] = raw(f.authorities)
			}
		}
	}
	return r
}

func raw(certs []*x509.Certificate) []byte {
	var der []byte
	for _, c := range certs {
		der = append(der, c.Raw...)
	}
	return der
}
