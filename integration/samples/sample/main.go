// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := newRootCommand(os.Stdout).ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "sample:", err)
		os.Exit(1)
	}
}

// newRootCommand makes the whole command line. Results go to out.
func newRootCommand(out io.Writer) *cobra.Command {
	root := &cobra.Command{
		Use:           "sample",
		Short:         "A workload that uses its SPIFFE identity, and tools to look at it from inside a container",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetOut(out)
	p := &printer{out: out, now: time.Now}
	root.AddCommand(
		newServeCommand(p),
		newCallCommand(p),
		newFetchCommand(p),
		newHoldCommand(p),
		newDialRawCommand(p),
		newReadCommand(p),
		newListCommand(p),
		newCatCommand(out),
		newWaitCommand(),
	)
	return root
}

// newWaitCommand is for pods that only mount.
func newWaitCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "wait",
		Aliases: []string{"idle"},
		Short:   "Do nothing until told to stop (SIGTERM)",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			<-cmd.Context().Done()
			return nil
		},
	}
}

// printer writes events as JSON, one object per line. It is safe for concurrent
// use.
type printer struct {
	now func() time.Time

	mu  sync.Mutex
	out io.Writer
}

// event is one line of output.
type event struct {
	Time time.Time `json:"time"`
	// Event says what happened: request, refused, update, error, listening, …
	Event string `json:"event"`

	OwnID      string     `json:"own_id,omitempty"`
	OwnSerial  string     `json:"own_serial,omitempty"`
	PeerID     string     `json:"peer_id,omitempty"`
	PeerSerial string     `json:"peer_serial,omitempty"`
	NotAfter   *time.Time `json:"not_after,omitempty"`
	// Roots are the serial numbers of the own trust domain's authorities.
	Roots   []string `json:"roots,omitempty"`
	Count   int      `json:"count,omitempty"`
	NewConn bool     `json:"new_connection,omitempty"`
	Millis  float64  `json:"ms,omitempty"`
	Address string   `json:"address,omitempty"`
	Code    string   `json:"code,omitempty"`
	Error   string   `json:"error,omitempty"`
}

func (p *printer) event(e event) {
	e.Time = p.now().UTC()
	p.print(e)
}

// print writes any value as one line. An output that is gone is nobody's to
// tell.
func (p *printer) print(v any) {
	line, err := json.Marshal(v)
	if err != nil {
		line = fmt.Appendf(nil, `{"event":"error","error":%q}`, err.Error())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	_, _ = p.out.Write(append(line, '\n'))
}

// millis is a duration in milliseconds, to the microsecond.
func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// stopped tells the end that was asked for from a failure.
func stopped(ctx context.Context, err error) bool {
	return err != nil && ctx.Err() != nil
}
