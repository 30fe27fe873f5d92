// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"time"

	"github.com/signet-spiffe/signet/agent/workload"
	"github.com/signet-spiffe/signet/csi"
)

// durationRange is what volumes may choose as their SVID's lifetime.
type durationRange struct{ min, max time.Duration }

func (r durationRange) holds(d time.Duration) bool { return r.min <= d && d <= r.max }

// String is for messages: "exactly 1h0m0s" or "from 30m0s to 1h0m0s".
func (r durationRange) String() string {
	if r.min == r.max {
		return "exactly " + r.min.String()
	}
	return fmt.Sprintf("from %s to %s", r.min, r.max)
}

// attributeLimits judge what a pod's author chose for a volume by what the operator set.
// They hold for new volumes. One that is published keeps its identity when the
// operator sets them anew: a pod that runs cannot choose again.
type attributeLimits struct {
	driver    string
	names     fileNames
	duration  time.Duration
	durations durationRange
}

// check reports the first attribute that cannot be had. Errors wrap
// csi.ErrInvalid, name the attribute and say what is allowed.
func (l attributeLimits) check(a workload.Attributes) error {
	if a.Duration != 0 && !l.durations.holds(a.Duration) {
		return l.invalid(csi.AttributeDuration, "is %s, allowed is %s (the agent's --certificate-request-duration-min and -max)", a.Duration, l.durations)
	}
	if err := l.checkRenewBefore(a); err != nil {
		return err
	}
	attribute, name, taken := l.names.with(a.Delivery).collision(a.Delivery)
	if taken {
		return l.invalid(attribute, "is %q, as is the name of another file in the volume (names that are not given: %s, %s, %s, %s)",
			name, l.names.certificate, l.names.key, l.names.ca, l.names.socket)
	}
	return nil
}

// minRenewBefore leaves a renewal the same ten seconds as minDuration does.
const minRenewBefore = 10 * time.Second

// checkRenewBefore keeps renewals apart: after one, at least a tenth of the
// lifetime passes before the next.
func (l attributeLimits) checkRenewBefore(a workload.Attributes) error {
	duration := cmp.Or(a.Duration, l.duration)
	if longest := duration / 10 * 9; a.RenewBefore != 0 && (a.RenewBefore < minRenewBefore || a.RenewBefore > longest) {
		return l.invalid(csi.AttributeRenewBefore, "is %s, allowed is from %s to %s, nine tenths of the duration of %s", a.RenewBefore, minRenewBefore, longest, duration)
	}
	return nil
}

func (l attributeLimits) invalid(attribute, format string, args ...any) error {
	return fmt.Errorf("%w: pod.spec.volumes[].csi.volumeAttributes[%s/%s] %s", csi.ErrInvalid, l.driver, attribute, fmt.Sprintf(format, args...))
}

// attributesOf translates what csi read for the lifecycle.
func attributesOf(a csi.Attributes) workload.Attributes {
	return workload.Attributes{
		NoWait: a.NoWait, KeyType: a.KeyType, Duration: a.Duration, RenewBefore: a.RenewBefore, DNSNames: a.DNSNames,
		Delivery: workload.Delivery(a.Delivery),
	}
}

// with are the names with a volume's own in place of those it chose.
func (n fileNames) with(d workload.Delivery) fileNames {
	return fileNames{
		certificate: cmp.Or(d.Certificate, n.certificate), key: cmp.Or(d.Key, n.key), ca: cmp.Or(d.CA, n.ca), socket: cmp.Or(d.Socket, n.socket),
	}
}

// collision finds two equal names among what the volume shows. attribute is the
// one to blame: one that the volume chose, if it chose any of the two.
func (n fileNames) collision(d workload.Delivery) (attribute, name string, found bool) {
	shown := []struct {
		attribute, name, chosen string
		absent                  bool
	}{
		{csi.AttributeNameCertificate, n.certificate, d.Certificate, d.NoFiles},
		{csi.AttributeNameKey, n.key, d.Key, d.NoFiles},
		{csi.AttributeNameCA, n.ca, d.CA, d.NoFiles},
		{csi.AttributeNameSocket, n.socket, d.Socket, d.NoSocket},
	}
	for i, a := range shown {
		for _, b := range shown[:i] {
			if a.absent || b.absent || a.name != b.name {
				continue
			}
			if a.chosen == "" {
				a = b
			}
			return a.attribute, a.name, true
		}
	}
	return "", "", false
}
