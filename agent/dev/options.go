// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package dev

import (
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/signet-spiffe/signet/internal/observe"
	"github.com/signet-spiffe/signet/internal/pki"
)

// defaultID is whose identity there is without --id.
const defaultID = "spiffe://dev.local/ns/default/sa/default"

// minLifetime leaves a renewal some seconds to happen.
const minLifetime = 10 * time.Second

// maxRoots bounds the CAs under which an SVID can be alive.
const maxRoots = 20

// maxIdentities is more than a developer's machine runs programs.
const maxIdentities = 100

// options are the flags: first as given, then (after complete) as understood.
type options struct {
	log observe.LogOptions

	ids        []string
	dir        string
	files      bool
	lifetime   time.Duration
	rotateCA   time.Duration
	federate   []string
	keyTypeArg string
	keyType    pki.KeyType

	flags      *pflag.FlagSet
	identities []identity
	federated  []federated
	// program and its arguments, if one is to be run.
	program []string
}

// identity is one workload: the name of its directory, and who it is.
type identity struct {
	name string
	id   spiffeid.ID
}

func (o *options) addFlags(flags *pflag.FlagSet) {
	o.flags = flags
	flags.StringArrayVar(&o.ids, "id", nil, "An identity, spiffe://TRUST-DOMAIN/PATH or NAME=spiffe://…; again for more. Each has a socket of its own, in a directory called NAME (default: the last part of the path). Without it, "+defaultID)
	flags.StringVar(&o.dir, "dir", "", "Where the sockets are: a directory that is yours alone (mode 0700); made if it is missing (default: signet in $XDG_RUNTIME_DIR, or signet-dev-UID in the directory for temporary files)")
	flags.BoolVar(&o.files, "files", false, "Also write tls.crt, tls.key and ca.crt beside each socket, as in a pod's volume")
	flags.DurationVar(&o.lifetime, "lifetime", time.Hour, "Lifetime of each SVID; they are renewed after two thirds of it. Short ones (10s or more) show whether a program copes with rotation")
	flags.DurationVar(&o.rotateCA, "rotate-ca", 0, "Replace each trust domain's CA by a new one so often; 0: never")
	flags.StringArrayVar(&o.federate, "federate", nil, "Trust another domain, TRUST-DOMAIN=FILE with its authorities as PEM or as a SPIFFE bundle (JSON); again for more. Trust domains of --id are federated without it")
	flags.StringVar(&o.keyTypeArg, "key-type", string(pki.P256), "Key type of every SVID: P-256, P-384, Ed25519, RSA-2048, RSA-3072 or RSA-4096")
	o.log.AddFlags(flags)
}

// complete validates every flag. Errors are *observe.UsageError.
func (o *options) complete() error {
	if o.program != nil && !o.flags.Changed("log-level") {
		o.log.Level = "warn" // The terminal is the program's.
	}
	var err error
	if o.keyType, err = pki.ParseKeyType(o.keyTypeArg); err != nil {
		return observe.Usagef("--key-type: %v", err)
	}
	if o.lifetime < minLifetime || o.lifetime > 365*24*time.Hour {
		return observe.Usagef("--lifetime %s: must be from %s to 8760h", o.lifetime, minLifetime)
	}
	if o.rotateCA != 0 && o.rotateCA < time.Second {
		return observe.Usagef("--rotate-ca %s: must be 0 or at least 1s", o.rotateCA)
	}
	if o.rotateCA != 0 && o.rotateCA < o.lifetime/maxRoots {
		return observe.Usagef("--rotate-ca %s: more than %d CAs would be alive within --lifetime %s; make one of the two longer or the other shorter", o.rotateCA, maxRoots, o.lifetime)
	}
	if err := o.parseIdentities(); err != nil {
		return err
	}
	for _, arg := range o.federate {
		f, err := parseFederate(arg, o.trustDomains())
		if err != nil {
			return err
		}
		if slices.ContainsFunc(o.federated, func(other federated) bool { return other.domain == f.domain }) {
			return observe.Usagef("--federate %q: trust domain %s is given twice; put all its authorities into one file", arg, f.domain.Name())
		}
		o.federated = append(o.federated, f)
	}
	return nil
}

func (o *options) parseIdentities() error {
	args := o.ids
	if len(args) == 0 {
		args = []string{defaultID}
	}
	if len(args) > maxIdentities {
		return observe.Usagef("--id is given %d times; %d are enough for one machine", len(args), maxIdentities)
	}
	for _, arg := range args {
		i, err := parseIdentity(arg)
		if err != nil {
			return err
		}
		for _, other := range o.identities {
			// File systems of laptops may not tell the case of letters.
			if strings.EqualFold(i.name, other.name) {
				return observe.Usagef("--id %q: %s is called %q already; name one of them otherwise, as in --id other=%s. "+
					"(A socket has one identity, as it has in the cluster.)", arg, other.id, other.name, i.id)
			}
		}
		o.identities = append(o.identities, i)
	}
	return nil
}

// namePattern keeps names fit for a directory and clear of our own files' names.
var namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

func parseIdentity(arg string) (identity, error) {
	name, uri, named := strings.Cut(arg, "=")
	if !named {
		name, uri = "", arg
	}
	id, err := spiffeid.FromString(uri)
	if err != nil {
		return identity{}, observe.Usagef("--id %q: %v; it should look like %s", arg, err, defaultID)
	}
	if id.Path() == "" {
		return identity{}, observe.Usagef("--id %q: names a trust domain alone; a workload has a path, as in %s/ns/default/sa/default", arg, id)
	}
	if !named {
		name = path.Base(id.Path())
	}
	if !namePattern.MatchString(name) {
		return identity{}, observe.Usagef("--id %q: %q is no name for a directory: 1 to 63 letters, digits, '.', '_' and '-', beginning with a letter or digit; give one, as in --id web=%s", arg, name, id)
	}
	return identity{name: name, id: id}, nil
}

// trustDomains are those of the identities, each once, the first identity's first.
func (o *options) trustDomains() []spiffeid.TrustDomain {
	var all []spiffeid.TrustDomain
	for _, i := range o.identities {
		if td := i.id.TrustDomain(); !slices.Contains(all, td) {
			all = append(all, td)
		}
	}
	return all
}

// caLifetime outlives a laptop's sleep.
func (o *options) caLifetime() time.Duration {
	return max(30*24*time.Hour, 2*o.lifetime, 2*o.rotateCA)
}
