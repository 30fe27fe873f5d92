// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/signet-spiffe/signet/internal/observe"
	agentv1 "github.com/signet-spiffe/signet/proto/signet/agent/v1"
)

// AdminSocketEnv names the admin socket where -socketPath does not.
const AdminSocketEnv = "SIGNET_ADMIN_SOCKET"

// adminSockets is where agents have their admin sockets, one for each driver.
const adminSockets = "/run/signet/*/admin.sock"

// Workloads is the command of the administrator: it talks to the agent's admin
// socket, not to the Workload API.
func Workloads() *cobra.Command {
	return Group("workloads", "List, watch and renew the workloads of this node, over the agent's admin socket",
		`Shows what every volume of this node stands at, and has SVIDs renewed now. It talks
to the admin socket of the agent, which root alone may use and no pod has: run it in the
agent's container (kubectl exec), or as root where the socket is.

The socket is that of -socketPath, else of $`+AdminSocketEnv+`, else the one there is
among `+adminSockets+`.`, workloadsList(), workloadsWatch(), workloadsRenew())
}

// adminFlags are what every workloads command has.
type adminFlags struct {
	socket                 string
	volume, namespace, pod string
	output                 Output
}

func (f *adminFlags) add(c *cobra.Command) {
	flags := c.Flags()
	flags.StringVar(&f.socket, "socketPath", "", "Path of the agent's admin socket (default $"+AdminSocketEnv+", else the one there is among "+adminSockets+")")
	flags.StringVar(&f.namespace, "namespace", "", "Only workloads of pods in this namespace")
	flags.StringVar(&f.pod, "pod", "", "Only workloads of the pod of this name; needs -namespace")
	flags.StringVar(&f.volume, "volume", "", "Only the workload of this volume ID")
	f.output.AddFlag(flags)
}

// selector is nil if nothing was chosen.
func (f *adminFlags) selector() (*agentv1.WorkloadSelector, error) {
	if f.pod != "" && f.namespace == "" {
		return nil, observe.Usagef("-pod %q: needs -namespace", f.pod)
	}
	if f.volume == "" && f.namespace == "" {
		return nil, nil
	}
	return &agentv1.WorkloadSelector{VolumeId: f.volume, Namespace: f.namespace, PodName: f.pod}, nil
}

// path finds the admin socket.
func (f *adminFlags) path(pattern string) (string, error) {
	for _, given := range []struct{ name, value string }{{"-socketPath", f.socket}, {AdminSocketEnv, os.Getenv(AdminSocketEnv)}} {
		if given.value == "" {
			continue
		}
		path, err := ParseSocket(given.value)
		if err != nil {
			return "", observe.Usagef("%s: %v", given.name, err)
		}
		return path, nil
	}
	found, err := filepath.Glob(pattern)
	switch {
	case err != nil:
		return "", err
	case len(found) == 0:
		return "", fmt.Errorf("there is no admin socket at %s: run this as root where the agent runs, or give -socketPath", pattern)
	case len(found) > 1:
		return "", observe.Usagef("there are several agents, choose one by -socketPath: %s", strings.Join(found, ", "))
	}
	return found[0], nil
}

// dial connects to the agent.
func (f *adminFlags) dial(ctx context.Context) (client agentv1.AgentServiceClient, hangUp func(), err error) {
	path, err := f.path(adminSockets)
	if err != nil {
		return nil, nil, err
	}
	if err := Reach(ctx, path); err != nil {
		return nil, nil, err
	}
	conn, err := Dial(path)
	if err != nil {
		return nil, nil, err
	}
	return agentv1.NewAgentServiceClient(conn), func() { _ = conn.Close() }, nil
}

func workloadsList() *cobra.Command {
	var f adminFlags
	var timeout Timeout
	c := &cobra.Command{
		Use: "list", Short: "List workloads: state, serial, expiry, next renewal, last error", Args: NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			selector, err := f.selector()
			if err != nil {
				return err
			}
			ctx, cancel, err := timeout.Context(c.Context())
			if err != nil {
				return err
			}
			defer cancel()
			client, hangUp, err := f.dial(ctx)
			if err != nil {
				return err
			}
			defer hangUp()
			list, err := listAll(ctx, client, selector)
			if err != nil {
				return Explain(ctx, err)
			}
			if f.output.JSON() {
				return WriteProtoJSON(c.OutOrStdout(), &agentv1.ListWorkloadsResponse{Workloads: list})
			}
			return writeTable(c.OutOrStdout(), list, time.Now())
		},
	}
	f.add(c)
	timeout.AddFlag(c.Flags())
	return c
}

