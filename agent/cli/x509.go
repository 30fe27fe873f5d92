// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

// x509SVID is one SVID of an answer, parsed and verified. Its key is in the answer
// alone.
type x509SVID struct {
	id, hint  string
	chain     []*x509.Certificate
	bundle    []*x509.Certificate
	federated []federatedBundle
}

type federatedBundle struct {
	domain      string // As it is printed.
	authorities []*x509.Certificate
}

func newFetchX509(use, short string) *cobra.Command {
	var (
		e      endpoint
		output Output
		write  string
		silent bool
	)
	c := &cobra.Command{
		Use: use, Short: short,
		Long: short + `.

It waits for the first answer, up to -timeout: an identity that is still being issued
is waited for. The SVIDs are verified against the trust bundles that come with them.

With -write each SVID is written to DIR: svid.N.pem (the chain), svid.N.key (PKCS#8,
mode 0600), bundle.N.pem, and federated_bundle.N.M.pem for each federated trust
domain in alphabetical order. Keys are printed nowhere: where spire-agent's JSON has
one, there is an empty string.

` + socketHelp,
		Example: `  signet-agent api fetch -socketPath /var/run/secrets/spiffe.io/spiffe.sock
  signet-agent api fetch x509 -write /dev/shm/svid -silent
  signet-agent api fetch -output json | jq -r '.svids[].spiffe_id'`,
		Args: NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			out := c.OutOrStdout()
			if silent {
				out = io.Discard
			}
			start := time.Now()
			answer, err := e.fetchX509(c)
			if err != nil {
				return err
			}
			took := time.Since(start)
			svids, err := parseX509(answer)
			if err != nil {
				return fmt.Errorf("the Workload API's answer is not what it should be: %w", err)
			}
			if output.JSON() {
				if err := WriteProtoJSON(out, withoutKeys(answer)); err != nil {
					return err
				}
				out = io.Discard
			} else if err := printX509(out, svids, took); err != nil {
				return err
			}
			if write == "" {
				return nil
			}
			return writeX509(out, write, svids, answer)
		},
	}
	e.addFlags(c.Flags())
	output.AddFlag(c.Flags())
	c.Flags().StringVar(&write, "write", "", "Directory to write SVIDs, keys and bundles to")
	c.Flags().BoolVar(&silent, "silent", false, "Print nothing but errors")
	return c
}

func (e *endpoint) fetchX509(c *cobra.Command) (*workload.X509SVIDResponse, error) {
	s, err := e.open(c.Context())
	if err != nil {
		return nil, err
	}
	defer s.close()
	ctx := metadata.AppendToOutgoingContext(s.ctx, securityHeader, "true")
	stream, err := workload.NewSpiffeWorkloadAPIClient(s.conn).FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	if err != nil {
		return nil, s.explain(err)
	}
	answer, err := stream.Recv()
	if err != nil {
		return nil, s.explain(err)
	}
	return answer, nil
}

// securityHeader is on every request (Workload Endpoint section 3).
const securityHeader = "workload.spiffe.io"

// parseX509 parses and verifies an answer: what passes is of use to a workload.
func parseX509(answer *workload.X509SVIDResponse) ([]x509SVID, error) {
	if len(answer.GetSvids()) == 0 {
		return nil, errors.New("it holds no SVID")
	}
	var federated []federatedBundle
	for _, td := range slices.Sorted(maps.Keys(answer.GetFederatedBundles())) {
		authorities, err := parseBundle(answer.GetFederatedBundles()[td])
		if err != nil {
			return nil, fmt.Errorf("bundle of federated trust domain %q: %w", td, err)
		}
		federated = append(federated, federatedBundle{domain: Clean(td), authorities: authorities})
	}
	var svids []x509SVID
	for _, raw := range answer.GetSvids() {
		svid, err := parseX509SVID(raw)
		if err != nil {
			return nil, fmt.Errorf("SVID %q: %w", raw.GetSpiffeId(), err)
		}
		svid.federated = federated
		svids = append(svids, svid)
	}
	return svids, nil
}

func parseX509SVID(raw *workload.X509SVID) (x509SVID, error) {
	svid, err := x509svid.ParseRaw(raw.GetX509Svid(), raw.GetX509SvidKey())
	if err != nil {
		return x509SVID{}, err
	}
	if svid.ID.String() != raw.GetSpiffeId() {
		return x509SVID{}, fmt.Errorf("its certificate is %s's", svid.ID)
	}
	authorities, err := parseBundle(raw.GetBundle())
	if err != nil {
		return x509SVID{}, fmt.Errorf("trust bundle: %w", err)
	}
	if err := verify(svid.ID, svid.Certificates, authorities); err != nil {
		return x509SVID{}, err
	}
	return x509SVID{id: svid.ID.String(), hint: Clean(raw.GetHint()), chain: svid.Certificates, bundle: authorities}, nil
}

func parseBundle(der []byte) ([]*x509.Certificate, error) {
	authorities, err := x509.ParseCertificates(der)
	if err == nil && len(authorities) == 0 {
		err = errors.New("it holds no authority")
	}
	return authorities, err
}

func verify(id spiffeid.ID, chain, authorities []*x509.Certificate) error {
	_, _, err := x509svid.Verify(chain, x509bundle.FromX509Authorities(id.TrustDomain(), authorities))
	return err
}

// withoutKeys is the answer as it may be printed.
func withoutKeys(answer *workload.X509SVIDResponse) *workload.X509SVIDResponse {
	shown := proto.CloneOf(answer)
	for _, svid := range shown.GetSvids() {
		svid.X509SvidKey = nil
	}
	return shown
}

// printX509 prints as spire-agent does.
func printX509(w io.Writer, svids []x509SVID, took time.Duration) error {
	p := &printer{w: w}
	plural := "s"
	if len(svids) == 1 {
		plural = ""
	}
	p.printf("Received %d svid%s after %s\n", len(svids), plural, took)
	for _, svid := range svids {
		p.printf("\nSPIFFE ID:\t\t%s\n", svid.id)
		if svid.hint != "" {
			p.printf("Hint:\t\t\t%s\n", svid.hint)
		}
		p.validity("SVID", svid.chain[0])
		for i, c := range svid.chain[1:] {
			p.validity(fmt.Sprintf("Intermediate #%d", i+1), c)
		}
		for i, c := range svid.bundle {
			p.validity(fmt.Sprintf("CA #%d", i+1), c)
		}
		for _, f := range svid.federated {
			for i, c := range f.authorities {
				p.validity(fmt.Sprintf("[%s] CA #%d", f.domain, i+1), c)
			}
		}
	}
	p.printf("\n")
	return p.err
}

// printer keeps the first error of many prints.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) printf(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format, args...)
	}
}

func (p *printer) validity(what string, c *x509.Certificate) {
	p.printf("%s Valid After:\t%s\n%s Valid Until:\t%s\n", what, c.NotBefore, what, c.NotAfter)
}
