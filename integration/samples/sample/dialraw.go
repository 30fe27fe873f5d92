// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// securityHeader is the metadata key that every Workload API request carries
// (SPIFFE Workload Endpoint §6).
const securityHeader = "workload.spiffe.io"

// rawAnswer is what dial-raw prints.
type rawAnswer struct {
	Method  string `json:"method"`
	Code    string `json:"code"`
	Message string `json:"message,omitempty"`
	// ID and Serial are set by FetchX509SVID, Domains (trust domain or JWKS by
	// trust domain) by the bundle methods, Status by Health.
	ID      string            `json:"id,omitempty"`
	Serial  string            `json:"serial,omitempty"`
	Domains map[string]string `json:"domains,omitempty"`
	Status  string            `json:"status,omitempty"`
	Millis  float64           `json:"ms"`
}

func newDialRawCommand(p *printer) *cobra.Command {
	var (
		o                      sourceOptions
		method, header, expect string
	)
	cmd := &cobra.Command{
		Use:   "dial-raw",
		Short: "Call the Workload API by plain gRPC, with any security header, and print the first answer or its code",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			got, err := dialRaw(cmd.Context(), o, method, header)
			if err != nil {
				return err
			}
			p.print(got)
			if expect != "" && got.Code != expect {
				return fmt.Errorf("%s answered %s (%s), expected %s", method, got.Code, got.Message, expect)
			}
			return nil
		},
	}
	o.addSocketFlags(cmd.Flags())
	cmd.Flags().StringVar(&method, "method", "FetchX509SVID", "FetchX509SVID, FetchX509Bundles, FetchJWTBundles, FetchJWTSVID, ValidateJWTSVID or Health")
	cmd.Flags().StringVar(&header, "header", "true", `value of the security header; "none" leaves it out`)
	cmd.Flags().StringVar(&expect, "expect", "", "fail unless the answer has this gRPC code (OK, InvalidArgument, PermissionDenied, …)")
	return cmd
}

func dialRaw(ctx context.Context, o sourceOptions, method, header string) (rawAnswer, error) {
	call, ok := rawMethods[method]
	if !ok {
		return rawAnswer{}, fmt.Errorf("--method %q is unknown", method)
	}
	address := cmp.Or(o.socket, os.Getenv(workloadapi.SocketEnv))
	if address == "" {
		return rawAnswer{}, fmt.Errorf("no Workload API address: set --socket or %s", workloadapi.SocketEnv)
	}
	target, err := workloadapi.TargetFromAddress(address)
	if err != nil {
		return rawAnswer{}, fmt.Errorf("address %q: %w", address, err)
	}
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return rawAnswer{}, fmt.Errorf("dial %q: %w", address, err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	if header != "none" {
		ctx = metadata.AppendToOutgoingContext(ctx, securityHeader, header)
	}
	got := rawAnswer{Method: method}
	start := time.Now()
	err = call(ctx, conn, &got)
	got.Millis = millis(time.Since(start))
	got.Code = status.Code(err).String()
	if err != nil {
		got.Message = status.Convert(err).Message()
	}
	return got, nil
}

// rawMethods call one method each and note the first answer.
var rawMethods = map[string]func(context.Context, *grpc.ClientConn, *rawAnswer) error{
	"FetchX509SVID": func(ctx context.Context, cc *grpc.ClientConn, a *rawAnswer) error {
		stream, err := workload.NewSpiffeWorkloadAPIClient(cc).FetchX509SVID(ctx, &workload.X509SVIDRequest{})
		if err != nil {
			return err
		}
		response, err := stream.Recv()
		if err != nil {
			return err
		}
		return a.setSVID(response)
	},
	"FetchX509Bundles": func(ctx context.Context, cc *grpc.ClientConn, a *rawAnswer) error {
		stream, err := workload.NewSpiffeWorkloadAPIClient(cc).FetchX509Bundles(ctx, &workload.X509BundlesRequest{})
		if err != nil {
			return err
		}
		response, err := stream.Recv()
		if err != nil {
			return err
		}
		a.Domains = map[string]string{}
		for td, der := range response.GetBundles() {
			roots, err := x509.ParseCertificates(der)
			if err != nil {
				return status.Errorf(codes.DataLoss, "bundle of %s: %v", td, err)
			}
			a.Domains[td] = fmt.Sprintf("%d roots", len(roots))
		}
		return nil
	},
	"FetchJWTBundles": func(ctx context.Context, cc *grpc.ClientConn, a *rawAnswer) error {
		stream, err := workload.NewSpiffeWorkloadAPIClient(cc).FetchJWTBundles(ctx, &workload.JWTBundlesRequest{})
		if err != nil {
			return err
		}
		response, err := stream.Recv()
		if err != nil {
			return err
		}
		a.Domains = map[string]string{}
		for td, keys := range response.GetBundles() {
			a.Domains[td] = string(keys)
		}
		return nil
	},
	"FetchJWTSVID": func(ctx context.Context, cc *grpc.ClientConn, _ *rawAnswer) error {
		_, err := workload.NewSpiffeWorkloadAPIClient(cc).FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"sample"}})
		return err
	},
	"ValidateJWTSVID": func(ctx context.Context, cc *grpc.ClientConn, _ *rawAnswer) error {
		_, err := workload.NewSpiffeWorkloadAPIClient(cc).ValidateJWTSVID(ctx, &workload.ValidateJWTSVIDRequest{Audience: "sample", Svid: "not.a.token"})
		return err
	},
	"Health": func(ctx context.Context, cc *grpc.ClientConn, a *rawAnswer) error {
		response, err := grpc_health_v1.NewHealthClient(cc).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
		a.Status = response.GetStatus().String()
		return err
	},
}

// setSVID notes the default SVID.
func (a *rawAnswer) setSVID(response *workload.X509SVIDResponse) error {
	if len(response.GetSvids()) == 0 {
		return status.Error(codes.DataLoss, "the answer holds no SVID")
	}
	svid := response.GetSvids()[0]
	chain, err := x509.ParseCertificates(svid.GetX509Svid())
	if err == nil && len(chain) == 0 {
		err = errors.New("empty chain")
	}
	if err != nil {
		return status.Errorf(codes.DataLoss, "SVID of %s: %v", svid.GetSpiffeId(), err)
	}
	a.ID, a.Serial = svid.GetSpiffeId(), serialOf(chain[0])
	return nil
}
