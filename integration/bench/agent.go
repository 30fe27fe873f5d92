// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/signet-spiffe/signet/integration/install"
)

const (
	// agentAddress is in the node's own network namespace, where the agents of the
	// DaemonSet, which have one each, do not meet it.
	agentAddress = "127.0.0.1:19809"
	// agentMetrics names the counter of the agent's requests to the API server.
	agentRequests = "signet_agent_api_requests_total"
	issuances     = "signet_agent_issuances_total"
	// startTimeout bounds the start of an agent on a loaded machine.
	startTimeout = 30 * time.Second
)

// agent is one life of the real agent.
type agent struct {
	layout layout
	pid    int
	// began is when the process was started.
	began time.Time
	// ended is closed when the process has ended; err is how.
	ended chan struct{}
	err   error
}

// startAgent starts binary with the arguments of deploy/manifests, but for paths
// and the node's name; extra come on top.
func startAgent(binary string, l layout, extra ...string) (*agent, error) {
	log, err := os.OpenFile(l.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(binary, append([]string{
		"--kubeconfig=" + l.kubeconfig(),
		"--csi-driver-name=" + install.DriverName,
		"--node-id=" + nodeID,
		"--endpoint=unix://" + l.csi(),
		"--data-root=" + l.plugins(),
		"--registration-dir=" + l.registration(),
		"--kubelet-root-dir=" + l.kubelet(),
		"--trust-domain=" + trustDomain,
		"--issuer-name=" + install.IssuerName,
		"--issuer-kind=ClusterIssuer",
		"--issuer-group=cert-manager.io",
		"--certificate-request-duration=" + lifetime.String(),
		"--requester=agent",
		"--http-bind-address=" + agentAddress,
		"--log-format=json",
	}, extra...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	a := &agent{layout: l, ended: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // Pdeathsig is tied to the thread.
		defer runtime.UnlockOSThread()
		a.began = time.Now()
		err := cmd.Start()
		started <- err
		if err == nil {
			a.err = cmd.Wait()
			close(a.ended)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start the agent: %w", err)
	}
	a.pid = cmd.Process.Pid
	return a, nil
}

// kill is kill -9. It returns when the process is gone.
func (a *agent) kill() {
	_ = syscall.Kill(a.pid, syscall.SIGKILL)
	<-a.ended
}

// ready registers the agent as kubelet does, and waits until it says that it is
// ready: /readyz has no other way to be asked.
func (a *agent) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := a.register(ctx); err != nil {
		return a.explain(fmt.Errorf("register the agent: %w", err))
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := a.get(ctx, "/readyz")
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-a.ended:
			return a.explain(fmt.Errorf("the agent ended: %w", a.err))
		case <-ctx.Done():
			return a.explain(fmt.Errorf("wait for the agent to be ready: %w", err))
		}
	}
}

// register tells the agent that kubelet knows it.
func (a *agent) register(ctx context.Context) error {
	socket := filepath.Join(a.layout.registration(), install.DriverName+"-reg.sock")
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()), quickly())
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = registerapi.NewRegistrationClient(conn).NotifyRegistrationStatus(ctx, &registerapi.RegistrationStatus{PluginRegistered: true}, grpc.WaitForReady(true))
	return err
}

// explain adds the end of the agent's log to an error.
func (a *agent) explain(err error) error {
	content, readErr := os.ReadFile(a.layout.log())
	if readErr != nil {
		return errors.Join(err, readErr)
	}
	const most = 4 << 10
	return fmt.Errorf("%w; its log ends:\n%s", err, bytes.TrimSpace(content[max(0, len(content)-most):]))
}

// get asks the agent's HTTP server, on a connection of its own, as kubelet does.
func (a *agent) get(ctx context.Context, path string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+agentAddress+path, nil)
	if err != nil {
		return nil, err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s: %s", path, response.Status, bytes.TrimSpace(body))
	}
	return body, nil
}

func (a *agent) metrics(ctx context.Context) (Metrics, error) {
	text, err := a.get(ctx, "/metrics")
	if err != nil {
		return nil, fmt.Errorf("read the agent's metrics: %w", err)
	}
	return ParseMetrics(text)
}

// await waits until the agent's metrics are as done wants them. There is no way to
// watch them; the pause is long enough for the asking to cost next to nothing.
func (a *agent) await(ctx context.Context, limit time.Duration, what string, done func(Metrics) bool) (Metrics, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		m, err := a.metrics(ctx)
		if err == nil && done(m) {
			return m, nil
		}
		select {
		case <-tick.C:
		case <-a.ended:
			return nil, a.explain(fmt.Errorf("wait for %s: the agent ended: %w", what, a.err))
		case <-ctx.Done():
			return nil, a.explain(errors.Join(fmt.Errorf("wait for %s: %w", what, context.Cause(ctx)), err))
		}
	}
}

// rest waits until every request that the agent made is deleted: until nothing of
// what was asked of it is still under way. Its Events about good news come at
// their own pace, two a second.
func (a *agent) rest(ctx context.Context) (Metrics, error) {
	return a.await(ctx, 2*time.Minute, "the agent to come to rest", func(m Metrics) bool {
		return atRest(m)
	})
}

// atRest says that nothing is under way: each CertificateRequest was deleted.
func atRest(m Metrics) bool {
	made := m.Sum(agentRequests, "verb=create", "resource=certificaterequests", "code=201")
	deleted := m.Sum(agentRequests, "verb=delete", "resource=certificaterequests", "code=200") +
		m.Sum(agentRequests, "verb=delete", "resource=certificaterequests", "code=404")
	return made == deleted && m.Sum("signet_agent_issuances_running") == 0 &&
		m.Sum("signet_agent_issuances_waiting") == 0
}

// probe asks what kubelet would, as often as the manifests say, until ctx ends.
func (a *agent) probe(ctx context.Context) {
	readiness, liveness := time.NewTicker(2*time.Second), time.NewTicker(10*time.Second)
	defer readiness.Stop()
	defer liveness.Stop()
	for {
		// What they answer is not of interest here; an agent that ends is noticed
		// by whoever reads its CPU time.
		select {
		case <-ctx.Done():
			return
		case <-readiness.C:
			_, _ = a.get(ctx, "/readyz")
		case <-liveness.C:
			_, _ = a.get(ctx, "/healthz")
		}
	}
}
