// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"fmt"
	"log/slog"
	"time"
)

// Volume is one NodePublishVolume request that passed validation.
type Volume struct {
	// ID is the volume ID that kubelet chose. It is one path segment:
	// ^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$.
	ID string
	// TargetPath is where kubelet wants the volume: absolute and clean.
	TargetPath string
	// Pod is the pod the volume belongs to, as kubelet reported it.
	Pod Pod
	// FSGroup is the group that owns the files: the fs-group volume attribute, else the pod's fsGroup,
	// else nil for root.
	FSGroup *int64
	// Attributes are the volume's other attributes.
	Attributes Attributes
	// Token is the pod's service-account token for the API server's own audience. It is the zero Token
	// when kubelet sent none (the CSIDriver object has no tokenRequests).
	Token Token
}

// LogValue names the volume and its pod and nothing else.
func (v Volume) LogValue() slog.Value {
	return slog.GroupValue(
		slog.String("volume", v.ID),
		slog.String("namespace", v.Pod.Namespace),
		slog.String("pod", v.Pod.Name),
		slog.String("uid", v.Pod.UID),
	)
}

// Pod is what kubelet says about the pod (CSIDriver podInfoOnMount).
type Pod struct {
	Namespace      string
	Name           string
	UID            string
	ServiceAccount string
}

// Token is a service-account token. It does not print, whatever the verb.
type Token struct {
	value   string
	expires time.Time
}

// NewToken holds value, which expires at the given time (zero when unknown).
func NewToken(value string, expires time.Time) Token { return Token{value: value, expires: expires} }

// Value is the bearer token itself. Whoever calls it must not log or store the result.
func (t Token) Value() string { return t.value }

// Expires is when the token ends; zero when kubelet did not say.
func (t Token) Expires() time.Time { return t.expires }

// IsZero reports whether there is no token.
func (t Token) IsZero() bool { return t.value == "" }

const redacted = "[redacted]"

// String hides the token.
func (t Token) String() string { return redacted }

// GoString hides the token from %#v.
func (t Token) GoString() string { return redacted }

// Format hides the token from every verb, also the reflecting ones.
func (t Token) Format(s fmt.State, _ rune) { _, _ = s.Write([]byte(redacted)) }

// LogValue hides the token from slog.
func (t Token) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText hides the token from encoding/json and its like.
func (t Token) MarshalText() ([]byte, error) { return []byte(redacted), nil }
