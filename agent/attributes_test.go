// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	spiffe "github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/signet-spiffe/signet/agent/issue"
	"github.com/signet-spiffe/signet/agent/workload"
	"github.com/signet-spiffe/signet/csi"
	"github.com/signet-spiffe/signet/internal/pki"
)

func TestLimits(t *testing.T) {
	exact := testLimits
	exact.durations = durationRange{time.Hour, time.Hour}
	for name, c := range map[string]struct {
		limits attributeLimits
		chosen workload.Attributes
		says   []string // Nil: allowed.
	}{
		"nothing":                   {testLimits, workload.Attributes{}, nil},
		"shortest":                  {testLimits, workload.Attributes{Duration: 30 * time.Minute}, nil},
		"longest":                   {testLimits, workload.Attributes{Duration: 2 * time.Hour}, nil},
		"too short":                 {testLimits, workload.Attributes{Duration: 30*time.Minute - 1}, []string{"test.driver/duration]", "29m59.999999999s", "from 30m0s to 2h0m0s", "--certificate-request-duration-min"}},
		"too long":                  {testLimits, workload.Attributes{Duration: 2*time.Hour + 1}, []string{"test.driver/duration]"}},
		"exactly":                   {exact, workload.Attributes{Duration: time.Hour}, nil},
		"not exactly":               {exact, workload.Attributes{Duration: 2 * time.Hour}, []string{"test.driver/duration]", "exactly 1h0m0s"}},
		"renew-before":              {testLimits, workload.Attributes{RenewBefore: 54 * time.Minute}, nil},
		"renew-before too long":     {testLimits, workload.Attributes{RenewBefore: 54*time.Minute + 1}, []string{"test.driver/renew-before]", "from 10s to 54m0s", "duration of 1h0m0s"}},
		"renew-before of its own":   {testLimits, workload.Attributes{Duration: 2 * time.Hour, RenewBefore: 100 * time.Minute}, nil},
		"renew-before too short":    {testLimits, workload.Attributes{RenewBefore: 9 * time.Second}, []string{"test.driver/renew-before]", "from 10s"}},
		"names":                     {testLimits, workload.Attributes{Delivery: workload.Delivery{Certificate: "a", Key: "b", CA: "c", Socket: "d"}}, nil},
		"names exchanged":           {testLimits, workload.Attributes{Delivery: workload.Delivery{Certificate: "tls.key", Key: "tls.crt"}}, nil},
		"name of the agent's":       {testLimits, workload.Attributes{Delivery: workload.Delivery{Certificate: "tls.key"}}, []string{"test.driver/file-name-certificate]", `"tls.key"`}},
		"two equal names":           {testLimits, workload.Attributes{Delivery: workload.Delivery{CA: "x", Socket: "x"}}, []string{"test.driver/file-name-", `"x"`}},
		"name of what is not shown": {testLimits, workload.Attributes{Delivery: workload.Delivery{NoSocket: true, Key: "spiffe.sock"}}, nil},
		"name of an unshown file":   {testLimits, workload.Attributes{Delivery: workload.Delivery{NoFiles: true, Socket: "tls.key"}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.limits.check(c.chosen)
			if c.says == nil {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, csi.ErrInvalid) {
				t.Fatalf("%v, want csi.ErrInvalid", err)
			}
			for _, words := range c.says {
				if !strings.Contains(err.Error(), words) {
					t.Errorf("%q does not say %q", err, words)
				}
			}
		})
	}
}

var everyAttribute = workload.Attributes{
	NoWait: true, KeyType: pki.Ed25519, Duration: 90 * time.Minute, RenewBefore: 10 * time.Minute, DNSNames: "shop.svc,web.shop.svc",
	Delivery: workload.Delivery{NoFiles: true, Certificate: "a", Key: "b", CA: "c", Socket: "d"},
}

