// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/signet-spiffe/signet/agent/workload"
	"github.com/signet-spiffe/signet/internal/observe"
	"github.com/signet-spiffe/signet/internal/pki"
	"github.com/signet-spiffe/signet/internal/request"
	"github.com/signet-spiffe/signet/workloadapi"
)

const kubeconfig = `{"apiVersion":"v1","kind":"Config","current-context":"c",
"clusters":[{"name":"k","cluster":{"server":"https://127.0.0.1:1"}}],
"contexts":[{"name":"c","context":{"cluster":"k","user":"u"}}],"users":[{"name":"u","user":{"token":"t"}}]}`

func writeKubeconfig(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(file, []byte(kubeconfig), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// parse runs the command line up to the point where the agent would start.
func parse(t *testing.T, args ...string) (*options, error) {
	t.Helper()
	var got *options
	command := newCommand(func(_ context.Context, o *options) error { got = o; return nil }, args)
	err := command.ExecuteContext(t.Context())
	return got, err
}

func TestFlagDefaults(t *testing.T) {
	o, err := parse(t, "--node-id=node-1", "--kubeconfig="+writeKubeconfig(t))
	if err != nil {
		t.Fatal(err)
	}
	for name, pair := range map[string][2]any{
		"driver":       {o.driverName, "spiffe.csi.cert-manager.io"},
		"endpoint":     {o.endpoint, "unix:///var/lib/kubelet/plugins/spiffe.csi.cert-manager.io/csi.sock"},
		"data root":    {o.dataRoot, "/var/lib/kubelet/plugins"},
		"registration": {o.registrationDir, "/var/lib/kubelet/plugins_registry"},
		"kubelet":      {o.kubeletRoot, "/var/lib/kubelet"},
		"trust domain": {o.trustDomain.Name(), "cluster.local"},
		"issuer":       {o.issuerName + "/" + o.issuerKind + "/" + o.issuerGroup, "my-spiffe-ca/ClusterIssuer/cert-manager.io"},
		"duration":     {o.duration, time.Hour},
		"durations":    {o.durations, durationRange{time.Hour, time.Hour}},
		"requester":    {o.requester, request.RequesterAgent},
		"key type":     {o.keyType, pki.P256},
		"limits":       {o.concurrency, workload.Limits{Issuances: 256, Renewals: 64}},
		"reissue":      {o.reissueWindow, 5 * time.Minute},
		"workload API": {o.workloadAPI, workloadapi.Limits{Connections: 100, RPCs: 1000, Rate: 4000, AllConnections: 8192, AllRPCs: 16384}},
		"files":        {o.files, fileNames{"tls.crt", "tls.key", "ca.crt", "spiffe.sock"}},
		"admin":        {o.adminSocket, "/run/signet/spiffe.csi.cert-manager.io/admin.sock"},
		"QPS":          {o.restConfig.QPS, float32(-1)},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s is %v, want %v", name, pair[0], pair[1])
		}
	}
}

// Every bad flag is one line that names the flag, and exit code 2.
func TestBadFlags(t *testing.T) {
	for _, arg := range []string{
		"--csi-driver-name=", "--csi-driver-name=a/b", "--csi-driver-name=-a", "--csi-driver-name=" + strings.Repeat("a", 64),
		"--node-id=", "--node-id=Node_1",
		"--endpoint=tcp://127.0.0.1:1", "--endpoint=/run/csi.sock",
		"--data-root=", "--registration-dir=", "--kubelet-root-dir=",
		"--trust-domain=", "--trust-domain=Example.Org", "--trust-domain=spiffe://example.org", "--trust-domain=example.org/path", "--trust-domain=a b",
		"--issuer-name=", "--issuer-kind=", "--issuer-group=",
		"--runtime-issuance-config-map-namespace=a.b",
		"--certificate-request-duration=0", "--certificate-request-duration=-1h", "--certificate-request-duration=29s", "--certificate-request-duration=soon",
		"--certificate-request-duration-min=29s", "--certificate-request-duration-min=61m", "--certificate-request-duration-min=-1s", "--certificate-request-duration-max=59m", "--certificate-request-duration-max=x",
		"--extra-certificate-request-annotations=spiffe.csi.cert-manager.io/identity=x", "--extra-certificate-request-annotations=a/b/c=x", "--extra-certificate-request-annotations=x",
		"--requester=node", "--key-type=P-521", "--key-type=rsa", "--publish-timeout=0s", "--certificate-request-retention=-1", "--certificate-request-retention=101", "--max-concurrent-issuances=0", "--max-concurrent-renewals=-1", "--reissue-window=-1s", "--reissue-window=25h", "--publish-timeout=3m",
		"--file-name-certificate=", "--file-name-key=../tls.key", "--file-name-ca=..data", "--file-name-socket=a/b", "--file-name-key=tls.crt", "--file-name-socket=-x",
		"--admin-socket-path=admin.sock", "--admin-socket-path=/var/lib/kubelet/pods/x/admin.sock", "--admin-socket-path=/var/lib/kubelet/plugins_registry/admin.sock", "--admin-socket-path=/var/lib/kubelet/plugins/spiffe.csi.cert-manager.io/admin.sock",
		"--workload-api-max-connections=0", "--workload-api-max-streams=-1", "--workload-api-rate=NaN", "--workload-api-rate=0.5", "--workload-api-rate=x",
		"--workload-api-max-connections-node=1000001", "--workload-api-max-streams-node=0",
		"--http-bind-address=9809", "--log-level=9", "--log-format=xml", "--no-such-flag",
	} {
		t.Run(arg, func(t *testing.T) {
			_, err := parse(t, "--node-id=node-1", "--kubeconfig="+writeKubeconfig(t), arg)
			if err == nil && strings.HasPrefix(arg, "--log") {
				_, err = observe.NewLogger(os.Stderr, mustParse(t, arg).log)
			}
			var usage *observe.UsageError
			if !errors.As(err, &usage) {
				t.Fatalf("%v, want a usage error", err)
			}
			flag, _, _ := strings.Cut(arg, "=")
			if !strings.Contains(err.Error(), flag) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%q is not one line that names %s", err, flag)
			}
		})
	}
}

