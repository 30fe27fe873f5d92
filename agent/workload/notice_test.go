// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/signet-spiffe/signet/agent/issue"
)

// listener is a Notifier that remembers.
type listener struct {
	mu    sync.Mutex
	heard []Notification
}

func (l *listener) Notify(n Notification) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.heard = append(l.heard, n)
}

// take gives what was heard since the last call, one line each.
func (l *listener) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := []string{}
	for _, n := range l.heard {
		lines = append(lines, strings.TrimSpace(fmt.Sprint(n.Notice, " ", n.Volume, " ", n.Pod.Name, " ", n.ID.Path(), " ", n.Status, errorText(n.Err))))
	}
	l.heard = nil
	return lines
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// silent is an issuer that never answers.
func silent(ctx context.Context, r issue.IssueRequest) (issue.Issued, error) {
	r.Report("waiting for approval of CertificateRequest shop/cart-0-1")
	<-ctx.Done()
	return issue.Issued{}, ctx.Err()
}

func wantHeard(t *testing.T, l *listener, want ...string) {
	t.Helper()
	synctest.Wait()
	if want == nil {
		want = []string{}
	}
	if diff := cmp.Diff(want, l.take()); diff != "" {
		t.Errorf("notices (-want +got):\n%s", diff)
	}
}

func (w *world) wantMetrics(t *testing.T, want string) {
	t.Helper()
	if err := testutil.GatherAndCompare(w.metrics, strings.NewReader(want), "signet_agent_volumes", "signet_agent_renewals_overdue",
		"signet_agent_svids_expired", "signet_agent_svid_earliest_expiry_timestamp_seconds"); err != nil {
		t.Error(err)
	}
}

const standingMetrics = `# HELP signet_agent_renewals_overdue Volumes whose SVID is past five sixths of its life (or half of the time after a later planned renewal) without one, expired ones included.
# TYPE signet_agent_renewals_overdue gauge
signet_agent_renewals_overdue %d
%s# HELP signet_agent_svids_expired Volumes whose SVID has expired.
# TYPE signet_agent_svids_expired gauge
signet_agent_svids_expired %d
# HELP signet_agent_volumes Volumes on this node by phase (pending: no SVID yet; ready: SVID stored).
# TYPE signet_agent_volumes gauge
signet_agent_volumes{phase="pending"} 0
signet_agent_volumes{phase="ready"} %d
`

func earliest(at time.Time) string {
	return fmt.Sprintf(`# HELP signet_agent_svid_earliest_expiry_timestamp_seconds When the first of this node's SVIDs expires, as Unix time; absent while there is no SVID. Minus time() it is the time that is left.
# TYPE signet_agent_svid_earliest_expiry_timestamp_seconds gauge
signet_agent_svid_earliest_expiry_timestamp_seconds %v
`, float64(at.Unix()))
}

// The life of an SVID that nobody renews: what its owner hears, and what the
// metrics say meanwhile. The machine decides when, woken by the one timer.
func TestNobodyRenews(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		heard := &listener{}
		w.Notifier = heard
		if err := w.Publish(t.Context(), cart("v")); err != nil {
			t.Fatal(err)
		}
		wantHeard(t, heard, "issued v cart-0 /ns/shop/sa/cart")
		expiry := w.volumes.stored["v"].SVID.NotAfter()
		w.wantMetrics(t, fmt.Sprintf(standingMetrics, 0, earliest(expiry), 0, 1))

		w.issuer.then(silent)
		time.Sleep(49 * time.Second)
		wantHeard(t, heard)
		time.Sleep(time.Second)
		wantHeard(t, heard, "overdue v cart-0 /ns/shop/sa/cart waiting for approval of CertificateRequest shop/cart-0-1")
		w.wantMetrics(t, fmt.Sprintf(standingMetrics, 1, earliest(expiry), 0, 1))
		time.Sleep(10 * time.Second)
		wantHeard(t, heard, "expired v cart-0 /ns/shop/sa/cart waiting for approval of CertificateRequest shop/cart-0-1")
		w.wantMetrics(t, fmt.Sprintf(standingMetrics, 1, earliest(expiry), 1, 1))
		time.Sleep(time.Hour)
		wantHeard(t, heard)

		if err := w.Unpublish(t.Context(), "v"); err != nil {
			t.Fatal(err)
		}
		wantHeard(t, heard)
		w.wantMetrics(t, fmt.Sprintf(standingMetrics, 0, "", 0, 0))
	})
}

// Refusals are told with their own words, at the mount and at a renewal; a
// restart is not told.
func TestRefusalsAreTold(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		heard := &listener{}
		w.Notifier = heard
		denial := fmt.Errorf("%w by the approver: wrong duration", issue.ErrDenied)
		w.issuer.fail(denial)
		if err := w.Publish(t.Context(), cart("v")); !errors.Is(err, issue.ErrDenied) {
			t.Fatalf("publish: %v, want the denial", err)
		}
		wantHeard(t, heard, "failed v cart-0 /ns/shop/sa/cart request denied by the approver: wrong duration")
		if err := w.Publish(t.Context(), cart("v")); err != nil {
			t.Fatal(err)
		}
		wantHeard(t, heard, "issued v cart-0 /ns/shop/sa/cart")
		w.issuer.fail(denial)
		time.Sleep(40 * time.Second)
		wantHeard(t, heard, "failed v cart-0 /ns/shop/sa/cart request denied by the approver: wrong duration")
		if err := w.Publish(t.Context(), cart("v")); err != nil {
			t.Fatal(err)
		}
		svid := w.volumes.stored["v"].SVID
		w.Restore(cart("again"), svid, nil)
		wantHeard(t, heard)
	})
}

func TestOverdueAt(t *testing.T) {
	for _, tt := range []struct{ renew, want time.Duration }{
		{40 * time.Second, 50 * time.Second}, // As planned without jitter.
		{34 * time.Second, 50 * time.Second}, // With all of it.
		{54 * time.Second, 57 * time.Second}, // Late by choice, or after a restart.
	} {
		if got := overdueAt(epoch.Add(tt.renew), epoch, epoch.Add(time.Minute)).Sub(epoch); got != tt.want {
			t.Errorf("renewal at %s is overdue at %s, want %s", tt.renew, got, tt.want)
		}
	}
}