// listAll reads every page. They are ordered for people: by namespace, pod, volume.
func listAll(ctx context.Context, client agentv1.AgentServiceClient, selector *agentv1.WorkloadSelector) ([]*agentv1.Workload, error) {
	var all []*agentv1.Workload
	for token := ""; ; {
		page, err := client.ListWorkloads(ctx, &agentv1.ListWorkloadsRequest{Selector: selector, PageToken: token})
		if err != nil {
			return nil, err
		}
		all = append(all, page.GetWorkloads()...)
		if token = page.GetNextPageToken(); token == "" {
			sortWorkloads(all)
			return all, nil
		}
	}
}

func sortWorkloads(list []*agentv1.Workload) {
	slices.SortFunc(list, func(a, b *agentv1.Workload) int {
		return slices.Compare([]string{a.Namespace, a.PodName, a.VolumeId}, []string{b.Namespace, b.PodName, b.VolumeId})
	})
}

const tableHead = "NAMESPACE\tPOD\tSTATE\tEXPIRES\tRENEWAL\tSERIAL\tSPIFFE ID\tVOLUME\tLAST ERROR"

func writeTable(w io.Writer, list []*agentv1.Workload, now time.Time) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(w, "no workloads")
		return err
	}
	table := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(table, tableHead)
	for _, row := range list {
		fmt.Fprintln(table, strings.Join(columns(row, now), "\t"))
	}
	return table.Flush()
}

// columns are one line of the table. Words of others are made fit for a terminal.
func columns(w *agentv1.Workload, now time.Time) []string {
	renewal := when(w.GetNextRenewal(), now)
	if w.GetInFlight() {
		renewal = "under way"
	}
	if w.GetInFlight() && w.GetWaitsFor() != "" {
		renewal += ": " + w.GetWaitsFor()
	}
	trouble := w.GetLastError()
	if trouble != "" {
		trouble = when(w.GetLastErrorAt(), now) + ": " + trouble
	}
	all := []string{
		w.GetNamespace(), w.GetPodName(), stateName(w.GetState()), when(w.GetNotAfter(), now), renewal, orDash(w.GetSerial()),
		w.GetSpiffeId(), w.GetVolumeId(), orDash(trouble),
	}
	for i := range all {
		all[i] = Clean(all[i])
	}
	return all
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// stateName is the end of the constant, in small letters.
func stateName(s agentv1.WorkloadState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "WORKLOAD_STATE_"))
}

// when is a time as seen from now, to the second.
func when(t *timestamppb.Timestamp, now time.Time) string {
	if t == nil {
		return "-"
	}
	d := t.AsTime().Sub(now).Round(time.Second)
	if d < 0 {
		return (-d).String() + " ago"
	}
	return "in " + d.String()
}

func workloadsWatch() *cobra.Command {
	var f adminFlags
	c := &cobra.Command{
		Use: "watch", Short: "Print workloads as they stand, and again whenever one changes", Args: NoArgs,
		Long: `Prints every workload, and from then on each that has changed or is gone, until it is
interrupted. With -output json each line is one WatchWorkloadsResponse of
signet.agent.v1: the workloads in it replace those of the same volume ID, and from the
first line on with "synced" true everything that there is has been told.`,
		RunE: func(c *cobra.Command, _ []string) error {
			selector, err := f.selector()
			if err != nil {
				return err
			}
			client, hangUp, err := f.dial(c.Context())
			if err != nil {
				return err
			}
			defer hangUp()
			stream, err := client.WatchWorkloads(c.Context(), &agentv1.WatchWorkloadsRequest{Selector: selector})
			if err == nil {
				err = f.follow(stream, c.OutOrStdout())
			}
			if c.Context().Err() != nil {
				return nil // Interrupted: that is how a watch ends.
			}
			return Explain(c.Context(), err)
		},
	}
	f.add(c)
	return c
}

