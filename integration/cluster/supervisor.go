// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"
)

// bringUpTimeout bounds the whole of bringing a cluster up, binaries apart.
const bringUpTimeout = 4 * time.Minute

// report is one line on the progress pipe.
type report struct {
	// Progress is a step that has been reached.
	Progress string `json:",omitempty"`
	// Ready is said once, with all up.
	Ready bool `json:",omitempty"`
	// Error ends the cluster.
	Error string `json:",omitempty"`
}

// reporter writes reports. The reader may have gone away, which is no concern
// of the writer's.
type reporter struct {
	mu sync.Mutex
	w  io.Writer
}

func (r *reporter) report(line report) {
	encoded, err := json.Marshal(line)
	if err != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	_, _ = r.w.Write(append(encoded, '\n'))
}

func (r *reporter) progress(format string, args ...any) {
	r.report(report{Progress: fmt.Sprintf(format, args...)})
}

// supervisor is PID 1 of a cluster's namespaces. It runs the control plane and
// starts the nodes.
type supervisor struct {
	plan
	*reporter
	paths  controlPlanePaths
	reaper *reaper
	set    *componentSet
	pki    *clusterPKI

	// mu guards nodes.
	mu    sync.Mutex
	nodes map[string]*runningNode
}

// runningNode is a node's PID 1.
type runningNode struct {
	index    int
	pid      int
	lifeline *os.File
	ended    <-chan struct{}
}

func supervisorMain() error {
	lifeline := bufio.NewReader(inherited(fdLifeline, "lifeline"))
	progress := inherited(fdProgress, "progress")
	listenerFile := inherited(fdListener, "listener")
	var p plan
	if err := receive(lifeline, &p); err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(io.Discard, lifeline)
		lastWill(p)
	}()
	s := &supervisor{
		plan:     p,
		reporter: &reporter{w: progress},
		paths:    controlPlanePaths{root: privateDir(p.StateDir)},
		nodes:    map[string]*runningNode{},
	}
	if err := s.bringUp(listenerFile); err != nil {
		s.report(report{Error: err.Error()})
		return err
	}
	s.report(report{Ready: true})
	if err := progress.Close(); err != nil {
		return err
	}
	select {} // until the lifeline ends or the janitor kills this
}

