// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/signet-spiffe/signet/internal/pki"
)

// Attributes are what the pod's author chose for one volume (volumeAttributes in the pod's spec). The zero
// value chooses nothing: the agent's own settings hold. It is comparable.
//
// Only the syntax has been checked: whether a duration is within the operator's bounds, or a name collides
// with one of the agent's own, is for Workloads.Publish to say.
type Attributes struct {
	// Delivery is how the identity is shown.
	Delivery Delivery
	// NoWait asks that Publish returns as soon as the volume is there, before there is an identity.
	NoWait bool
	// KeyType of the SVID; empty for the agent's.
	KeyType pki.KeyType
	// Duration is the lifetime to ask for, RenewBefore how long before its end an SVID is to be renewed;
	// zero for the agent's.
	Duration, RenewBefore time.Duration
	// DNSNames are to be in the certificate beside the SPIFFE ID. Whether they may
	// be is not known here: the approver decides.
	DNSNames pki.DNSNames
}

// Delivery says what is in a volume, and under which names. It is comparable.
type Delivery struct {
	// NoFiles leaves the socket alone in the volume, NoSocket the files. They are never both set.
	NoFiles, NoSocket bool
	// Certificate, Key, CA and Socket are the file names; empty for the agent's.
	Certificate, Key, CA, Socket string
}

// The names of the attributes, to be prefixed with the driver's name and a slash.
const (
	AttributeFSGroup         = "fs-group"
	AttributeDelivery        = "delivery"
	AttributeWait            = "wait"
	AttributeKeyType         = "key-type"
	AttributeDuration        = "duration"
	AttributeRenewBefore     = "renew-before"
	AttributeDNSNames        = "dns-names"
	AttributeNameCertificate = "file-name-certificate"
	AttributeNameKey         = "file-name-key"
	AttributeNameCA          = "file-name-ca"
	AttributeNameSocket      = "file-name-socket"
)

// predecessorPrefix is the attribute prefix of csi-driver-spiffe. It stays valid whatever this driver is
// called, because pod specs that were written for csi-driver-spiffe carry it.
const predecessorPrefix = "spiffe.csi.cert-manager.io"

// attribute is one that a pod may set.
type attribute struct {
	name string
	// want completes "must be ..." for a value that take refuses.
	want string
	// take parses the value into the volume and reports whether it could.
	take func(v *Volume, value string) bool
}

// knownAttributes are all there are. What is not among them is refused.
var knownAttributes = []attribute{
	{AttributeFSGroup, fmt.Sprintf("a group ID from 1 to %d", int64(maxGID)), takeFSGroup},
	{AttributeDelivery, `"both", "files" or "socket"`, takeDelivery},
	{AttributeWait, `"true" or "false"`, takeWait},
	{AttributeKeyType, "one of " + keyTypes(), takeKeyType},
	{AttributeDuration, wantDuration, takeDuration(func(v *Volume) *time.Duration { return &v.Attributes.Duration })},
	{AttributeRenewBefore, wantDuration, takeDuration(func(v *Volume) *time.Duration { return &v.Attributes.RenewBefore })},
	{AttributeDNSNames, wantDNSNames, takeDNSNames},
	{AttributeNameCertificate, wantName, takeName(func(v *Volume) *string { return &v.Attributes.Delivery.Certificate })},
	{AttributeNameKey, wantName, takeName(func(v *Volume) *string { return &v.Attributes.Delivery.Key })},
	{AttributeNameCA, wantName, takeName(func(v *Volume) *string { return &v.Attributes.Delivery.CA })},
	{AttributeNameSocket, wantName, takeName(func(v *Volume) *string { return &v.Attributes.Delivery.Socket })},
}

var wantDNSNames = fmt.Sprintf("1 to %d DNS names, separated by commas, in lower case, without wildcards and final dots, none twice", pki.MaxDNSNames)

const (
	wantDuration = `a positive duration such as "90s", "30m" or "1h30m"`
	wantName     = "a plain file name of 1 to 64 letters, digits, '.', '_' and '-', not beginning with '.' or '-'"
)

func takeFSGroup(v *Volume, value string) bool {
	gid, err := strconv.ParseInt(value, 10, 64)
	v.FSGroup = &gid
	return err == nil && gid >= 1 && gid <= maxGID
}

func takeDelivery(v *Volume, value string) bool {
	d := &v.Attributes.Delivery
	d.NoFiles, d.NoSocket = value == "socket", value == "files"
	return d.NoFiles || d.NoSocket || value == "both"
}

func takeWait(v *Volume, value string) bool {
	v.Attributes.NoWait = value == "false"
	return v.Attributes.NoWait || value == "true"
}

func keyTypes() string {
	var names []string
	for _, t := range pki.KeyTypes() {
		names = append(names, string(t))
	}
	return strings.Join(names, ", ")
}

