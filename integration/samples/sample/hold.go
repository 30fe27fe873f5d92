// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/status"
)

func newHoldCommand(p *printer) *cobra.Command {
	var (
		o       sourceOptions
		updates int
	)
	cmd := &cobra.Command{
		Use:   "hold",
		Short: "Hold the identity and print each update",
		Long: `Hold the identity and print each update: every message of one Workload API
client, which connects again when its stream ends (the reason is printed as an
error), or every new set of files.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithCancel(cmd.Context())
			defer cancel()
			h := &holder{print: p, limit: updates, done: cancel, over: func() bool { return ctx.Err() != nil }}
			switch o.kind {
			case fromSocket:
				return h.stream(ctx, o)
			case fromFiles:
				return h.files(ctx, o)
			}
			return fmt.Errorf("--source %q is unknown (want %q or %q)", o.kind, fromSocket, fromFiles)
		},
	}
	o.addFlags(cmd.Flags())
	cmd.Flags().IntVar(&updates, "updates", 0, "stop after so many updates; 0: never")
	return cmd
}

// holder prints updates. It implements workloadapi.X509ContextWatcher.
type holder struct {
	print *printer
	limit int // 0: none
	// done ends it all, over reports whether that has happened.
	done context.CancelFunc
	over func() bool

	mu   sync.Mutex
	seen int
}

func (h *holder) stream(ctx context.Context, o sourceOptions) error {
	err := workloadapi.WatchX509Context(ctx, h, o.clientOptions()...)
	return ignoreStop(ctx, err)
}

func (h *holder) files(ctx context.Context, o sourceOptions) error {
	f, err := openFiles(o.dir, h.OnX509ContextWatchError)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		id, changed := f.current()
		h.update(id.svid, id.bundle)
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// OnX509ContextUpdate implements workloadapi.X509ContextWatcher.
func (h *holder) OnX509ContextUpdate(c *workloadapi.X509Context) {
	h.update(c.DefaultSVID(), c.Bundles)
}

// OnX509ContextWatchError implements workloadapi.X509ContextWatcher.
func (h *holder) OnX509ContextWatchError(err error) {
	if h.over() {
		return // we hung up ourselves
	}
	h.print.event(event{Event: "error", Code: status.Code(err).String(), Error: err.Error()})
}

func (h *holder) update(svid *x509svid.SVID, bundles x509bundle.Source) {
	h.mu.Lock()
	h.seen++
	n := h.seen
	h.mu.Unlock()
	leaf := svid.Certificates[0]
	h.print.event(event{Event: "update", Count: n, OwnID: svid.ID.String(), OwnSerial: serialOf(leaf), NotAfter: &leaf.NotAfter, Roots: rootsOf(svid.ID.TrustDomain(), bundles)})
	if n == h.limit {
		h.done()
	}
}

// rootsOf are the serial numbers of the trust domain's authorities, in order.
func rootsOf(td spiffeid.TrustDomain, bundles x509bundle.Source) []string {
	bundle, err := bundles.GetX509BundleForTrustDomain(td)
	if err != nil {
		return nil // An SVID without its bundle does not verify; whoever calls hears of that.
	}
	var serials []string
	for _, root := range bundle.X509Authorities() {
		serials = append(serials, serialOf(root))
	}
	slices.Sort(serials)
	return serials
}
