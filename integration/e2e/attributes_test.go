// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/signet-spiffe/signet/integration/install"
	"github.com/signet-spiffe/signet/internal/pki"
)

// TestAttributes is what pods may choose for their volumes, on an installation
// whose operator allows a range of durations.
func TestAttributes(t *testing.T) {
	if env.skipped != "" {
		t.Skip(env.skipped)
	}
	reinstall(t, map[string]string{minFlag: "30s", maxFlag: "10m"}, map[string]string{minFlag: "30s", maxFlag: "5m"})
	defer reinstall(t, nil, nil)
	t.Run("running", func(t *testing.T) {
		run(t, []part{
			{"a volume holds what its pod chose", testAVolumeHoldsWhatItsPodChose},
			{"the SVID is as its pod chose", testTheSVIDIsAsItsPodChose},
			{"a volume is renewed when its pod chose", testAVolumeIsRenewedWhenItsPodChose},
			{"the SVID has the DNS names that its pod chose", testTheSVIDHasTheDNSNamesThatItsPodChose},
			{"DNS names of another namespace are denied", testDNSNamesOfAnotherNamespaceAreDenied},
			{"any user reaches the socket where Istio looks", testAnyUserReachesTheSocketWhereIstioLooks},
			{"attributes that cannot be had are named", testAttributesThatCannotBeHadAreNamed},
			{"the approver has bounds of its own", testTheApproverHasBoundsOfItsOwn},
		})
	})
	t.Run("restarts", func(t *testing.T) {
		run(t, []part{
			{"a pod that does not wait", testAPodThatDoesNotWait},
			{"attempts survive a killed agent", testAttemptsSurviveAKilledAgent},
			{"attempts survive a replaced agent", testAttemptsSurviveAReplacedAgent},
		})
	})
}

const (
	minFlag = "--certificate-request-duration-min"
	maxFlag = "--certificate-request-duration-max"
)

// reinstall is the standard installation with more flags.
func reinstall(t *testing.T, agent, approver map[string]string) {
	t.Helper()
	ctx := needCluster(t, testTimeout)
	options := standardOptions()
	maps.Copy(options.AgentFlags, agent)
	maps.Copy(options.ApproverFlags, approver)
	if err := env.Signet(ctx, options); err != nil {
		t.Fatal(err)
	}
}

// chosen prefixes the names of attributes.
func chosen(attributes map[string]string) map[string]string {
	out := map[string]string{}
	for name, value := range attributes {
		out[install.DriverName+"/"+name] = value
	}
	return out
}

// shown are the names in a pod's volume but for those that are the volume's own.
func shown(ctx context.Context, t *testing.T, pod *corev1.Pod) []string {
	t.Helper()
	names := slices.Sorted(maps.Keys(list(ctx, t, pod, mountPath)))
	return slices.DeleteFunc(names, func(name string) bool { return strings.HasPrefix(name, ".") })
}

// delivery and names: nothing else is in the volume, hidden or not, and what is
// there works. The socket of a volume for files is not only unnamed: nobody
// listens.
func testAVolumeHoldsWhatItsPodChose(t *testing.T) {
	t.Parallel()
	ctx := needCluster(t, testTimeout)
	ns := newNamespace(ctx, t)
	for name, c := range map[string]struct {
		attributes map[string]string
		want       []string
	}{
		"both":   {map[string]string{"delivery": "both"}, []string{"ca.crt", "spiffe.sock", "tls.crt", "tls.key"}},
		"socket": {map[string]string{"delivery": "socket"}, []string{"spiffe.sock"}},
		"files":  {map[string]string{"delivery": "files"}, []string{"ca.crt", "tls.crt", "tls.key"}},
		"names": {map[string]string{
			"file-name-certificate": "svid.pem", "file-name-key": "svid_key.pem", "file-name-ca": "bundle.pem", "file-name-socket": "api.sock",
		}, []string{"api.sock", "bundle.pem", "svid.pem", "svid_key.pem"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pod := runPod(ctx, t, ns, podSpec{Name: name, Node: nodeOne, Attributes: chosen(c.attributes)})
			if got := shown(ctx, t, pod); !slices.Equal(got, c.want) {
				t.Errorf("the volume shows %q, want %q", got, c.want)
			}
			switch name {
			case "socket":
				if all := list(ctx, t, pod, mountPath); len(all) != 2 { // The directory itself and the socket.
					t.Errorf("the volume holds %v, want the socket alone", slices.Sorted(maps.Keys(all)))
				}
				if got := fetch(ctx, t, pod); got.ID != spiffeID(ns, "default") {
					t.Errorf("the socket says %s", got.ID)
				}
			case "files":
				if _, err := execute(ctx, pod, "app", "fetch", "--timeout=1s"); err == nil {
					t.Error("somebody listens")
				}
			case "names":
				got := decodeJSON[fetched](t, mustExecute(ctx, t, pod, "fetch", "--socket=unix://"+mountPath+"/api.sock"))
				chain, err := pki.ParseCertificates(mustExecute(ctx, t, pod, "cat", mountPath+"/svid.pem"))
				if err != nil || chain[0].SerialNumber.Text(16) != got.Serial {
					t.Errorf("svid.pem: %v, want serial %s as the socket has", err, got.Serial)
				}
				if _, err := pki.ParsePrivateKeyPEM(mustExecute(ctx, t, pod, "cat", mountPath+"/svid_key.pem")); err != nil {
					t.Errorf("svid_key.pem: %v", err)
				}
			}
		})
	}
}