func TestStateKeepsAttributes(t *testing.T) {
	v := workload.Volume{ID: "v", Pod: pod, Attributes: everyAttribute}
	c := contentWith(t, everyAttribute.DNSNames)
	key, err := c.SVID.Key.MarshalPEM()
	if err != nil {
		t.Fatal(err)
	}
	issued, err := marshalState(v, c, key)
	if err != nil {
		t.Fatal(err)
	}
	unissued, err := marshalUnissued(v)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"issued": issued, "unissued": unissued} {
		r, err := unmarshalState(b)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if r.volume != v {
			t.Errorf("%s: volume %+v, want %+v", name, r.volume, v)
		}
		if (r.svid == nil) != (name == "unissued") {
			t.Errorf("%s: SVID %v", name, r.svid)
		}
		// An agent that knows nothing of DNS names must leave the volume alone.
		if !strings.Contains(string(b), `"version":3`) {
			t.Errorf("%s: an older agent would take up %s", name, b[:40])
		}
	}
	// One that does may take up a volume without any.
	v.Attributes.DNSNames = ""
	if b, err := marshalUnissued(v); err != nil || !strings.Contains(string(b), `"version":2`) {
		t.Errorf("%v: an agent that knows attributes would leave %s alone", err, b)
	}
}

// The certificate has the DNS names that the volume chose, and no others.
func TestStateWithOtherDNSNamesIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		chosen, holds pki.DNSNames
		want          bool
	}{
		"the same":       {"a.shop,b.shop", "a.shop,b.shop", true},
		"one is missing": {"a.shop,b.shop", "a.shop", false},
		"all missing":    {"a.shop", "", false},
		"one more":       {"a.shop", "a.shop,b.shop", false},
		"none chosen":    {"", "a.shop", false},
	} {
		t.Run(name, func(t *testing.T) {
			stored := contentWith(t, c.holds)
			key, err := stored.SVID.Key.MarshalPEM()
			if err != nil {
				t.Fatal(err)
			}
			b, err := marshalState(workload.Volume{ID: "v", Pod: pod, Attributes: workload.Attributes{DNSNames: c.chosen}}, stored, key)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := unmarshalState(b); (err == nil) != c.want || err != nil && !strings.Contains(err.Error(), "DNS names") {
				t.Errorf("%v, want it taken: %t", err, c.want)
			}
		})
	}
}

// The state as it was before there were attributes: it is read, and a volume
// without attributes is still stored so that an agent from then reads it.
func TestStateOfTheFirstFormat(t *testing.T) {
	var fields map[string]any
	if err := json.Unmarshal(encoded(t, content(t)), &fields); err != nil {
		t.Fatal(err)
	}
	if fields["version"] != 1.0 || fields["attributes"] != nil || fields["unissued"] != nil {
		t.Errorf("a volume without attributes is stored as version %v with attributes %v", fields["version"], fields["attributes"])
	}
	first := map[string]any{}
	for _, name := range []string{"version", "volume", "pod", "gid", "spiffe_id", "key", "chain", "bundle"} {
		if first[name] = fields[name]; first[name] == nil {
			t.Errorf("%s is not stored any more", name)
		}
	}
	b, err := json.Marshal(first)
	if err != nil {
		t.Fatal(err)
	}
	r, err := unmarshalState(b)
	if err != nil || r.svid == nil || r.volume.Attributes != (workload.Attributes{}) || r.volume.Pod != pod {
		t.Errorf("read as %+v, %v", r.volume, err)
	}
}

func TestStateWithImpossibleAttributesIsRefused(t *testing.T) {
	for name, change := range map[string]func(a *attributes){
		"key type":                        func(a *attributes) { a.KeyType = "RSA-1" },
		"duration":                        func(a *attributes) { a.Duration = -1 },
		"renew before":                    func(a *attributes) { a.RenewBefore = -1 },
		"delivery":                        func(a *attributes) { a.NoFiles, a.NoSocket = true, true },
		"file name":                       func(a *attributes) { a.Key = "../x" },
		"DNS name":                        func(a *attributes) { a.DNSNames = "*.shop" },
		"DNS names that are not in order": func(a *attributes) { a.DNSNames = "b,a" },
		"a DNS name twice":                func(a *attributes) { a.DNSNames = "a,a" },
		"white space between DNS names":   func(a *attributes) { a.DNSNames = "a, b" },
		// Without SVID only a volume that does not wait is ever stored.
		"unissued, but waits": func(a *attributes) { a.NoWait = false },
	} {
		s := stateOf(workload.Volume{ID: "v", Pod: pod, Attributes: everyAttribute})
		s.Unissued = true
		change(s.Attributes)
		b, err := s.marshal()
		if err != nil {
			t.Fatal(err)
		}
		if r, err := unmarshalState(b); err == nil {
			t.Errorf("%s: taken as %+v", name, r.volume)
		}
	}
}

