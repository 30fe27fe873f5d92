// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strconv"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Limits of one stream. A proxy has a few SVIDs and as many bundles as there are trust domains.
const (
	// maxSecretNames bounds how many names one stream may be subscribed to.
	maxSecretNames = 1024
	// maxSecretName is the longest name that can exist, in bytes (SPIFFE-ID §2.3).
	maxSecretName = 2048
	// maxSecretNameBytes bounds the names of one stream together. Without it an incremental client could add to them until
	// they fill the agent's memory.
	maxSecretNameBytes = 32 << 10
)

// wildcardName subscribes to everything that there is, under its own name.
const wildcardName = "*"

// nowhere is the version of what does not exist. No digest looks like it.
const nowhere = "-"

var errTooManyNames = status.Errorf(codes.ResourceExhausted,
	"too many secrets asked for on one stream: at most %d names of %d bytes together", maxSecretNames, maxSecretNameBytes)

// checkType refuses what is not a request for secrets. The type may be left out: the service has one only.
func checkType(url string) error {
	if url == "" || url == secretType {
		return nil
	}
	return status.Errorf(codes.InvalidArgument, "type_url %.128q: this service has %s only", url, secretType)
}

// verdict is what a request says about an earlier response.
type verdict int

const (
	silent   verdict = iota // nothing
	accepted                // ACK
	rejected                // NACK
	stale                   // it is about a response that there was not, or that has been judged and followed by another
)

// answer is a verdict with its reason.
type answer struct {
	verdict verdict
	version string // of the rejected response, if that is the last one
	reason  string // the client's, made fit for a log
}

// subscription is what a stream wants to know, and what it has been told.
type subscription struct {
	proxy    proxySettings
	begun    bool // the first request has come
	due      bool // an answer is owed, also if nothing has changed
	wildcard bool
	names    map[string]struct{} // asked for by name; without "" and wildcardName
	bytes    int                 // of names
	told     map[string]string   // version by name, as last sent; nowhere for what the client knows not to exist
	missing  []string            // names that the last response was the first to leave out
	sent     uint64              // responses; the last one's nonce
	judged   uint64              // the last response that the client has accepted or rejected
	version  string              // of the last response
}

func newSubscription(p proxySettings) subscription {
	return subscription{proxy: p, names: make(map[string]struct{}), told: make(map[string]string)}
}

// state implements session.
func (s *subscription) state() *subscription { return s }

// answered reports whether the client has been told anything yet.
func (s *subscription) answered() bool { return s.sent > 0 }

// add subscribes to a name and reports whether it is new.
func (s *subscription) add(name string) (bool, error) {
	if _, ok := s.names[name]; ok {
		return false, nil
	}
	s.names[name] = struct{}{}
	s.bytes += len(name)
	return true, s.bounded(0)
}

// bounded refuses a stream that makes the agent remember too much: its names, their bytes, and more names beside them.
func (s *subscription) bounded(more int) error {
	if len(s.names)+more > maxSecretNames || s.bytes > maxSecretNameBytes {
		return errTooManyNames
	}
	return nil
}

func (s *subscription) remove(name string) {
	if _, ok := s.names[name]; ok {
		delete(s.names, name)
		s.bytes -= len(name)
	}
}

// forget drops what was told about names that are not subscribed to any more.
func (s *subscription) forget() {
	if s.wildcard {
		return
	}
	maps.DeleteFunc(s.told, func(name, _ string) bool { _, ok := s.names[name]; return !ok })
}

// offer is one subscribed name and what there is of it.
type offer struct {
	name   string
	secret *secret // nil if there is no such secret
}

func (o offer) version() string {
	if o.secret == nil {
		return nowhere
	}
	return o.secret.version
}

