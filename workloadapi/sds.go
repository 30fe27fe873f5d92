// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

// Names that Envoy configurations ask for when nothing else is agreed. They are those of SPIRE's agent.
const (
	DefaultSDSSVIDName       = "default"
	DefaultSDSBundleName     = "ROOTCA"
	DefaultSDSAllBundlesName = "ALL"
)

// SDSOptions configure Envoy's secret discovery service on the workload sockets. The zero value serves it under the default
// names. A proxy can choose names and validator for itself in its node metadata; see proxySettings.
type SDSOptions struct {
	// Disabled leaves the service out: its methods are Unimplemented.
	Disabled bool
	// SVIDName is the tls_certificate with the default SVID; "" is DefaultSDSSVIDName.
	SVIDName string
	// BundleName is the validation_context with the own trust domain's bundle; "" is DefaultSDSBundleName. It may equal
	// AllBundlesName, and then hides it.
	BundleName string
	// AllBundlesName is the validation_context with the bundles of all trust domains; "" is DefaultSDSAllBundlesName.
	AllBundlesName string
	// DisableSPIFFEValidator makes validation contexts plain lists of CA certificates (trusted_ca) instead of a
	// configuration for Envoy's SPIFFE certificate validator. There is no secret of all bundles then: a list of CA
	// certificates cannot say which of them may vouch for which trust domain.
	DisableSPIFFEValidator bool
}

// Validate reports names that cannot be told apart from others. Names that are "" are the defaults.
func (o SDSOptions) Validate() error {
	p := o.settings()
	for _, name := range []string{p.svid, p.bundle, p.all} {
		if name == wildcardName || len(name) > maxSecretName {
			return fmt.Errorf("SDS resource name %.64q: must be 1 to %d bytes and not %q", name, maxSecretName, wildcardName)
		}
	}
	if p.svid == p.bundle || p.svid == p.all {
		return fmt.Errorf("SDS resource name %q: cannot be an SVID and a bundle at once", p.svid)
	}
	return nil
}

func (o SDSOptions) settings() proxySettings {
	return proxySettings{
		svid:   cmp.Or(o.SVIDName, DefaultSDSSVIDName),
		bundle: cmp.Or(o.BundleName, DefaultSDSBundleName),
		all:    cmp.Or(o.AllBundlesName, DefaultSDSAllBundlesName),
		plain:  o.DisableSPIFFEValidator,
	}
}

// sdsHandler implements Envoy's SecretDiscoveryService v3. It has no security header: Envoy knows of none.
type sdsHandler struct {
	secretv3.UnsafeSecretDiscoveryServiceServer
	defaults proxySettings
	metrics  *sdsMetrics
}

// registerSDS adds the service to a server that is being made.
func registerSDS(s *grpc.Server, o SDSOptions, r prometheus.Registerer) {
	if o.Disabled {
		return
	}
	secretv3.RegisterSecretDiscoveryServiceServer(s, sdsHandler{defaults: o.settings(), metrics: newSDSMetrics(r)})
}

// StreamSecrets is the state-of-the-world variant of xDS.
func (h sdsHandler) StreamSecrets(stream grpc.BidiStreamingServer[discoveryv3.DiscoveryRequest, discoveryv3.DiscoveryResponse]) error {
	return discover(h, stream, newStateOfTheWorld(h.defaults))
}

// DeltaSecrets is the incremental variant of xDS.
func (h sdsHandler) DeltaSecrets(stream grpc.BidiStreamingServer[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]) error {
	return discover(h, stream, newIncremental(h.defaults))
}

// FetchSecrets answers once. Like a stream it is held while the SVID is pending; the caller's deadline bounds that.
func (h sdsHandler) FetchSecrets(ctx context.Context, r *discoveryv3.DiscoveryRequest) (*discoveryv3.DiscoveryResponse, error) {
	ep, err := endpointOf(ctx)
	if err != nil {
		return nil, err
	}
	if err := ep.begin(); err != nil {
		return nil, err
	}
	defer ep.finish()

	s := newStateOfTheWorld(h.defaults)
	if _, err := s.receive(r); err != nil {
		return nil, err
	}
	v, err := ep.entitled(ctx)
	if err != nil {
		return nil, err
	}
	c, err := v.offered(false)
	if err != nil {
		return nil, err
	}
	response := s.respond(c)
	h.hint(ep, &s.subscription)
	response.Nonce = "" // There is nothing to acknowledge.
	return response, nil
}