func takeKeyType(v *Volume, value string) bool {
	var err error
	v.Attributes.KeyType, err = pki.ParseKeyType(value)
	return err == nil
}

func takeDuration(field func(*Volume) *time.Duration) func(*Volume, string) bool {
	return func(v *Volume, value string) bool {
		d, err := time.ParseDuration(value)
		*field(v) = d
		return err == nil && d > 0
	}
}

// volumeFileName is one path segment that is no dot file: names that begin with ".." are the volume's own.
var volumeFileName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$`)

// IsFileName reports whether a file or socket in a volume may have the name: 1 to 64 letters, digits, '.',
// '_' and '-', the first no dot and no hyphen.
func IsFileName(name string) bool { return volumeFileName.MatchString(name) }

func takeDNSNames(v *Volume, value string) bool {
	var err error
	v.Attributes.DNSNames, err = pki.ParseDNSNames(value)
	return err == nil
}

func takeName(field func(*Volume) *string) func(*Volume, string) bool {
	return func(v *Volume, value string) bool {
		*field(v) = value
		return IsFileName(value)
	}
}

// attributes reads every attribute into v, in a fixed order so that of several mistakes the same one is
// named each time, and refuses what it does not know.
func (c validator) attributes(v *Volume, given map[string]string) error {
	for _, a := range knownAttributes {
		key, value, err := c.find(given, a.name)
		if err != nil {
			return err
		}
		if key != "" && !a.take(v, value) {
			return invalidAttribute(key, "must be %s, not %s", a.want, blame(a.name, value))
		}
	}
	if err := c.checkKnown(given); err != nil {
		return err
	}
	return c.checkDelivery(v.Attributes.Delivery, given)
}

// maxQuoted bounds how much of a value is repeated: an Event holds 1024 bytes, and kubelet has words of its own.
const maxQuoted = 200

// quote repeats a value as far as there is room for it.
func quote(value string) string {
	quoted := strconv.QuoteToASCII(value)
	if len(quoted) > maxQuoted {
		quoted = quoted[:maxQuoted] + "…"
	}
	return quoted
}

// blame quotes a value that was refused. Which of many names it was for is said, too.
func blame(attribute, value string) string {
	if _, err := pki.ParseDNSNames(value); attribute == AttributeDNSNames && err != nil {
		return quote(value) + ": " + err.Error()
	}
	return quote(value)
}

func invalidAttribute(key, format string, args ...any) error {
	return invalid("pod.spec.volumes[].csi.volumeAttributes["+key+"]", format, args...)
}

// prefixes of attributes: this driver's name first.
func (c validator) prefixes() []string {
	return slices.Compact([]string{c.driverName + "/", predecessorPrefix + "/"})
}

// find looks the attribute up under every prefix; key is empty when it was not given. Given twice, both must
// say the same.
func (c validator) find(given map[string]string, name string) (key, value string, err error) {
	for _, prefix := range c.prefixes() {
		s, ok := given[prefix+name]
		switch {
		case !ok:
		case key == "":
			key, value = prefix+name, s
		case s != value:
			return "", "", invalidAttribute(prefix+name, "is %s but %s is %s", quote(s), key, quote(value))
		}
	}
	return key, value, nil
}

// checkKnown refuses what we do not know, so that a misspelt attribute is not silently without effect.
// Kubelet's prefix is reserved for Kubernetes and may grow.
func (c validator) checkKnown(given map[string]string) error {
	for _, key := range slices.Sorted(maps.Keys(given)) {
		if strings.HasPrefix(key, keyPrefix) || c.knows(key) {
			continue
		}
		var known []string
		for _, a := range knownAttributes {
			known = append(known, a.name)
		}
		// The text ends up in an Event, which holds 1024 bytes: the prefix is not repeated.
		return invalidAttribute(key, "is not known; known attributes, all under %s: %s", c.prefixes()[0], strings.Join(known, ", "))
	}
	return nil
}

func (c validator) knows(key string) bool {
	return slices.ContainsFunc(c.prefixes(), func(prefix string) bool {
		name, ok := strings.CutPrefix(key, prefix)
		return ok && slices.ContainsFunc(knownAttributes, func(a attribute) bool { return a.name == name })
	})
}

// checkDelivery refuses names for what the volume will not hold: they would be without effect.
func (c validator) checkDelivery(d Delivery, given map[string]string) error {
	var unread []string
	only := ""
	switch {
	case d.NoFiles:
		only, unread = "socket", []string{AttributeNameCertificate, AttributeNameKey, AttributeNameCA}
	case d.NoSocket:
		only, unread = "files", []string{AttributeNameSocket}
	}
	for _, name := range unread {
		if key, _, _ := c.find(given, name); key != "" {
			return invalidAttribute(key, "has no effect with %s %q: leave one of them out", AttributeDelivery, only)
		}
	}
	return nil
}
