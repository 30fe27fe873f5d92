// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"time"

	"github.com/signet-spiffe/signet/integration/install"
)

const driver = install.DriverName

// Results are what a run has measured.
type Results struct {
	Began     time.Time
	Took      time.Duration
	Machine   Machine
	Versions  Versions
	Sizes     Sizes
	Approvers int

	Single    Pair[Latencies]
	Bursts    []Burst
	Sustained Pair[Rounds]
	// CPU is what one issuance cost under sustained load, by program.
	CPU      Pair[census]
	Requests Requests
	Idle     []Idle
	Restarts []Restart
	Renewals []Renewal
	// WorkloadAPI is of the sockets.
	WorkloadAPI WorkloadAPI

	before counts // of Requests
}

// Burst is so many at once, some rounds of it.
type Burst struct {
	Size, Times int
	Rounds      Pair[Rounds]
}

// Requests are what one issuance costs.
type Requests struct {
	// Issuances is over how many the counts were taken.
	Issuances int
	// Agent are its requests to the API server, by verb and resource.
	Agent []Count
	// ApproverWrites are status patches, ApproverPodReads single pods read.
	ApproverWrites, ApproverPodReads float64
	// AgentCPU and ApproverCPU are CPU time. The approver's is of both replicas,
	// and includes what they use while nothing is asked of them.
	AgentCPU, ApproverCPU time.Duration
}

// Idle is what the agent costs while nothing is asked of it but kubelet's probes.
type Idle struct {
	Volumes int
	// CPU is in percent of one core.
	CPU float64
	Memory
	// VolumeBytes is what is in the volumes, in tmpfs pages, which are not the
	// process's.
	VolumeBytes int64
	// Busy is how busy the whole machine was meanwhile, in percent of all cores.
	Busy float64
}

// Restart is one kill -9 and start.
type Restart struct {
	Volumes int
	// All is from the start of the process to the answer of the last socket, Median
	// to that of the one in the middle.
	All, Median time.Duration
	// Changed sockets served another SVID than before. Issuances were asked for.
	Changed, Issuances int
}

// Renewal is the renewal of all volumes at once.
type Renewal struct {
	Volumes int
	KeyType string
	// Wall is from the start of the process to the last new SVID.
	Wall time.Duration
	// Failed attempts, Expired SVIDs, volumes that were left Unchanged.
	Failed, Expired, Unchanged int
}

// PerSecond is the rate.
func (r Renewal) PerSecond() float64 { return float64(r.Volumes) / r.Wall.Seconds() }