// offers resolves the subscription in the order of names.
func (s *subscription) offers(c *catalog) []offer {
	names := make([]string, 0, len(s.names)+len(c.names))
	for name := range s.names {
		names = append(names, name)
	}
	if s.wildcard {
		names = append(names, c.names...)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	r := make([]offer, len(names))
	for n, name := range names {
		r[n] = offer{name, c.find(name, s.proxy)}
	}
	return r
}

// next numbers a response. Nonces are the stream's own.
func (s *subscription) next(version string) (nonce string) {
	s.sent++
	s.version = version
	s.due = false
	return s.nonce()
}

// nonce is that of the last response.
func (s *subscription) nonce() string { return strconv.FormatUint(s.sent, 10) }

// judge takes the ACK or NACK of a response. Each response is judged once, also when it has been followed by another; what
// repeats the judgement of the last one says nothing new.
func (s *subscription) judge(nonce string, bad errorDetail) answer {
	n, err := strconv.ParseUint(nonce, 10, 64)
	switch {
	case err != nil || n == 0 || n > s.sent || n <= s.judged && n < s.sent:
		return answer{verdict: stale}
	case n == s.judged:
		return answer{}
	}
	s.judged = n
	if bad == nil {
		return answer{verdict: accepted}
	}
	a := answer{verdict: rejected, reason: presentable(bad.GetMessage())}
	if n == s.sent {
		a.version = s.version
	}
	return a
}

// errorDetail is a google.rpc.Status, or nil.
type errorDetail interface{ GetMessage() string }

// stateOfTheWorld is a session in which each response tells all of what the client has subscribed to.
type stateOfTheWorld struct {
	subscription
	named bool // The client has named something, so an empty list means nothing and not everything.
}

func newStateOfTheWorld(p proxySettings) *stateOfTheWorld {
	return &stateOfTheWorld{subscription: newSubscription(p)}
}

func (s *stateOfTheWorld) receive(r *discoveryv3.DiscoveryRequest) (answer, error) {
	if err := checkType(r.GetTypeUrl()); err != nil {
		return answer{}, err
	}
	var a answer
	switch {
	case !s.begun:
		s.proxy = s.proxy.chosenBy(r.GetNode()) // Only the first request is sure to have it.
	case s.sent > 0:
		a = s.judge(r.GetResponseNonce(), detail(r))
		if r.GetResponseNonce() != s.nonce() {
			// The client had not seen the last response when it sent this. It will answer that one too, and say again what
			// it is subscribed to.
			return a, nil
		}
	}
	added, err := s.subscribe(r.GetResourceNames())
	s.due = s.due || added || !s.begun
	s.begun = true
	return a, err
}

// detail keeps a nil pointer from becoming an interface that is not nil.
func detail(r interface {
	GetErrorDetail() *rpcstatus.Status
}) errorDetail {
	if d := r.GetErrorDetail(); d != nil {
		return d
	}
	return nil
}

// subscribe replaces the subscription and reports whether the client now wants to know more than before.
func (s *stateOfTheWorld) subscribe(names []string) (added bool, err error) {
	s.named = s.named || slices.ContainsFunc(names, func(name string) bool { return name != "" })
	wildcard := !s.named
	before := s.names
	s.names, s.bytes = make(map[string]struct{}), 0
	for _, name := range names {
		switch name {
		case "":
			continue
		case wildcardName:
			wildcard = true
			continue
		}
		if _, err := s.add(name); err != nil {
			return false, err
		}
		if _, had := before[name]; !had {
			added = true
		}
	}
	added = added || wildcard && !s.wildcard
	s.wildcard = wildcard
	s.forget()
	return added, nil
}

// respond tells everything when anything of it has changed, or an answer is due. A proxy may take what is left out for
// removed, so there are no shorter responses.
func (s *stateOfTheWorld) respond(c *catalog) *discoveryv3.DiscoveryResponse {
	s.missing = nil
	if !s.begun {
		return nil
	}
	offers := s.offers(c)
	if !s.due && !s.differ(offers) {
		return nil
	}
	response := &discoveryv3.DiscoveryResponse{TypeUrl: secretType}
	digest := sha256.New()
	told := make(map[string]string, len(offers))
	for _, o := range offers {
		told[o.name] = o.version()
		if o.secret == nil {
			if s.told[o.name] != nowhere {
				s.missing = append(s.missing, o.name)
			}
			continue
		}
		response.Resources = append(response.Resources, o.secret.resource(o.name))
		_, _ = fmt.Fprintf(digest, "%d:%s=%s\n", len(o.name), o.name, o.secret.version)
	}
	s.told = told
	response.VersionInfo = shortDigest(digest.Sum(nil))
	response.Nonce = s.next(response.VersionInfo)
	return response
}

// differ reports whether offers are not what has been told.
func (s *stateOfTheWorld) differ(offers []offer) bool {
	return len(offers) != len(s.told) || slices.ContainsFunc(offers, func(o offer) bool { return s.told[o.name] != o.version() })
}

// incremental is a session in which each response tells what is new to the client.
type incremental struct {
	subscription
	// released are unsubscribed by name while the wildcard may still include them: to be told about once. Until then they
	// count as names of the stream: while an identity is pending nothing is told, for as long as the client likes.
	released map[string]struct{}
}

func newIncremental(p proxySettings) *incremental {
	return &incremental{subscription: newSubscription(p), released: make(map[string]struct{})}
}

func (s *incremental) receive(r *discoveryv3.DeltaDiscoveryRequest) (answer, error) {
	if err := checkType(r.GetTypeUrl()); err != nil {
		return answer{}, err
	}
	var a answer
	if s.begun && r.GetResponseNonce() != "" { // Requests that only subscribe have none.
		a = s.judge(r.GetResponseNonce(), detail(r))
	}
	first := !s.begun
	if first {
		s.begun = true
		s.proxy = s.proxy.chosenBy(r.GetNode())
		s.wildcard = len(r.GetResourceNamesSubscribe()) == 0
		s.due = true
	}
	if err := s.subscribe(r.GetResourceNamesSubscribe()); err != nil {
		return a, err
	}
	if err := s.unsubscribe(r.GetResourceNamesUnsubscribe()); err != nil {
		return a, err
	}
	if first {
		return a, s.resume(r.GetInitialResourceVersions())
	}
	return a, nil
}

// subscribe adds names. A name that the client has already is told again: it may have dropped it and not said so.
func (s *incremental) subscribe(names []string) error {
	for _, name := range names {
		switch name {
		case "":
			continue
		case wildcardName:
			s.wildcard = true
			maps.DeleteFunc(s.told, func(told, _ string) bool { _, ok := s.names[told]; return !ok })
		default:
			if _, err := s.add(name); err != nil {
				return err
			}
			delete(s.told, name)
		}
		s.due = true
	}
	return s.bounded(len(s.released))
}

func (s *incremental) unsubscribe(names []string) error {
	for _, name := range names {
		if name == wildcardName {
			s.wildcard = false
			s.settle()
			continue
		}
		if _, ok := s.names[name]; ok && s.wildcard {
			s.release(name)
			delete(s.told, name)
			s.due = true
		}
		s.remove(name)
	}
	s.forget()
	return s.bounded(len(s.released))
}

func (s *incremental) release(name string) {
	if _, ok := s.released[name]; !ok {
		s.released[name] = struct{}{}
		s.bytes += len(name)
	}
}

// settle forgets what was released.
func (s *incremental) settle() {
	for name := range s.released {
		s.bytes -= len(name)
	}
	clear(s.released)
}

// resume takes in what the client has from an earlier stream.
func (s *incremental) resume(versions map[string]string) error {
	if s.wildcard && len(versions) > maxSecretNames {
		return errTooManyNames
	}
	for name, version := range versions {
		if _, ok := s.names[name]; ok || s.wildcard {
			s.told[name] = version
		}
	}
	return nil
}

func (s *incremental) respond(c *catalog) *discoveryv3.DeltaDiscoveryResponse {
	s.missing = nil
	if !s.begun {
		return nil
	}
	response := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: secretType}
	offers := s.offers(c)
	seen := make(map[string]struct{}, len(offers))
	for _, o := range offers {
		seen[o.name] = struct{}{}
		version := o.version()
		if s.told[o.name] == version {
			continue
		}
		s.told[o.name] = version
		if o.secret == nil {
			s.missing = append(s.missing, o.name)
			response.RemovedResources = append(response.RemovedResources, o.name)
			continue
		}
		response.Resources = append(response.Resources, &discoveryv3.Resource{Name: o.name, Version: version, Resource: o.secret.resource(o.name)})
	}
	response.RemovedResources = append(response.RemovedResources, s.vanished(seen)...)
	s.due = false
	if len(response.Resources)+len(response.RemovedResources) == 0 {
		return nil
	}
	response.Nonce = s.next(latest(response))
	return response
}

// vanished returns what the client has or was told to keep, and is not to have any more.
func (s *incremental) vanished(present map[string]struct{}) []string {
	var gone []string
	for name := range s.released {
		if _, ok := present[name]; !ok {
			gone = append(gone, name)
		}
	}
	s.settle()
	for name := range s.told {
		if _, ok := present[name]; !ok {
			gone = append(gone, name)
			delete(s.told, name)
		}
	}
	slices.Sort(gone)
	return slices.Compact(gone)
}

// latest is a version to name a response by in the log.
func latest(r *discoveryv3.DeltaDiscoveryResponse) string {
	for _, resource := range r.GetResources() {
		return cmp.Or(resource.GetVersion(), nowhere)
	}
	return nowhere
}
