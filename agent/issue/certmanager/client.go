// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package certmanager

import (
	"fmt"
	"net/http"

	"github.com/cert-manager/cert-manager/pkg/client/clientset/versioned"
	cmclient "github.com/cert-manager/cert-manager/pkg/client/clientset/versioned/typed/certmanager/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/transport"

	"github.com/signet-spiffe/signet/agent/issue"
)

// NewClient makes the agent's own client, without client-go's rate limit: API
// Priority and Fairness protects the server, and the default of 5 requests per
// second would hold up a node that starts 110 pods for 20 seconds.
func NewClient(config *rest.Config) (versioned.Interface, error) {
	client, err := versioned.NewForConfig(unlimited(config))
	if err != nil {
		return nil, fmt.Errorf("make cert-manager client: %w", err)
	}
	return client, nil
}

// unlimited copies a configuration without its rate limit.
func unlimited(config *rest.Config) *rest.Config {
	c := rest.CopyConfig(config)
	c.RateLimiter = nil
	c.QPS, c.Burst = -1, 0
	return c
}

// podClients makes clients that speak in a pod's name. They share connections
// with each other, never with the agent's own client: a connection may carry a
// client certificate, and that would win over the token.
type podClients struct {
	config    *rest.Config
	transport http.RoundTripper
}

func newPodClients(base *rest.Config, wrap func(http.RoundTripper) http.RoundTripper) (*podClients, error) {
	// Address and trust only: no token, password, certificate, exec plugin,
	// impersonation or transport wrapper of the agent.
	config := unlimited(rest.AnonymousClientConfig(base))
	rt, err := rest.TransportFor(config)
	if err != nil {
		return nil, fmt.Errorf("make transport for requests in a pod's name: %w", err)
	}
	if wrap != nil {
		rt = wrap(rt)
	}
	return &podClients{config: config, transport: rt}, nil
}

// with returns a client that authenticates by token alone.
func (p *podClients) with(token issue.Token) (cmclient.CertificateRequestsGetter, error) {
	if token.IsZero() {
		return nil, fmt.Errorf("%w: kubelet sent none for the API server's audience; the CSIDriver needs tokenRequests with audience %q", issue.ErrNoToken, "")
	}
	httpClient := &http.Client{
		Transport: transport.NewBearerAuthRoundTripper(token.Reveal(), p.transport),
		Timeout:   p.config.Timeout,
	}
	client, err := cmclient.NewForConfigAndClient(p.config, httpClient)
	if err != nil {
		return nil, fmt.Errorf("make client for requests in a pod's name: %w", err)
	}
	return client, nil
}