// follow prints what comes until the stream ends.
func (f *adminFlags) follow(stream grpc.ServerStreamingClient[agentv1.WatchWorkloadsResponse], w io.Writer) error {
	pods := map[string]string{} // By volume ID.
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return status.Error(codes.Unavailable, "the agent has ended the stream")
		}
		if err != nil {
			return err
		}
		if f.output.JSON() {
			err = WriteProtoJSON(w, m)
		} else {
			err = writeChange(w, m, pods, time.Now())
		}
		if err != nil {
			return fmt.Errorf("print: %w", err)
		}
	}
}

// writeChange prints one line for each workload that a message holds.
func writeChange(w io.Writer, m *agentv1.WatchWorkloadsResponse, pods map[string]string, now time.Time) error {
	stamp := now.Format(time.TimeOnly)
	var lines strings.Builder
	for _, row := range m.GetWorkloads() {
		c := columns(row, now)
		pods[row.GetVolumeId()] = c[0] + "/" + c[1]
		fmt.Fprintf(&lines, "%s  %s  %s, expires %s, renewal %s, serial %s, volume %s", stamp, pods[row.GetVolumeId()], c[2], c[3], c[4], c[5], c[7])
		if row.GetLastError() != "" {
			fmt.Fprintf(&lines, ", last error %s", c[8])
		}
		lines.WriteString("\n")
	}
	for _, id := range m.GetRemovedVolumeIds() {
		fmt.Fprintf(&lines, "%s  %s  gone, volume %s\n", stamp, pods[id], Clean(id))
		delete(pods, id)
	}
	_, err := io.WriteString(w, lines.String())
	return err
}

func workloadsRenew() *cobra.Command {
	var f adminFlags
	var timeout Timeout
	var all, wait bool
	c := &cobra.Command{
		Use: "renew", Short: "Have SVIDs issued again now, with new keys", Args: NoArgs,
		Long: `Has the SVIDs of the chosen workloads issued again now, with new keys: those of a
namespace, a pod or a volume, or -all of this node. The SVIDs in use stay until the new
ones are stored, also when a renewal fails; it is then tried again like any other.

With -wait it ends when every renewal has ended, with exit code 1 if one has failed, or
after -timeout.`,
		RunE: func(c *cobra.Command, _ []string) error {
			selector, err := f.selector()
			switch {
			case err != nil:
				return err
			case selector == nil && !all:
				return observe.Usagef("which workloads? Give -namespace, -pod with it, -volume, or -all")
			case selector != nil && all:
				return observe.Usagef("-all and a choice of workloads contradict each other; give one")
			}
			ctx, cancel, err := timeout.Context(c.Context())
			if err != nil {
				return err
			}
			defer cancel()
			client, hangUp, err := f.dial(ctx)
			if err != nil {
				return err
			}
			defer hangUp()
			request := &agentv1.RenewWorkloadsRequest{Selector: selector, All: all}
			if wait {
				return f.renewAndWait(ctx, c.OutOrStdout(), client, request)
			}
			renewed, err := client.RenewWorkloads(ctx, request)
			if err != nil {
				return Explain(ctx, err)
			}
			if f.output.JSON() {
				return WriteProtoJSON(c.OutOrStdout(), renewed)
			}
			return writeRenewals(c.OutOrStdout(), renewed)
		},
	}
	f.add(c)
	c.Flags().BoolVar(&all, "all", false, "Every workload of this node")
	c.Flags().BoolVar(&wait, "wait", false, "Wait for the result, for up to -timeout")
	timeout.AddFlag(c.Flags())
	return c
}

func writeRenewals(w io.Writer, renewed *agentv1.RenewWorkloadsResponse) error {
	for _, r := range renewed.GetRenewals() {
		what := "renewal begun"
		if r.GetJoined() {
			what = "a renewal was under way already"
		}
		if _, err := fmt.Fprintf(w, "%s: %s\n", nameOf(r), what); err != nil {
			return err
		}
	}
	return nil
}

func nameOf(r *agentv1.Renewal) string {
	return Clean(fmt.Sprintf("%s/%s, volume %s", r.GetNamespace(), r.GetPodName(), r.GetVolumeId()))
}