// publishWith publishes volume v with attributes.
func (n *node) publishWith(a *agent, attributes map[string]string) error {
	n.t.Helper()
	r := n.publishRequest()
	for name, value := range attributes {
		r.VolumeContext["test.driver/"+name] = value
	}
	_, err := a.NodePublishVolume(n.t.Context(), r)
	return err
}

func (n *node) unpublish(a *agent) {
	n.t.Helper()
	if _, err := a.NodeUnpublishVolume(n.t.Context(), &csipb.NodeUnpublishVolumeRequest{VolumeId: "v", TargetPath: n.target("v", "mount")}); err != nil {
		n.t.Fatal(err)
	}
}

// shown lists what a pod sees, in all depth, and fails on a key that is in it.
func (n *node) shown(keyAllowed bool) []string {
	n.t.Helper()
	var names []string
	root := n.target("v", "mount")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		if !strings.Contains(path, "/..") {
			names = append(names, d.Name())
		}
		if d.Type().IsRegular() {
			content, err := os.ReadFile(path)
			if strings.Contains(string(content), "PRIVATE KEY") && !keyAllowed {
				n.t.Errorf("%s is a key", path)
			}
			return err
		}
		return nil
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return names
}

func TestDelivery(t *testing.T) {
	for name, c := range map[string]struct {
		attributes map[string]string
		want       []string
	}{
		"both":   {map[string]string{"delivery": "both"}, []string{"ca.crt", "spiffe.sock", "tls.crt", "tls.key"}},
		"socket": {map[string]string{"delivery": "socket"}, []string{"spiffe.sock"}},
		"files":  {map[string]string{"delivery": "files"}, []string{"ca.crt", "tls.crt", "tls.key"}},
		"names": {map[string]string{"file-name-certificate": "svid.pem", "file-name-key": "svid_key.pem", "file-name-ca": "bundle.pem", "file-name-socket": "api.sock"},
			[]string{"api.sock", "bundle.pem", "svid.pem", "svid_key.pem"}},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			a := n.start()
			if err := n.publishWith(a, c.attributes); err != nil {
				t.Fatal(err)
			}
			for life := range 2 {
				if got := n.shown(c.attributes["delivery"] != "socket"); !slices.Equal(got, c.want) {
					t.Errorf("agent %d shows %q, want %q", life, got, c.want)
				}
				if slices.Contains(c.want, "spiffe.sock") {
					if id, _ := n.fromSocket(); id != cartID.String() {
						t.Errorf("agent %d: the socket says %s", life, id)
					}
				}
				if slices.Contains(c.want, "tls.key") {
					n.serial()
				}
				a.kill()
				a = n.start()
				// Kubelet's republish comes after what the agent found at its start.
				if err := n.publishWith(a, c.attributes); err != nil {
					t.Fatal(err)
				}
			}
			if got := n.issued.Load(); got != 1 {
				t.Errorf("%d issuances, want 1", got)
			}
			n.unpublish(a)
			a.kill()
			n.wantNothingLeft()
		})
	}
}

// gatedIssuer denies until it is opened.
type gatedIssuer struct {
	issue.Issuer
	open chan struct{}
}

func (g gatedIssuer) Issue(ctx context.Context, r issue.IssueRequest) (issue.Issued, error) {
	select {
	case <-g.open:
		return g.Issuer.Issue(ctx, r)
	default:
		return issue.Issued{}, fmt.Errorf("%w: not yet", issue.ErrDenied)
	}
}

// With wait=false the mount is there at once, with a socket that answers as soon
// as there is something to say: through a denial and an agent that is replaced.
func TestNoWait(t *testing.T) {
	n := newNode(t)
	gate := gatedIssuer{n.issuer, make(chan struct{})}
	n.issuer = gate
	a := n.start()
	if err := n.publishWith(a, map[string]string{"wait": "false"}); err != nil {
		t.Fatal(err)
	}
	if got := n.shown(false); !slices.Equal(got, []string{"spiffe.sock"}) {
		t.Errorf("before the SVID the volume shows %q", got)
	}
	conn, err := net.Dial("unix", n.shortSocket())
	if err != nil {
		t.Fatalf("before the SVID the socket is not listened on: %v", err)
	}
	_ = conn.Close()
	a.kill()
	a = n.start()
	close(gate.open)
	_, serial := n.fromSocket() // Tries until somebody listens, and is held until there is an SVID.
	if got := n.serial(); got != serial {
		t.Errorf("files: %s, socket: %s", got, serial)
	}
	n.unpublish(a)
	a.kill()
	n.wantNothingLeft()
}