// key-type and duration are the certificate's.
func testTheSVIDIsAsItsPodChose(t *testing.T) {
	t.Parallel()
	ctx := needCluster(t, testTimeout)
	ns := newNamespace(ctx, t)
	for _, keyType := range pki.KeyTypes() {
		t.Run(string(keyType), func(t *testing.T) {
			t.Parallel()
			pod := runPod(ctx, t, ns, podSpec{
				Name: strings.ToLower(string(keyType)), Attributes: chosen(map[string]string{"key-type": string(keyType), "duration": "4m"}),
			})
			certificate := certificateIn(ctx, t, pod)
			if got, err := pki.KeyTypeOf(certificate.PublicKey); err != nil || got != keyType {
				t.Errorf("the key is %s (%v), want %s", got, err, keyType)
			}
			if got := lifetime(certificate); got != 4*time.Minute {
				t.Errorf("it lives %s, want 4m0s", got)
			}
			fetch(ctx, t, pod)
		})
	}
}

func lifetime(certificate *x509.Certificate) time.Duration {
	return certificate.NotAfter.Sub(certificate.NotBefore)
}

// renew-before: a volume whose SVIDs live for four minutes and are renewed 215 s
// before their end has a new one after less than half a minute.
func testAVolumeIsRenewedWhenItsPodChose(t *testing.T) {
	t.Parallel()
	ctx := needCluster(t, testTimeout)
	ns := newNamespace(ctx, t)
	pod := runPod(ctx, t, ns, podSpec{
		Name: "app", Args: []string{"hold"}, Attributes: chosen(map[string]string{"duration": "4m", "renew-before": "215s"}),
	})
	began := time.Now()
	var serials []string
	follow(ctx, t, pod, func(line said) bool {
		if line.OwnSerial != "" {
			serials = appendNew(serials, line.OwnSerial)
		}
		return len(serials) > 1
	})
	if took := time.Since(began); took > 40*time.Second {
		t.Errorf("the first renewal came after %s, want about 25 s", took)
	}
}

func testAttributesThatCannotBeHadAreNamed(t *testing.T) {
	t.Parallel()
	ctx := needCluster(t, testTimeout)
	ns := newNamespace(ctx, t)
	for i, c := range []struct {
		attributes map[string]string
		name       string
		says       string
	}{
		{map[string]string{"delivery": "sock"}, "delivery", `"both", "files" or "socket"`},
		{map[string]string{"wait": "no"}, "wait", `"true" or "false"`},
		{map[string]string{"key-type": "P-521"}, "key-type", "P-256, P-384, Ed25519"},
		{map[string]string{"duration": "11m"}, "duration", "from 30s to 10m0s"},
		{map[string]string{"renew-before": "1h"}, "renew-before", "nine tenths"},
		{map[string]string{"file-name-key": "../x"}, "file-name-key", "plain file name"},
		{map[string]string{"file-name-key": "tls.crt"}, "file-name-key", "another file"},
		{map[string]string{"delivery": "files", "file-name-socket": "x"}, "file-name-socket", "no effect"},
		{map[string]string{"dns-names": "a.example,*.example"}, "dns-names", "without wildcards"},
		{map[string]string{"uri-names": "a.example"}, "uri-names", "is not known"},
	} {
		t.Run(fmt.Sprint(c.attributes), func(t *testing.T) {
			t.Parallel()
			pod := createPod(ctx, t, ns, podSpec{Name: fmt.Sprint("app-", i), Attributes: chosen(c.attributes)})
			waitEvent(ctx, t, pod, install.DriverName+"/"+c.name, c.says)
		})
	}
}