// lastWill is what happens when the janitor has been killed: the cluster ends
// and removes itself as the janitor would have done.
func lastWill(p plan) {
	ctx, cancel := context.WithTimeout(context.Background(), cleanUpTimeout)
	defer cancel()
	// PID 1 cannot kill itself so, but everything else in its namespace.
	_ = syscall.Kill(-1, syscall.SIGKILL)
	err := errors.Join(
		moveProcess(os.Getpid(), "."),
		removeCgroups(ctx, clusterCgroup(p.Name)),
		syscall.Unmount(privateDir(p.StateDir), syscall.MNT_DETACH),
		removeStateDir(p.StateDir),
	)
	if err != nil {
		fmt.Fprintln(os.Stderr, "clean up after the janitor:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func (s *supervisor) bringUp(listenerFile *os.File) error {
	ctx, cancel := context.WithTimeoutCause(context.Background(), bringUpTimeout, fmt.Errorf("cluster %s not up after %s", s.Name, bringUpTimeout))
	defer cancel()

	if err := s.setUp(); err != nil {
		return err
	}
	if err := s.forwardAPI(listenerFile); err != nil {
		return err
	}
	s.set = newComponentSet(s.reaper, s.controlPlane(s.paths))
	if err := s.serve(); err != nil {
		return err
	}

	// What ends by itself now ends all; afterwards it is for whoever uses the
	// cluster to notice.
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	go func() {
		select {
		case err := <-s.set.failed:
			fail(err)
		case <-ctx.Done():
		}
	}()
	return s.start(ctx, fail)
}

// setUp prepares mounts, network, certificates and files.
func (s *supervisor) setUp() error {
	if err := syscall.Sethostname([]byte(s.Name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := setUpSupervisorMounts(s.paths.root); err != nil {
		return err
	}
	if err := setUpControlPlaneNetwork(); err != nil {
		return err
	}
	s.reaper = newReaper()
	if err := os.Mkdir(s.paths.tmp(), 0o700); err != nil {
		return err
	}
	pki, err := newClusterPKI()
	if err != nil {
		return err
	}
	s.pki = pki
	if err := s.pki.write(s.paths); err != nil {
		return err
	}
	config, err := schedulerConfig(s.paths)
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.paths.schedulerConfig(), config, 0o600); err != nil {
		return err
	}
	admin, err := kubeconfig("https://127.0.0.1:"+strconv.Itoa(s.Port), s.pki.ca.certPEM, "admin", s.pki.admin)
	if err != nil {
		return err
	}
	return os.WriteFile(kubeconfigPath(s.StateDir), admin, 0o600)
}

// forwardAPI passes connections from the host on to the API server. The
// listener was made in the host's network namespace and stays there, although
// this process is in another.
func (s *supervisor) forwardAPI(file *os.File) error {
	listener, err := net.FileListener(file)
	if err != nil {
		return fmt.Errorf("take over the listener: %w", err)
	}
	if err := file.Close(); err != nil {
		return fmt.Errorf("take over the listener: %w", err)
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				fmt.Fprintln(os.Stderr, "accept:", err)
				return
			}
			go forwardConn(conn, net.JoinHostPort("127.0.0.1", strconv.Itoa(apiServerPort)))
		}
	}()
	return nil
}

// forwardConn copies in both directions until both have ended.
func forwardConn(client net.Conn, address string) {
	defer client.Close()
	server, err := net.Dial("tcp", address)
	if err != nil {
		return // the client sees its connection closed, as with a server that is down
	}
	defer server.Close()
	var both sync.WaitGroup
	oneWay := func(to, from net.Conn) {
		_, _ = io.Copy(to, from)
		if half, ok := to.(*net.TCPConn); ok {
			_ = half.CloseWrite()
		}
	}
	both.Go(func() { oneWay(server, client) })
	both.Go(func() { oneWay(client, server) })
	both.Wait()
}

// supervisorStatus is the answer to GET /status.
type supervisorStatus struct {
	Components []ComponentStatus
	// Nodes maps the name of each running node to the number of its init
	// process in the supervisor's PID namespace.
	Nodes map[string]int
}

func (s *supervisor) serve() error {
	mux := http.NewServeMux()
	handleComponents(mux, s.set, func(ctx context.Context) any {
		out := supervisorStatus{Components: s.set.status(""), Nodes: map[string]int{}}
		s.mu.Lock()
		for name, n := range s.nodes {
			out.Nodes[name] = n.pid
		}
		s.mu.Unlock()
		for name := range out.Nodes {
			var components []ComponentStatus
			if err := s.node(name).call(ctx, http.MethodGet, "/status", nil, &components); err == nil {
				out.Components = append(out.Components, components...)
			}
		}
		return out
	})
	mux.HandleFunc("POST /nodes/{name}/{operation}", func(w http.ResponseWriter, r *http.Request) {
		name := r.PathValue("name")
		var err error
		switch op := r.PathValue("operation"); op {
		case "kill":
			err = s.killNode(r.Context(), name)
		case "start":
			err = s.restartNode(r.Context(), name)
		default:
			err = fmt.Errorf("%q is not something to do with a node", op)
		}
		answer(w, struct{}{}, err)
	})
	return serveControl(supervisorSocket(s.StateDir), mux)
}

func (s *supervisor) node(name string) controlClient {
	return controlClient{socket: nodeSocket(s.StateDir, name)}
}

// start starts everything in the order of dependence, in parallel where there
// is none, and returns when all is ready.
func (s *supervisor) start(ctx context.Context, fail func(error)) error {
	began := time.Now()
	for _, name := range []string{componentEtcd, componentAPIServer} {
		if err := s.set.start(name); err != nil {
			return err
		}
	}
	nodes, nodesCtx := errgroup.WithContext(ctx)
	for i := range s.Nodes {
		nodes.Go(func() error { return s.prepareNode(nodesCtx, i+1, fail) })
	}
	client, err := s.waitForAPIServer(ctx)
	if err != nil {
		return because(ctx, err)
	}
	s.progress("API server ready after %s", time.Since(began).Round(100*time.Millisecond))
	for _, name := range []string{componentControllerManager, componentScheduler} {
		if err := s.set.start(name); err != nil {
			return err
		}
	}
	if err := nodes.Wait(); err != nil {
		return because(ctx, err)
	}

	rest, restCtx := errgroup.WithContext(ctx)
	for i := range s.Nodes {
		name := nodeName(i + 1)
		rest.Go(func() error {
			if err := s.startKubelet(restCtx, name); err != nil {
				return err
			}
			if err := waitForNode(restCtx, client, name); err != nil {
				return err
			}
			s.progress("%s ready after %s", name, time.Since(began).Round(100*time.Millisecond))
			return nil
		})
	}
	rest.Go(func() error {
		if err := s.installCertManager(restCtx, client); err != nil {
			return err
		}
		s.progress("cert-manager ready after %s", time.Since(began).Round(100*time.Millisecond))
		return nil
	})
	rest.Go(func() error { return waitForDefaultServiceAccount(restCtx, client) })
	return because(ctx, rest.Wait())
}

// because prefers the reason for which a context ended (a component that
// died) over the complaint of whoever was interrupted by it.
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	return err
}