func TestRuntimeIssuerFlags(t *testing.T) {
	base := []string{"--node-id=node-1", "--kubeconfig=" + writeKubeconfig(t)}
	o, err := parse(t, append(base, "--issuer-name=", "--runtime-issuance-config-map-name=cm", "--runtime-issuance-config-map-namespace=ns")...)
	if err != nil || o.runtimeIssuer != (runtimeIssuer{"cm", "ns"}) || o.staticIssuer().Name != "" {
		t.Errorf("%+v, %v", o, err)
	}
	for _, args := range [][]string{
		{"--runtime-issuance-config-map-name=cm"}, // In which namespace?
		{"--runtime-issuance-config-map-name=a_b", "--runtime-issuance-config-map-namespace=ns"},
	} {
		var usage *observe.UsageError
		if _, err := parse(t, append(base, args...)...); !errors.As(err, &usage) {
			t.Errorf("%q: %v, want a usage error", args, err)
		}
	}
}

func TestWatchPodsIsForRequesterAgent(t *testing.T) {
	base := []string{"--node-id=node-1", "--kubeconfig=" + writeKubeconfig(t)}
	if o, err := parse(t, base...); err != nil || o.watchPods {
		t.Errorf("by default: %+v, %v, want it off", o.watchPods, err)
	}
	if o, err := parse(t, append(base, "--watch-pods")...); err != nil || !o.watchPods {
		t.Errorf("switched on: %v", err)
	}
	for _, other := range []string{"--requester=pod", "--use-own-service-account=false"} {
		_, err := parse(t, append(base, "--watch-pods", other)...)
		var usage *observe.UsageError
		if !errors.As(err, &usage) || !strings.Contains(err.Error(), "--watch-pods") {
			t.Errorf("with %s: %v, want a usage error", other, err)
		}
	}
}

func mustParse(t *testing.T, arg string) *options {
	t.Helper()
	o, err := parse(t, "--node-id=node-1", "--kubeconfig="+writeKubeconfig(t), arg)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestPredecessorsSpellingOfRequester(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want request.Requester
	}{
		{[]string{"--use-own-service-account"}, request.RequesterAgent},
		{[]string{"--use-own-service-account=false"}, request.RequesterPod},
		{[]string{"--use-own-service-account=false", "--requester=pod"}, request.RequesterPod},
		{[]string{"--use-own-service-account=false", "--requester=agent"}, ""},
		{[]string{"--use-own-service-account=true", "--requester=pod"}, ""},
	} {
		o, err := parse(t, append(tt.args, "--node-id=node-1", "--kubeconfig="+writeKubeconfig(t))...)
		if tt.want == "" {
			if err == nil {
				t.Errorf("%q: want an error", tt.args)
			}
			continue
		}
		if err != nil || o.requester != tt.want {
			t.Errorf("%q: %v, want requester %s", tt.args, err, tt.want)
		}
	}
}

func TestExitCodes(t *testing.T) {
	good := []string{"--node-id=node-1", "--kubeconfig=" + writeKubeconfig(t)}
	broken := func(context.Context, *options) error { return errors.New("broken") }
	fine := func(context.Context, *options) error { return nil }
	if code := execute(t.Context(), good, fine); code != 0 {
		t.Errorf("success: exit code %d", code)
	}
	if code := execute(t.Context(), good, broken); code != exitFailure {
		t.Errorf("failure: exit code %d, want %d", code, exitFailure)
	}
	if code := execute(t.Context(), append(good, "--key-type=x"), fine); code != exitUsage {
		t.Errorf("bad flag: exit code %d, want %d", code, exitUsage)
	}
	if code := execute(t.Context(), []string{"--node-id=n", "--kubeconfig=/does/not/exist"}, fine); code != exitUsage {
		t.Errorf("no kubeconfig: exit code %d, want %d", code, exitUsage)
	}
}
