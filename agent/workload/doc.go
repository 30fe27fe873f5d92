// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Package workload is the heart of the agent: one entry per volume, from the
// moment kubelet asks for it to the moment nothing of it is left.
//
// It has two halves.
//
// Machine is the lifecycle of one volume as a pure state machine. Events go in
// (published, issued, failed, tick, bundle changed, unpublished, ...), actions
// come out (prepare, request, keep, store, push, schedule, answer, remove, notify). It does no
// I/O, holds no secret, reads no clock and draws no random numbers: time and
// jitter arrive with the events. Its behaviour is written down as transcripts in
// testdata, which are its tests.
//
// Registry runs the machines. Each entry has a mailbox and one writer: events of
// a volume are handled one after the other, actions of different volumes at the
// same time, and an idle volume costs no goroutine. Timers of all volumes share
// one heap. Keys are made, CSRs signed and chains verified off every lock.
//
// An SVID is replaced before its time when it is not what would be issued now:
// the issuer, key type or duration has become another one, or its CA has left
// the trust bundle (reissue.go).
//
// An attempt survives the agent: it is kept beside the SVID before it is sent, and
// the next agent's first request for the volume resumes it (attempt.go).
//
// Somebody who looks at volumes (List, Watch) holds none up: each leaves how it stands
// where it is found without asking. A renewal by hand (renew.go) is an event like others.
//
// What it owns: which SVID a volume has, when it is renewed, who waits for it, and
// when there is something to tell the pod's owner.
//
// What it never does: mount, write, talk to Kubernetes or serve gRPC. Those are
// ports (Volumes, Attempts, issue.Issuer, Trust, Notifier) that the agent joins to csi, workloadapi
// and cert-manager.
//
// Threats it answers. A volume never holds a certificate without its key: both
// change in one Store, from memory. An issuer's answer is used only after
// pki.VerifySVID accepted it, so a wrong certificate leaves the old SVID in
// place; the answer to an attempt of the agent before is held to the key that was kept
// with it, whatever object has its name now. An answer that comes late, for an attempt that was given up or a volume
// that is gone, is dropped: attempts are numbered.
package workload