// waitForAPIServer waits until /readyz says ok and returns a client.
func (s *supervisor) waitForAPIServer(ctx context.Context) (*rest.Config, error) {
	config := &rest.Config{
		Host: "https://127.0.0.1:" + strconv.Itoa(apiServerPort),
		TLSClientConfig: rest.TLSClientConfig{
			CAData: s.pki.ca.certPEM, CertData: s.pki.admin.certPEM, KeyData: s.pki.admin.keyPEM,
		},
		QPS: -1,
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.pki.ca.certPEM)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	defer client.CloseIdleConnections()
	err := retry(ctx, 100*time.Millisecond, func(ctx context.Context) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, config.Host+"/readyz", nil)
		if err != nil {
			return err
		}
		response, err := client.Do(request)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil {
			return err
		}
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s", response.Status, tail(bytes.TrimSpace(body), 3))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("wait for the API server: %w", err)
	}
	return config, nil
}

// prepareNode starts a node's init and containerd, and loads the pause image.
func (s *supervisor) prepareNode(ctx context.Context, i int, fail func(error)) error {
	if err := s.spawnNode(i); err != nil {
		return err
	}
	client := s.node(nodeName(i))
	if err := waitForSocket(ctx, client.socket); err != nil {
		return fmt.Errorf("wait for %s (see %s): %w", nodeName(i), s.nodeLog(i), err)
	}
	go func() {
		err := client.call(ctx, http.MethodGet, "/failure", nil, nil)
		if err != nil && ctx.Err() == nil {
			fail(fmt.Errorf("%s: %w", nodeName(i), err))
		}
	}()
	archive := new(bytes.Buffer)
	image := Image{Ref: pauseImage, Binary: s.Binaries[componentPause]}
	if err := BuildImage(archive, image); err != nil {
		return err
	}
	if err := client.post(ctx, imagePath(pauseImage), archive); err != nil {
		return fmt.Errorf("%s: %w", nodeName(i), err)
	}
	return nil
}