// What the agent lets through is not what counts. A pod that waits does not
// start; one that does not wait runs, and has nothing.
func testTheApproverHasBoundsOfItsOwn(t *testing.T) {
	t.Parallel()
	ctx := needCluster(t, testTimeout)
	ns := newNamespace(ctx, t)
	pod := createPod(ctx, t, ns, podSpec{Name: "waits", Attributes: chosen(map[string]string{"duration": "6m"})})
	waitEvent(ctx, t, pod, `rule "duration"`, "from 30s to 5m0s")

	pod = runPod(ctx, t, ns, podSpec{Name: "does-not", Attributes: chosen(map[string]string{"duration": "6m", "wait": "false"})})
	if got := shown(ctx, t, pod); !slices.Equal(got, []string{"spiffe.sock"}) {
		t.Errorf("the volume shows %q, want the socket alone", got)
	}
	if out, err := execute(ctx, pod, "app", "fetch", "--timeout=2s"); err == nil {
		t.Errorf("got %s", out)
	}
}

// wait=false, with no approver to be had: the pod runs, its stream is held, and
// an agent that is replaced meanwhile goes on. The SVID reaches stream and files
// when the approver is back.
func testAPodThatDoesNotWait(t *testing.T) {
	ctx := needCluster(t, rotationTimeout)
	ns := newNamespace(ctx, t)
	scale := scaleApprover(ctx, t, 0)
	defer scaleApprover(context.WithoutCancel(ctx), t, scale)
	err := install.AwaitNone(ctx, install.Selection{
		Client: env.Kube.CoreV1().RESTClient(), Resource: "pods", Namespace: install.Namespace, What: "the approvers to be gone",
	}, func(pod *corev1.Pod) bool { return strings.HasPrefix(pod.Name, install.ApproverName) })
	if err != nil {
		t.Fatal(err)
	}
	pod := runPod(ctx, t, ns, podSpec{Name: "app", Node: nodeOne, Attributes: chosen(map[string]string{"wait": "false"})})
	if got := shown(ctx, t, pod); !slices.Equal(got, []string{"spiffe.sock"}) {
		t.Errorf("before there is an SVID the volume shows %q, want the socket alone", got)
	}
	if out, err := execute(ctx, pod, "app", "fetch", "--timeout=2s"); err == nil {
		t.Errorf("got %s without an approver", out)
	}
	before := mustAgentOn(ctx, t, nodeOne)
	deletePod(ctx, t, before)
	waitAgentOther(ctx, t, before.UID)

	held := make(chan []byte, 1)
	failed := make(chan error, 1)
	go func() {
		out, err := execute(ctx, pod, "app", "fetch", "--timeout=90s")
		held <- out
		failed <- err
	}()
	scaleApprover(ctx, t, scale)
	out := <-held
	if err := <-failed; err != nil {
		t.Fatalf("%v\n%s", err, describePod(ctx, ns, "app"))
	}
	got := decodeJSON[fetched](t, out)
	t.Logf("the stream had its SVID after %.0f ms", got.ReadyMS)
	checkFiles(ctx, t, pod, spiffeID(ns, "default"), fetch(ctx, t, pod).Serial)
	if err := env.WaitReady(ctx); err != nil {
		t.Error(err)
	}
}

// waitAgentOther waits for an agent on the first node that is another pod than
// the given one, and ready.
func waitAgentOther(ctx context.Context, t *testing.T, not types.UID) {
	t.Helper()
	_, err := install.Await(ctx, install.Selection{
		Client: env.Kube.CoreV1().RESTClient(), Resource: "pods", Namespace: install.Namespace, What: "the next agent on " + nodeOne,
	}, func(pod *corev1.Pod, deleted bool) error {
		if deleted || pod.UID == not || pod.Spec.NodeName != nodeOne || !strings.HasPrefix(pod.Name, install.AgentName) || !install.Ready(pod) {
			return fmt.Errorf("%s is not it", pod.Name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
