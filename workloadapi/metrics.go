// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

// metrics of one server. Label values come from the registered services and from gRPC's codes, never from a request.
type metrics struct {
	listeners   prometheus.Gauge
	connections prometheus.Gauge
	accepted    prometheus.Counter
	unserved    prometheus.Counter
	leftOut     prometheus.Counter
	open        map[string]prometheus.Gauge   // by full method name; read-only after newMetrics
	messages    map[string]prometheus.Counter // likewise
	finished    *prometheus.CounterVec
	limited     map[limit]prometheus.Counter // by every limit; read-only after newMetrics
}

func newMetrics(r prometheus.Registerer, services map[string]grpc.ServiceInfo) *metrics {
	const namespace, subsystem = "signet", "workloadapi"
	m := &metrics{
		listeners: prometheus.NewGauge(prometheus.GaugeOpts{Namespace: namespace, Subsystem: subsystem,
			Name: "listeners", Help: "Workload sockets that are served."}),
		connections: prometheus.NewGauge(prometheus.GaugeOpts{Namespace: namespace, Subsystem: subsystem,
			Name: "connections", Help: "Open connections to workload sockets."}),
		accepted: prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Subsystem: subsystem,
			Name: "connections_accepted_total", Help: "Connections accepted on workload sockets."}),
		unserved: prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Subsystem: subsystem,
			Name: "unserved_identities_total", Help: "Messages that could not be made of an identity; the last good one stays in use."}),
		leftOut: prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Subsystem: subsystem,
			Name: "bundles_left_out_total", Help: "Trust bundles of federated trust domains that were left out of a message because it would have been larger than clients accept."}),
		finished: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Subsystem: subsystem,
			Name: "rpcs_finished_total", Help: "RPCs that have ended, by method and gRPC code."}, []string{"method", "code"}),
		open:     make(map[string]prometheus.Gauge),
		messages: make(map[string]prometheus.Counter),
	}
	open := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: namespace, Subsystem: subsystem,
		Name: "streams", Help: "Open RPCs by method; nearly all are streams."}, []string{"method"})
	messages := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Subsystem: subsystem,
		Name: "messages_sent_total", Help: "Messages sent on streams, by method."}, []string{"method"})
	limited := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Subsystem: subsystem,
		Name: "limited_total", Help: "How often a workload socket was at a limit, by limit."}, []string{"limit"})
	m.limited = make(map[limit]prometheus.Counter, len(everyLimit))
	for _, l := range everyLimit {
		m.limited[l] = limited.WithLabelValues(string(l))
	}
	for service, info := range services {
		for _, method := range info.Methods {
			full := "/" + service + "/" + method.Name
			m.open[full] = open.WithLabelValues(full)
			if method.IsServerStream {
				m.messages[full] = messages.WithLabelValues(full)
			}
		}
	}
	if r != nil {
		r.MustRegister(m.listeners, m.connections, m.accepted, m.unserved, m.leftOut, m.finished, open, messages, limited)
	}
	return m
}

// begin counts an RPC as open. The function it returns counts it as finished.
func (m *metrics) begin(method string) func(err error) {
	g := m.open[method] // complete: gRPC calls interceptors for registered methods only
	g.Inc()
	return func(err error) {
		g.Dec()
		m.finished.WithLabelValues(method, status.Code(err).String()).Inc()
	}
}