// renewAndWait watches before it renews, so that no result is missed.
func (f *adminFlags) renewAndWait(ctx context.Context, w io.Writer, client agentv1.AgentServiceClient, request *agentv1.RenewWorkloadsRequest) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	stream, err := client.WatchWorkloads(ctx, &agentv1.WatchWorkloadsRequest{Selector: request.GetSelector()})
	if err == nil {
		err = untilSynced(stream)
	}
	if err != nil {
		return Explain(ctx, err)
	}
	renewed, err := client.RenewWorkloads(ctx, request)
	if err != nil {
		return Explain(ctx, err)
	}
	results := newResults(renewed)
	for len(results.waiting) > 0 && err == nil {
		var m *agentv1.WatchWorkloadsResponse
		if m, err = stream.Recv(); err == nil {
			results.take(m)
		}
	}
	return errors.Join(f.report(w, renewed, results), results.trouble(Explain(ctx, err)))
}

func untilSynced(stream grpc.ServerStreamingClient[agentv1.WatchWorkloadsResponse]) error {
	for {
		if m, err := stream.Recv(); err != nil || m.GetSynced() {
			return err
		}
	}
}

// results are what has become of renewals.
type results struct {
	waiting map[string]*agentv1.Renewal
	renewed map[string]*agentv1.Workload
	failed  map[string]string // Why.
}

func newResults(r *agentv1.RenewWorkloadsResponse) *results {
	all := &results{waiting: map[string]*agentv1.Renewal{}, renewed: map[string]*agentv1.Workload{}, failed: map[string]string{}}
	for _, renewal := range r.GetRenewals() {
		all.waiting[renewal.GetVolumeId()] = renewal
	}
	return all
}

// take sees what a message says about the renewals that are waited for.
func (r *results) take(m *agentv1.WatchWorkloadsResponse) {
	for _, w := range m.GetWorkloads() {
		renewal := r.waiting[w.GetVolumeId()]
		switch {
		case renewal == nil:
			continue
		case w.GetSerial() != renewal.GetSerial():
			r.renewed[w.GetVolumeId()] = w
		case w.GetLastErrorAt() != nil && w.GetLastErrorAt().AsTime().After(renewal.GetLastErrorAt().AsTime()):
			r.failed[w.GetVolumeId()] = w.GetLastError()
		default:
			continue
		}
		delete(r.waiting, w.GetVolumeId())
	}
	for _, id := range m.GetRemovedVolumeIds() {
		if r.waiting[id] != nil {
			r.failed[id] = "the volume was removed meanwhile"
			delete(r.waiting, id)
		}
	}
}

// trouble is nil if every renewal has succeeded. cause is why the rest was not waited
// for.
func (r *results) trouble(cause error) error {
	switch {
	case len(r.waiting) > 0:
		return fmt.Errorf("%d of %d renewals have not ended: %w", len(r.waiting), len(r.waiting)+len(r.renewed)+len(r.failed), cause)
	case len(r.failed) > 0:
		return fmt.Errorf("%d of %d renewals failed; the SVIDs in use stay, and the agent tries again", len(r.failed), len(r.renewed)+len(r.failed))
	}
	return nil
}

// report prints what has become of each renewal, in the order of the answer.
func (f *adminFlags) report(w io.Writer, renewed *agentv1.RenewWorkloadsResponse, r *results) error {
	if f.output.JSON() {
		list := slices.Collect(maps.Values(r.renewed))
		sortWorkloads(list)
		return WriteProtoJSON(w, renewed, &agentv1.ListWorkloadsResponse{Workloads: list})
	}
	for _, renewal := range renewed.GetRenewals() {
		id := renewal.GetVolumeId()
		what := "no result yet"
		if now := r.renewed[id]; now != nil {
			what = fmt.Sprintf("renewed, serial %s → %s, expires %s", orDash(renewal.GetSerial()), now.GetSerial(), when(now.GetNotAfter(), time.Now()))
		}
		if why, ok := r.failed[id]; ok {
			what = "failed: " + why
		}
		if _, err := fmt.Fprintf(w, "%s: %s\n", nameOf(renewal), Clean(what)); err != nil {
			return err
		}
	}
	return nil
}
