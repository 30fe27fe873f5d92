// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/signet-spiffe/signet/internal/observe"
)

func newFetchJWT() *cobra.Command {
	var (
		e        endpoint
		output   Output
		audience []string
		id       string
	)
	c := &cobra.Command{
		Use: "jwt", Short: "Fetch JWT-SVIDs for an audience",
		Long: `Fetch JWT-SVIDs for an audience, and the keys by which they are validated. Signet
issues none so far and says "JWT functionality is disabled"; other Workload APIs may.

A JWT-SVID is a bearer token: whoever reads it may use it until it expires.

` + socketHelp,
		Args: NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if len(audience) == 0 {
				return observe.Usagef("audience must be specified: -audience NAME, of whom the token is for")
			}
			s, err := e.open(c.Context())
			if err != nil {
				return err
			}
			defer s.close()
			tokens, bundles, err := s.fetchJWT(&workload.JWTSVIDRequest{Audience: audience, SpiffeId: id})
			if err != nil {
				return s.explain(err)
			}
			if output.JSON() {
				return WriteProtoJSON(c.OutOrStdout(), tokens, bundles)
			}
			return printJWT(c.OutOrStdout(), tokens, bundles)
		},
	}
	e.addFlags(c.Flags())
	output.AddFlag(c.Flags())
	c.Flags().StringSliceVar(&audience, "audience", nil, "Who the token is for; several are separated by commas")
	c.Flags().StringVar(&id, "spiffeID", "", "Whose token; without it, those of all identities of the workload")
	return c
}

func (s *session) fetchJWT(r *workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, *workload.JWTBundlesResponse, error) {
	ctx := metadata.AppendToOutgoingContext(s.ctx, securityHeader, "true")
	client := workload.NewSpiffeWorkloadAPIClient(s.conn)
	tokens, err := client.FetchJWTSVID(ctx, r)
	if err != nil {
		return nil, nil, err
	}
	stream, err := client.FetchJWTBundles(ctx, &workload.JWTBundlesRequest{})
	if err != nil {
		return nil, nil, err
	}
	bundles, err := stream.Recv()
	return tokens, bundles, err
}

// printJWT prints as spire-agent does.
func printJWT(w io.Writer, tokens *workload.JWTSVIDResponse, bundles *workload.JWTBundlesResponse) error {
	p := &printer{w: w}
	for _, t := range tokens.GetSvids() {
		p.printf("token(%s):\n\t%s\n", Clean(t.GetSpiffeId()), Clean(t.GetSvid()))
		if t.GetHint() != "" {
			p.printf("hint(%s):\n\t%s\n", Clean(t.GetSpiffeId()), Clean(t.GetHint()))
		}
	}
	for _, td := range slices.Sorted(maps.Keys(bundles.GetBundles())) {
		p.printf("bundle(%s):\n\t%s\n", Clean(td), Clean(string(bundles.GetBundles()[td])))
	}
	return p.err
}

// maxTokenBytes is more than a server takes.
const maxTokenBytes = 1 << 20

func newValidateJWT() *cobra.Command {
	var (
		e              endpoint
		output         Output
		audience, svid string
	)
	c := &cobra.Command{
		Use: "jwt", Short: "Have a JWT-SVID validated by the Workload API",
		Long: `Have a JWT-SVID validated by the Workload API, for an audience. With "-svid -" the
token is read from standard input, so that it is in no list of processes.

` + socketHelp,
		Example: `  signet-agent api validate jwt -audience db -svid - < token`,
		Args:    NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			switch {
			case audience == "":
				return observe.Usagef("audience must be specified: -audience NAME, of whom the token should be for")
			case svid == "":
				return observe.Usagef("svid must be specified: -svid TOKEN, or -svid - to read it from standard input")
			case svid == "-":
				token, err := io.ReadAll(io.LimitReader(c.InOrStdin(), maxTokenBytes))
				if err != nil {
					return fmt.Errorf("read the token from standard input: %w", err)
				}
				svid = strings.TrimSpace(string(token))
			}
			s, err := e.open(c.Context())
			if err != nil {
				return err
			}
			defer s.close()
			ctx := metadata.AppendToOutgoingContext(s.ctx, securityHeader, "true")
			answer, err := workload.NewSpiffeWorkloadAPIClient(s.conn).ValidateJWTSVID(ctx, &workload.ValidateJWTSVIDRequest{Audience: audience, Svid: svid})
			switch {
			case status.Code(err) == codes.InvalidArgument:
				return errors.New("SVID is not valid: " + Clean(status.Convert(err).Message()))
			case err != nil:
				return fmt.Errorf("unable to validate JWT SVID: %w", s.explain(err))
			}
			return printValidated(c.OutOrStdout(), output, answer)
		},
	}
	e.addFlags(c.Flags())
	output.AddFlag(c.Flags())
	c.Flags().StringVar(&audience, "audience", "", "Who the token should be for")
	c.Flags().StringVar(&svid, "svid", "", "The token, or - to read it from standard input")
	return c
}

func printValidated(w io.Writer, output Output, answer *workload.ValidateJWTSVIDResponse) error {
	if output.JSON() {
		return WriteProtoJSON(w, answer)
	}
	p := &printer{w: w}
	p.printf("SVID is valid.\nSPIFFE ID : %s\nClaims    : ", Clean(answer.GetSpiffeId()))
	if p.err != nil {
		return p.err
	}
	return WriteProtoJSON(w, answer.GetClaims())
}
