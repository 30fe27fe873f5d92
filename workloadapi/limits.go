// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"cmp"
	"sync"
	"time"
)

// Limits bound what the holders of one socket can have of the server, so that they exhaust neither the process nor the
// service of any other socket. A field that is zero has its default.
//
// Nothing at a limit lasts: an RPC over the limit ends with Unavailable, which is what Workload Endpoint §6 names for
// load-shedding and what clients of every language come back from, a connection over the limit is closed before it is
// served, and a socket over its rate is slowed down, not refused.
type Limits struct {
	// Connections is how many connections one socket may have at a time.
	Connections int
	// RPCs is how many RPCs, which are nearly all streams, may be open on one socket at a time.
	RPCs int
	// RPCsPerConnection bounds the open RPCs of one connection. HTTP/2 clients learn it at the start and wait by themselves.
	RPCsPerConnection int
	// Rate is how much work one socket may cause, in RPCs per second: an RPC counts as 1, so do each message and every 256
	// bytes that are received, a connection counts as 2. Five seconds' worth may come at once. Over it, its connections are read from and accepted
	// more slowly; what is sent to the workload is not slowed.
	Rate float64
	// AllConnections and AllRPCs bound what all sockets have together. Each socket has a few of them to itself (4
	// connections, 16 RPCs), whatever the others do. AllConnections is at most half of the descriptors that the process may open.
	AllConnections, AllRPCs int
	// Idle is how long a connection may be without an RPC before the client is told to leave (GOAWAY); it connects again
	// when it needs to.
	Idle time.Duration
	// Unread is how long the client may leave unread what is sent to it, once the socket's buffer is full, before its
	// connection is closed.
	Unread time.Duration
}

// DefaultLimits are those of fields that are zero. A workload has a few processes with a connection and one to four
// streams each; the defaults leave room for servers that fork a hundred workers.
func DefaultLimits() Limits {
	return Limits{
		Connections: 100, RPCs: 1000, RPCsPerConnection: 100, Rate: 4000,
		AllConnections: 8192, AllRPCs: 16384, Idle: 10 * time.Minute, Unread: 30 * time.Second,
	}
}

func (l Limits) withDefaults() Limits {
	d := DefaultLimits()
	return Limits{
		Connections: cmp.Or(l.Connections, d.Connections), RPCs: cmp.Or(l.RPCs, d.RPCs),
		RPCsPerConnection: cmp.Or(l.RPCsPerConnection, d.RPCsPerConnection), Rate: cmp.Or(l.Rate, d.Rate),
		AllConnections: cmp.Or(l.AllConnections, d.AllConnections), AllRPCs: cmp.Or(l.AllRPCs, d.AllRPCs),
		Idle: cmp.Or(l.Idle, d.Idle), Unread: cmp.Or(l.Unread, d.Unread),
	}
}

// What each socket has to itself of AllConnections and AllRPCs.
const (
	reservedConnections = 4
	reservedRPCs        = 16
)

// What things cost of a socket's rate, in RPCs.
const (
	costRPC        = 1.0
	costByte       = 1.0 / 256
	costConnection = 2.0
	// costMessage is of a message on a stream; each is answered.
	costMessage = 1.0
	// costReflected is of a byte that server reflection answers with: descriptors are large, and marshalled each time.
	costReflected = 1.0 / 128
)

const (
	// burstSeconds of a socket's rate may come at once.
	burstSeconds = 5
	// longestHold bounds one wait of what is slowed down; it looks again then.
	longestHold = time.Second
	// carefulRead is how much is read at a time from a socket that has used up most of its burst: the RPCs that a read
	// brings are known only after it.
	carefulRead = 256
	// reflectionLife is how long a connection lives on after it has used server reflection. Descriptors that a client asks
	// for and then does not take stay in memory as long as its connection.
	reflectionLife = time.Minute
	// maxReflectionRequest bounds a request to server reflection: the answer repeats it.
	maxReflectionRequest = 1 << 10
	// maxReflections is how many reflection streams a socket may have open.
	maxReflections = 8
)

// limit names what was reached, in metrics and logs.
type limit string

const (
	limitConnections    limit = "connections"
	limitAllConnections limit = "all_connections"
	limitRPCs           limit = "rpcs"
	limitAllRPCs        limit = "all_rpcs"
	limitUnfinished     limit = "unfinished_rpcs"
	limitRate           limit = "rate"
	limitUnread         limit = "unread"
	limitReflection     limit = "reflection"
)

var everyLimit = []limit{limitConnections, limitAllConnections, limitRPCs, limitAllRPCs, limitUnfinished, limitRate, limitUnread, limitReflection}

// pool shares a number of things among members, of which each has some to itself.
type pool struct {
	limit, reserved int

	mu      sync.Mutex // guards what follows; nothing waits while holding it
	members int
	shared  int // taken beyond what is reserved
}

func (p *pool) join() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.members++
}

func (p *pool) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.members--
}

// take takes one for a member that has had already taken before. It reports false when there is none left.
func (p *pool) take(already int) bool {
	if already < p.reserved {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shared >= p.limit-p.reserved*p.members {
		return false
	}
	p.shared++
	return true
}

// give gives one back of a member that has had taken, this one among them.
func (p *pool) give(had int) {
	if had <= p.reserved {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shared--
}

// budget is a bucket of work that fills at a rate. It may be overdrawn: what something costs is often known afterwards.
type budget struct {
	rate, burst float64

	mu      sync.Mutex // guards what follows; nothing waits while holding it
	balance float64
	at      time.Time // of balance
}

func newBudget(rate float64) *budget {
	return &budget{rate: rate, burst: rate * burstSeconds, balance: rate * burstSeconds, at: time.Now()}
}

// spend takes cost and returns how long to wait until the balance is not negative any more, and whether the greater part of
// the burst is used up.
func (b *budget) spend(cost float64) (wait time.Duration, scarce bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	b.balance = min(b.burst, b.balance+now.Sub(b.at).Seconds()*b.rate) - cost
	b.at = now
	if b.balance < 0 {
		wait = max(time.Duration(-b.balance/b.rate*float64(time.Second)), time.Millisecond)
	}
	return min(wait, longestHold), b.balance < b.burst/2
}