func (s *supervisor) startKubelet(ctx context.Context, name string) error {
	for _, c := range []string{componentKubelet, componentProxy} {
		if err := s.node(name).post(ctx, "/components/"+c+"/start", nil); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func (s *supervisor) nodeLog(i int) string {
	return filepath.Join(s.LogDir, nodeName(i), "node.log")
}

// spawnNode starts a node's PID 1 in namespaces of its own, connects it, and
// tells it what to be.
func (s *supervisor) spawnNode(i int) error {
	config, err := s.nodeConfig(i)
	if err != nil {
		return err
	}
	log, err := openLog(s.nodeLog(i))
	if err != nil {
		return fmt.Errorf("start %s: %w", nodeName(i), err)
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return fmt.Errorf("start %s: %w", nodeName(i), err)
	}
	defer null.Close()
	read, write, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start %s: %w", nodeName(i), err)
	}
	defer read.Close()
	cmd := reexec(roleNode, s.Name+"/"+nodeName(i))
	pid, status, err := s.reaper.start(cmd.Path, cmd.Args, &os.ProcAttr{
		Dir: cmd.Dir, Env: cmd.Env,
		Files: []*os.File{null, log, log, read},
		Sys: &syscall.SysProcAttr{
			Setsid:     true,
			Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
		},
	})
	if err != nil {
		return fmt.Errorf("start %s: %w", nodeName(i), errors.Join(err, write.Close()))
	}
	ended := make(chan struct{})
	node := &runningNode{index: i, pid: pid, lifeline: write, ended: ended}
	s.mu.Lock()
	s.nodes[nodeName(i)] = node
	s.mu.Unlock()
	go func() {
		<-status
		s.mu.Lock()
		delete(s.nodes, nodeName(i))
		s.mu.Unlock()
		_ = node.lifeline.Close()
		close(ended)
	}()
	if err := connectNode(i, pid); err != nil {
		return err
	}
	if err := send(write, config); err != nil {
		return fmt.Errorf("start %s: %w", nodeName(i), err)
	}
	return nil
}

func (s *supervisor) nodeConfig(i int) (nodeConfig, error) {
	logs := filepath.Join(s.LogDir, nodeName(i))
	if err := os.MkdirAll(logs, 0o755); err != nil {
		return nodeConfig{}, fmt.Errorf("configure %s: %w", nodeName(i), err)
	}
	exposed := []string{socketDir(s.StateDir), logs}
	bin := filepath.Dir(s.Binaries[componentKubelet])
	if top, _, _ := strings.Cut(strings.TrimPrefix(bin, "/"), "/"); notFromHost[top] {
		exposed = append(exposed, bin)
	}
	files, err := s.nodeFiles(i)
	if err != nil {
		return nodeConfig{}, fmt.Errorf("configure %s: %w", nodeName(i), err)
	}
	cni, err := cniConfig(i)
	if err != nil {
		return nodeConfig{}, fmt.Errorf("configure %s: %w", nodeName(i), err)
	}
	return nodeConfig{
		Index: i, Nodes: s.Nodes,
		NewRoot: s.paths.root,
		Exposed: exposed,
		Socket:  nodeSocket(s.StateDir, nodeName(i)),
		Files:   files, CNI: cni,
		Components: s.nodeComponents(i),
		Ctr:        s.Binaries[componentCtr],
		Shim:       s.Binaries[componentShim],
	}, nil
}

// nodeFiles renders and signs what goes into nodeConfigDir.
func (s *supervisor) nodeFiles(i int) (map[string][]byte, error) {
	server := "https://" + net.JoinHostPort(controlPlaneIP, strconv.Itoa(apiServerPort))
	ca := s.pki.ca
	kubeletClient, err := ca.client("system:node:"+nodeName(i), "system:nodes")
	if err != nil {
		return nil, err
	}
	kubeletServer, err := ca.server(nodeName(i), nodeName(i), nodeIP(i))
	if err != nil {
		return nil, err
	}
	proxyClient, err := ca.client("system:kube-proxy")
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{
		"ca.crt":          ca.certPEM,
		"kubelet.crt":     kubeletServer.certPEM,
		"kubelet.key":     kubeletServer.keyPEM,
		"containerd.toml": []byte(containerdConfig(s.Programs, s.Binaries[componentShim])),
	}
	if files["kubelet.kubeconfig"], err = kubeconfig(server, ca.certPEM, "kubelet", kubeletClient); err != nil {
		return nil, err
	}
	if files["kube-proxy.kubeconfig"], err = kubeconfig(server, ca.certPEM, "kube-proxy", proxyClient); err != nil {
		return nil, err
	}
	if files["kubelet.yaml"], err = s.kubeletConfig(i); err != nil {
		return nil, err
	}
	if files["kube-proxy.yaml"], err = kubeProxyConfig(i); err != nil {
		return nil, err
	}
	return files, nil
}

// killNode ends a node as a power cut would: everything on it is gone at once,
// its disk included.
func (s *supervisor) killNode(ctx context.Context, name string) error {
	s.mu.Lock()
	node, ok := s.nodes[name]
	s.mu.Unlock()
	if !ok {
		return fmt.Errorf("kill %s: there is no such node, or it is not running", name)
	}
	if err := syscall.Kill(node.pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill %s: %w", name, err)
	}
	select {
	case <-node.ended:
	case <-ctx.Done():
		return fmt.Errorf("kill %s: %w", name, context.Cause(ctx))
	}
	if err := disconnectNode(node.index); err != nil {
		return err
	}
	if err := removeCgroups(ctx, nodeCgroup(s.Name, node.index)); err != nil {
		return fmt.Errorf("kill %s: %w", name, err)
	}
	return nil
}

// restartNode starts a node that was killed, with an empty disk.
func (s *supervisor) restartNode(ctx context.Context, name string) error {
	for i := range s.Nodes {
		if nodeName(i+1) != name {
			continue
		}
		s.mu.Lock()
		_, running := s.nodes[name]
		s.mu.Unlock()
		if running {
			return fmt.Errorf("start %s: it is running already", name)
		}
		if err := createCgroups(s.plan); err != nil {
			return err
		}
		ignore := func(error) {}
		if err := s.prepareNode(ctx, i+1, ignore); err != nil {
			return err
		}
		return s.startKubelet(ctx, name)
	}
	return fmt.Errorf("start %s: there is no such node", name)
}
