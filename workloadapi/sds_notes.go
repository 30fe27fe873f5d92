// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"fmt"
	"regexp"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// Limits of what proxies can have logged.
const (
	// maxRejectionsLogged is for each identity: a proxy says the same again after every reconnect.
	maxRejectionsLogged = 3
	// maxHints is how many names each workload has logged.
	maxHints = 16
	// maxLogged bounds a proxy's words, in bytes.
	maxLogged = 256
)

// sdsMetrics of one server.
type sdsMetrics struct {
	accepted, rejected, stale prometheus.Counter
	unknown                   prometheus.Counter
}

func newSDSMetrics(r prometheus.Registerer) *sdsMetrics {
	const namespace, subsystem = "signet", "workloadapi"
	answers := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Subsystem: subsystem,
		Name: "sds_answers_total", Help: "Answers of proxies to the secrets sent to them, by result."}, []string{"result"})
	unknown := prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Subsystem: subsystem,
		Name: "sds_unknown_names_total", Help: "Secrets that proxies asked for and that do not exist."})
	if r != nil {
		r.MustRegister(answers, unknown)
	}
	return &sdsMetrics{
		accepted: answers.WithLabelValues("accepted"), rejected: answers.WithLabelValues("rejected"), stale: answers.WithLabelValues("stale"),
		unknown: unknown,
	}
}

func (m *sdsMetrics) answered(v verdict) {
	switch v {
	case accepted:
		m.accepted.Inc()
	case rejected:
		m.rejected.Inc()
	case stale:
		m.stale.Inc()
	}
}

// sdsNotes remembers of one workload which unknown names have been logged.
type sdsNotes struct {
	mu     sync.Mutex
	logged map[string]struct{} // as shown; at most maxHints
}

// fresh returns those of the names, made fit for a log, that have not been logged yet.
func (n *sdsNotes) fresh(names []string) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var fresh []string
	for _, name := range names {
		if len(n.logged) >= maxHints {
			break
		}
		shown := presentable(name)
		if _, known := n.logged[shown]; known {
			continue
		}
		if n.logged == nil {
			n.logged = make(map[string]struct{})
		}
		n.logged[shown] = struct{}{}
		fresh = append(fresh, shown)
	}
	return fresh
}

var (
	// secretsFollow is where a proxy that quotes what it rejected begins to quote the secret: Envoy prints the whole
	// message, key and all, when it violates a rule of its definition.
	secretsFollow = regexp.MustCompile(`(?i)inline_(bytes|string)|private_key|-----BEGIN`)
	// keyMaterial is what no word of a language or name in Kubernetes looks like: 24 and more characters of base64, with a
	// capital letter.
	keyMaterial = regexp.MustCompile(`[A-Za-z0-9+/=_\\-]{24,}`)
)

// presentable makes a proxy's words fit for a log: bounded, valid, and without anything that could be a key. Loggers quote
// control characters.
func presentable(s string) string {
	const enough = 16 * maxLogged // No more is looked at.
	s = strings.ToValidUTF8(s[:min(len(s), enough)], "?")
	if at := secretsFollow.FindStringIndex(s); at != nil {
		s = s[:at[0]] + "[the rest may hold secrets]"
	}
	s = keyMaterial.ReplaceAllStringFunc(s, func(run string) string {
		if strings.ToLower(run) == run {
			return run
		}
		return fmt.Sprintf("[%d characters]", len(run))
	})
	return strings.ToValidUTF8(s[:min(len(s), maxLogged)], "")
}