// What may be chosen changes while a volume is published: it is kept, and a
// republish with a token is taken. A new volume is refused.
func TestLimitsChangeUnderAPublishedVolume(t *testing.T) {
	n := newNode(t)
	a := n.start()
	chosen := map[string]string{"duration": "2h"}
	if err := n.publishWith(a, chosen); err != nil {
		t.Fatal(err)
	}
	a.kill()
	n.limits.durations = durationRange{time.Hour, time.Hour}
	a = n.start()
	err := workloads{a.registry, n.limits, a.storage}.Publish(t.Context(), csi.Volume{
		ID: "v", Pod: csi.Pod(pod), Attributes: csi.Attributes{Duration: 2 * time.Hour}, Token: csi.NewToken("t", time.Time{}),
	})
	if err != nil {
		t.Errorf("republish: %v", err)
	}
	n.unpublish(a)
	if err := n.publishWith(a, chosen); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "test.driver/duration") {
		t.Errorf("new publish: %v, want InvalidArgument that names the attribute", err)
	}
	a.kill()
	n.wantNothingLeft()
}

// leaves follows the socket and gives the leaf of every SVID that comes.
func (n *node) leaves() <-chan *x509.Certificate {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), 10*time.Second)
	n.t.Cleanup(cancel)
	leaves := make(chan *x509.Certificate, 10)
	addr := spiffe.WithAddr("unix://" + n.shortSocket())
	go func() {
		_ = spiffe.WatchX509Context(ctx, leafWatcher(leaves), addr) // Ends with ctx.
		close(leaves)
	}()
	return leaves
}

type leafWatcher chan<- *x509.Certificate

func (w leafWatcher) OnX509ContextUpdate(c *spiffe.X509Context) { w <- c.SVIDs[0].Certificates[0] }
func (leafWatcher) OnX509ContextWatchError(error)               {}

// wantNames checks that a certificate has these names and no others.
func wantNames(t *testing.T, leaf *x509.Certificate, id string, dns ...string) {
	t.Helper()
	if leaf == nil {
		t.Fatal("no SVID came")
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != id || !slices.Equal(slices.Sorted(slices.Values(leaf.DNSNames)), dns) {
		t.Errorf("certificate for %v and %q, want %s and %q", leaf.URIs, leaf.DNSNames, id, dns)
	}
}

// DNS names are in the certificate on the socket and in the files; an agent that
// is replaced keeps them, and asks for them again when the SVID is renewed.
func TestDNSNames(t *testing.T) {
	n := newNode(t)
	a := n.start()
	chosen := map[string]string{"dns-names": "web.shop.svc, shop.svc", "duration": "45m"}
	if err := n.publishWith(a, chosen); err != nil {
		t.Fatal(err)
	}
	first := <-n.leaves()
	wantNames(t, first, cartID.String(), "shop.svc", "web.shop.svc")
	if got := n.serial(); got != first.SerialNumber.Text(16) {
		t.Errorf("files: %s, socket: %x", got, first.SerialNumber)
	}
	a.kill()
	// The volume's duration is no longer allowed: it is issued again at once.
	n.limits.durations.min = time.Hour
	a = n.start()
	var second *x509.Certificate
	for leaf := range n.leaves() {
		wantNames(t, leaf, cartID.String(), "shop.svc", "web.shop.svc")
		if second = leaf; leaf.SerialNumber.Cmp(first.SerialNumber) != 0 {
			break
		}
	}
	if second == nil || second.SerialNumber.Cmp(first.SerialNumber) == 0 {
		t.Fatal("the SVID was not renewed")
	}
	if got := n.serial(); got != second.SerialNumber.Text(16) {
		t.Errorf("files: %s, socket: %x", got, second.SerialNumber)
	}
	n.unpublish(a)
	err := n.publishWith(a, map[string]string{"dns-names": "Web.shop"})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "test.driver/dns-names") {
		t.Errorf("%v, want InvalidArgument that names the attribute", err)
	}
	a.kill()
	n.wantNothingLeft()
}