// session is one xDS stream without its transport. It is a pure state machine: requests and catalogs in, responses out.
type session[Request, Response any] interface {
	// receive takes a request in. An error ends the stream.
	receive(*Request) (answer, error)
	// respond returns what the client is to be told about c, or nil.
	respond(c *catalog) *Response
	// state returns what both variants have in common.
	state() *subscription
}

// discover runs a session until the identity, the endpoint or the caller ends. It returns nil only for a caller that has
// closed its side and been answered: it has said that it is done, and cannot acknowledge anything any more.
func discover[Request, Response any](h sdsHandler, stream grpc.BidiStreamingServer[Request, Response], s session[Request, Response]) error {
	ctx := stream.Context()
	ep, err := endpointOf(ctx)
	if err != nil {
		return err
	}
	if err := ep.begin(); err != nil {
		return err
	}
	defer ep.finish()

	requests := receiveAll(stream)
	for closed := false; ; {
		v := ep.current()
		if err := tell(h, ep, v, stream, s); err != nil {
			return err
		}
		if closed && !s.state().due {
			return nil
		}
		in, err := await(ctx, ep, v, requests)
		switch {
		case err != nil:
			return err
		case in == nil: // The identity has changed.
		case errors.Is(in.err, io.EOF):
			closed, requests = true, nil
		case in.err != nil:
			return in.err
		default:
			a, err := s.receive(in.request)
			h.note(ep, v, a)
			if err != nil {
				return err
			}
		}
	}
}

// tell sends what the session has to say about v, if anything.
func tell[Request, Response any](h sdsHandler, ep *endpoint, v *view, stream grpc.BidiStreamingServer[Request, Response], s session[Request, Response]) error {
	c, err := v.offered(s.state().answered())
	if c == nil || err != nil {
		return err
	}
	response := s.respond(c)
	if response == nil {
		return nil
	}
	h.hint(ep, s.state())
	return stream.Send(response)
}

// received is a request, or the error that there will be no more.
type received[Request any] struct {
	request *Request
	err     error
}

// receiveAll reads requests until the stream ends. Nothing is read ahead of what the handler takes.
func receiveAll[Request, Response any](stream grpc.BidiStreamingServer[Request, Response]) <-chan received[Request] {
	requests := make(chan received[Request])
	ctx := stream.Context()
	go func() {
		for {
			r, err := stream.Recv()
			select {
			case requests <- received[Request]{r, err}:
			case <-ctx.Done(): // gRPC ends the context when the handler returns.
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return requests
}

// await is endpoint.wait for a stream that also has requests. It returns nil and no error once v has been superseded.
func await[Request any](ctx context.Context, ep *endpoint, v *view, requests <-chan received[Request]) (*received[Request], error) {
	if ep.hasEnded() { // An end that has come counts for more than anything else.
		return nil, ep.reason
	}
	select {
	case <-ep.ended:
		return nil, ep.reason
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	case <-v.superseded:
		if ep.hasEnded() {
			return nil, ep.reason
		}
		return nil, nil
	case in := <-requests:
		return &in, nil
	}
}

// offered returns the secrets of v, nil while a stream is to be held, or the status to end it with. What a proxy has is
// better than an error, so an identity that cannot be served ends only the streams that have been told nothing.
func (v *view) offered(told bool) (*catalog, error) {
	if held, err := v.verdict(); held || err != nil {
		return nil, err
	}
	c, err := v.secrets()
	switch {
	case err == nil:
		return c, nil
	case told:
		return nil, nil
	default:
		return nil, errUnserialized
	}
}

// note counts an answer and logs a rejection.
func (h sdsHandler) note(ep *endpoint, v *view, a answer) {
	h.metrics.answered(a.verdict)
	if a.verdict != rejected || v.rejections.Add(1) > maxRejectionsLogged {
		return
	}
	ep.log.Warn("a proxy rejected its secrets and keeps those it had",
		"spiffe_id", v.identity.defaultID(), "version", a.version, "reason", a.reason, workloadAttr(ep.workload))
}

// hint tells operators, once for each name, which secrets a proxy waits for in vain.
func (h sdsHandler) hint(ep *endpoint, s *subscription) {
	if len(s.missing) == 0 {
		return
	}
	h.metrics.unknown.Add(float64(len(s.missing)))
	names := ep.sds.fresh(s.missing)
	if len(names) == 0 {
		return
	}
	ep.log.Info("a proxy asks for secrets that do not exist; the others are served",
		"names", names, "available", "the workload's SPIFFE IDs, spiffe://<trust domain> and "+s.proxy.String(), workloadAttr(ep.workload))
}
