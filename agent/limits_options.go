// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/spf13/pflag"

	"github.com/signet-spiffe/signet/internal/observe"
	"github.com/signet-spiffe/signet/workloadapi"
)

// addLimitFlags adds what an operator may need of workloadapi.Limits: more for one
// pod, or less for all of a node. The other limits have no flag.
func addLimitFlags(flags *pflag.FlagSet, l *workloadapi.Limits) {
	d := workloadapi.DefaultLimits()
	flags.IntVar(&l.Connections, "workload-api-max-connections", d.Connections, "How many connections the Workload API socket of one volume may have at a time; more are closed at once")
	flags.IntVar(&l.RPCs, "workload-api-max-streams", d.RPCs, "How many streams may be open on the Workload API socket of one volume at a time; more end with Unavailable")
	flags.Float64Var(&l.Rate, "workload-api-rate", d.Rate, "How much work, in RPCs per second, the Workload API socket of one volume may cause; five seconds' worth may come at once, then it is served more slowly")
	flags.IntVar(&l.AllConnections, "workload-api-max-connections-node", d.AllConnections, "How many connections all Workload API sockets of the node may have together; at most half of the files the agent may open. Each socket has a few to itself")
	flags.IntVar(&l.AllRPCs, "workload-api-max-streams-node", d.AllRPCs, "How many streams may be open on all Workload API sockets of the node together. Each socket has a few to itself")
}

// maxWorkloadAPILimit is more than a node could serve.
const maxWorkloadAPILimit = 1_000_000

// checkWorkloadAPI validates what addLimitFlags added.
func (o *options) checkWorkloadAPI() error {
	l := o.workloadAPI
	for _, f := range []struct {
		flag  string
		value float64
	}{
		{"--workload-api-max-connections", float64(l.Connections)}, {"--workload-api-max-streams", float64(l.RPCs)},
		{"--workload-api-rate", l.Rate},
		{"--workload-api-max-connections-node", float64(l.AllConnections)}, {"--workload-api-max-streams-node", float64(l.AllRPCs)},
	} {
		if !(f.value >= 1 && f.value <= maxWorkloadAPILimit) { // which NaN is not
			return observe.Usagef("%s %v: must be from 1 to %d", f.flag, f.value, maxWorkloadAPILimit)
		}
	}
	return nil
}
