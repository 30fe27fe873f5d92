// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

const (
	// secretType is the type of every resource of this service.
	secretType = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
	// spiffeValidator is the name under which Envoy knows its SPIFFE certificate validator.
	spiffeValidator = "envoy.tls.cert_validator.spiffe"
)

// secret is a marshalled Secret without its name, so that one serves all the names that mean it. It may hold a private key
// and does not print.
type secret struct {
	bytes []byte
	// version is a digest of the public content: the same in every stream and after a restart of the agent, and another one
	// with every certificate. The private key has no part in it; it cannot change without its certificate.
	version string
}

// Format prints no content, whatever the verb.
func (*secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "secret(redacted)") }

// resource is the secret under a name.
func (s *secret) resource(name string) *anypb.Any {
	b := make([]byte, 0, len(s.bytes)+len(name)+8)
	b = protowire.AppendTag(b, 1, protowire.BytesType) // Secret.name
	b = protowire.AppendString(b, name)
	return &anypb.Any{TypeUrl: secretType, Value: append(b, s.bytes...)}
}

// newSecret marshals m, which has no name. public is what the version stands for.
func newSecret(m *tlsv3.Secret, public ...[]byte) *secret {
	digest := sha256.New()
	for _, p := range public {
		_, _ = fmt.Fprintf(digest, "%d:", len(p))
		_, _ = digest.Write(p)
	}
	return &secret{bytes: mustMarshal(m), version: shortDigest(digest.Sum(nil))}
}

// shortDigest is long enough that two contents never share it.
func shortDigest(sum []byte) string { return hex.EncodeToString(sum[:16]) }

// catalog is every secret of one identity. Bundles are marshalled when a proxy first asks for them: most ask for one.
type catalog struct {
	first   *secret                   // the default SVID
	svids   map[string]*secret        // by SPIFFE ID
	own     string                    // SPIFFE ID of the own trust domain
	bundles map[string]*bundleSecrets // by SPIFFE ID of the trust domain
	all     func() *secret            // for the SPIFFE validator
	names   []string                  // of svids and bundles
}

// bundleSecrets are the two forms of one trust domain's bundle.
type bundleSecrets struct{ spiffe, plain func() *secret }

// find returns the secret that a proxy means by a name, or nil. Real names go before those that stand for others.
func (c *catalog) find(name string, p proxySettings) *secret {
	if s, ok := c.svids[name]; ok {
		return s
	}
	if b, ok := c.bundles[name]; ok {
		return b.form(p)
	}
	switch {
	case name == p.svid:
		return c.first
	case name == p.bundle:
		return c.bundles[c.own].form(p)
	case name == p.all && !p.plain:
		return c.all()
	}
	return nil
}

func (b *bundleSecrets) form(p proxySettings) *secret {
	if p.plain {
		return b.plain()
	}
	return b.spiffe()
}

// secrets builds the catalog of an identity, or reports why that cannot be served; a view calls it once.
func (e *endpoint) secrets(i Identity) (*catalog, error) {
	c, err := newCatalog(i)
	if err != nil {
		e.metrics.unserved.Inc()
		e.log.Error("identity cannot be served to proxies", "spiffe_id", i.defaultID(), "error", err, workloadAttr(e.workload))
	}
	return c, err
}

func newCatalog(i Identity) (*catalog, error) {
	if len(i.SVIDs) == 0 {
		return nil, errors.New("identity is entitled but holds no svid")
	}
	c := &catalog{svids: make(map[string]*secret, len(i.SVIDs)), own: i.TrustDomain.IDString()}
	for _, svid := range i.SVIDs {
		if svid == nil {
			return nil, errors.New("identity holds a nil svid")
		}
		id := svid.ID.String()
		if _, taken := c.svids[id]; taken {
			continue // The first counts for more (Workload API §8).
		}
		s, err := svidSecret(svid)
		if err != nil {
			return nil, fmt.Errorf("svid %s: %w", id, err)
		}
		c.svids[id] = s
		c.names = append(c.names, id)
		if c.first == nil {
			c.first = s
		}
	}
	c.addBundles(i.Bundles)
	if c.bundles[c.own] == nil {
		return nil, fmt.Errorf("no x.509 authorities for the own trust domain %q", i.TrustDomain.Name())
	}
	return c, nil
}

// addBundles adds every trust domain that has authorities. An identity may have many, and most proxies ask for one.
func (c *catalog) addBundles(set *x509bundle.Set) {
	c.bundles = make(map[string]*bundleSecrets)
	var known []*x509bundle.Bundle
	if set != nil {
		known = set.Bundles() // sorted by trust domain
	}
	known = slices.DeleteFunc(known, (*x509bundle.Bundle).Empty)
	for _, b := range known {
		id := b.TrustDomain().IDString()
		c.names = append(c.names, id)
		c.bundles[id] = &bundleSecrets{
			spiffe: sync.OnceValue(func() *secret { return validatorSecret(b) }),
			plain:  sync.OnceValue(func() *secret { return plainSecret(b) }),
		}
	}
	c.all = sync.OnceValue(func() *secret { return validatorSecret(known...) })
}

// svidSecret is an SVID as tls_certificate: leaf and intermediates, and the key, in PEM.
func svidSecret(svid *x509svid.SVID) (*secret, error) {
	chain, key, err := svid.Marshal()
	if err != nil {
		return nil, err
	}
	return newSecret(&tlsv3.Secret{Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
		CertificateChain: inline(chain), PrivateKey: inline(key),
	}}}, []byte("tls_certificate"), chain), nil
}

// validatorSecret has Envoy's SPIFFE certificate validator choose the bundle by the trust domain of the peer's SPIFFE ID.
// Bundles stay apart in it: no authority can vouch for another trust domain.
func validatorSecret(bundles ...*x509bundle.Bundle) *secret {
	config := &tlsv3.SPIFFECertValidatorConfig{}
	for _, b := range bundles {
		config.TrustDomains = append(config.TrustDomains, &tlsv3.SPIFFECertValidatorConfig_TrustDomain{
			Name: b.TrustDomain().Name(), TrustBundle: inline(encodeAuthorities(b)),
		})
	}
	encoded := mustMarshal(config)
	return validationSecret(&tlsv3.CertificateValidationContext{CustomValidatorConfig: &corev3.TypedExtensionConfig{
		Name: spiffeValidator,
		TypedConfig: &anypb.Any{
			TypeUrl: "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig", Value: encoded,
		},
	}}, encoded)
}

// plainSecret is one trust domain's bundle for X.509 validation without the SPIFFE validator.
func plainSecret(b *x509bundle.Bundle) *secret {
	authorities := encodeAuthorities(b)
	return validationSecret(&tlsv3.CertificateValidationContext{TrustedCa: inline(authorities)}, authorities)
}

func validationSecret(m *tlsv3.CertificateValidationContext, content []byte) *secret {
	return newSecret(&tlsv3.Secret{Type: &tlsv3.Secret_ValidationContext{ValidationContext: m}}, []byte("validation_context"), content)
}

func inline(b []byte) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
}

// encodeAuthorities is PEM in a fixed order; a bundle whose authorities come in another order has not changed.
func encodeAuthorities(b *x509bundle.Bundle) []byte {
	var r []byte
	for _, der := range distinct(b.X509Authorities()) {
		r = append(r, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return r
}

// mustMarshal marshals a message of byte fields and ASCII names (SPIFFE-ID §2.1), for which there is no error.
func mustMarshal(m proto.Message) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic(fmt.Sprintf("%T cannot be marshalled: %v", m, err))
	}
	return b
}
