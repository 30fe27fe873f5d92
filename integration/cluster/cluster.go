// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Cluster is a running cluster. Its methods are safe for concurrent use.
type Cluster struct {
	record record
	config *rest.Config
	// owner is set by Up and not by Attach.
	owner *owner
}

// owner is the parent's end of the janitor.
type owner struct {
	// mu guards lifeline, which is nil once the cluster has been ended or
	// detached, and detached.
	mu       sync.Mutex
	lifeline *os.File
	detached bool
	// ended is closed when the janitor has ended; err is why, if it is not
	// because it was asked to and all went well.
	ended chan struct{}
	err   error
}

// Up brings a cluster up and returns when everything in it is ready. It ends,
// and leaves nothing on the machine, with Down or with the calling process,
// however that ends; Detach lets it live on. The context is for bringing it
// up only.
func Up(ctx context.Context, o Options) (*Cluster, error) {
	p, o, err := prepare(ctx, o)
	if err != nil {
		return nil, err
	}
	own, reports, err := startJanitor(p)
	if err != nil {
		return nil, fmt.Errorf("start cluster %s: %w", p.Name, err)
	}
	if err := followReports(ctx, o, own, reports); err != nil {
		own.abandon()
		return nil, fmt.Errorf("bring cluster %s up: %w", p.Name, err)
	}
	c, err := open(p.Name)
	if err != nil {
		own.abandon()
		return nil, err
	}
	c.owner = own
	return c, nil
}

// prepare checks everything and builds what is missing before anything is
// started.
func prepare(ctx context.Context, o Options) (plan, Options, error) {
	o, err := o.complete()
	if err != nil {
		return plan{}, o, err
	}
	host, err := preflight(ctx)
	if err != nil {
		return plan{}, o, fmt.Errorf("preflight: %w", err)
	}
	binaries, version, err := ensureBinaries(ctx, o.KubernetesVersion, o.Progress)
	if err != nil {
		return plan{}, o, err
	}
	p := plan{
		Name: o.Name, KubernetesVersion: version, Nodes: o.Nodes,
		StateDir: stateDir(o.Name), LogDir: o.LogDir,
		Binaries: binaries, Programs: host,
		APIServerArgs: o.APIServerArgs, KubeletConfig: o.KubeletConfig,
	}
	if p.LogDir == "" {
		p.LogDir = filepath.Join(p.StateDir, "logs")
	} else if err := os.MkdirAll(p.LogDir, 0o755); err != nil {
		return plan{}, o, fmt.Errorf("create log directory: %w", err)
	}
	return p, o, nil
}

// startJanitor starts the janitor and gives it the plan.
func startJanitor(p plan) (*owner, <-chan report, error) {
	lifelineRead, lifelineWrite, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer lifelineRead.Close()
	progressRead, progressWrite, err := os.Pipe()
	if err != nil {
		return nil, nil, errors.Join(err, lifelineWrite.Close())
	}
	defer progressWrite.Close()
	cmd := reexec(roleJanitor, p.Name, lifelineRead, progressWrite)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, nil, errors.Join(err, lifelineWrite.Close(), progressRead.Close())
	}
	// The cluster lives as long as the process, not as long as somebody
	// refers to it.
	lifelines.Store(lifelineWrite, true)
	own := &owner{lifeline: lifelineWrite, ended: make(chan struct{})}
	reports := make(chan report)
	go own.follow(cmd, progressRead, reports)
	if err := send(lifelineWrite, p); err != nil {
		own.abandon()
		return nil, nil, err
	}
	return own, reports, nil
}

// follow reads the progress pipe to its end, which is when all who could
// report have ended or are done, and then waits for the janitor.
func (o *owner) follow(cmd *exec.Cmd, progress *os.File, reports chan<- report) {
	defer close(o.ended)
	defer progress.Close()
	lines := bufio.NewScanner(progress)
	lines.Buffer(nil, 1<<20)
	ready := false
	for lines.Scan() {
		var line report
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			line = report{Error: fmt.Sprintf("unreadable report: %v", err)}
		}
		if line.Error != "" && o.err == nil {
			o.err = errors.New(line.Error)
		}
		if !ready {
			reports <- line
		}
		ready = ready || line.Ready || line.Error != ""
	}
	if !ready {
		close(reports)
	}
	if err := cmd.Wait(); err != nil && o.err == nil {
		o.err = fmt.Errorf("the janitor ended: %w", err)
	}
}

// followReports passes progress on until all is ready or nothing will be.
func followReports(ctx context.Context, o Options, own *owner, reports <-chan report) error {
	interrupted := ctx.Done()
	var cause error
	for {
		select {
		case line, ok := <-reports:
			switch {
			case !ok && cause != nil:
				return cause
			case !ok:
				return errors.New("its janitor ended without a word")
			case cause != nil: // reading on only so that the janitor is not held up
			case line.Error != "":
				return errors.New(line.Error)
			case line.Ready:
				return nil
			default:
				fmt.Fprintln(o.Progress, line.Progress)
			}
			if cause != nil && (line.Ready || line.Error != "") {
				return cause
			}
		case <-interrupted:
			interrupted, cause = nil, context.Cause(ctx)
			if err := own.end(); err != nil {
				return errors.Join(cause, err)
			}
		}
	}
}

// abandon ends the cluster and waits for the janitor. What it has to say does
// not matter any more.
func (o *owner) abandon() {
	_ = o.end()
	<-o.ended
}

// end lets go of the lifeline: without the word to detach, that is the end of
// the cluster. A second time it does nothing.
func (o *owner) end() error { return o.letGo(false) }

func (o *owner) letGo(detached bool) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.lifeline == nil {
		return nil
	}
	var err error
	if detached {
		_, err = o.lifeline.Write([]byte{detach})
	}
	o.detached = detached
	err = errors.Join(err, o.lifeline.Close())
	lifelines.Delete(o.lifeline)
	o.lifeline = nil
	return err
}

func (o *owner) isDetached() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.detached
}

// Detach lets the cluster live on when the calling process ends. Attach finds
// it again, Down ends it.
func (c *Cluster) Detach() error {
	if c.owner == nil {
		return nil
	}
	if err := c.owner.letGo(true); err != nil {
		return fmt.Errorf("detach cluster %s: %w", c.Name(), err)
	}
	return nil
}

// Attach opens a cluster that is running, whoever started it. It does not end
// with the calling process.
func Attach(name string) (*Cluster, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	lock, err := lockStateDir(stateDir(name))
	switch {
	case errors.Is(err, errHeld):
		return open(name)
	case err == nil:
		lock.Close()
		return nil, fmt.Errorf("cluster %s is not running any more; `cluster down %s` removes what is left of it", name, name)
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("there is no cluster %s", name)
	default:
		return nil, fmt.Errorf("attach to cluster %s: %w", name, err)
	}
}

func open(name string) (*Cluster, error) {
	r, err := readRecord(stateDir(name))
	if err != nil {
		return nil, fmt.Errorf("open cluster %s: %w", name, err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfigPath(stateDir(name)))
	if err != nil {
		return nil, fmt.Errorf("open cluster %s: %w", name, err)
	}
	config.QPS = -1
	return &Cluster{record: r, config: config}, nil
}

// Down ends the cluster and returns when no process, mount, interface, cgroup
// or file of it is left.
func (c *Cluster) Down(ctx context.Context) error {
	if c.owner == nil || c.owner.isDetached() {
		return Down(ctx, c.Name())
	}
	if err := c.owner.end(); err != nil {
		return fmt.Errorf("end cluster %s: %w", c.Name(), err)
	}
	select {
	case <-c.owner.ended:
	case <-ctx.Done():
		return fmt.Errorf("end cluster %s: %w", c.Name(), context.Cause(ctx))
	}
	if err := c.owner.err; err != nil {
		return fmt.Errorf("end cluster %s: %w", c.Name(), err)
	}
	return nil
}

// Name is the cluster's.
func (c *Cluster) Name() string { return c.record.Name }

// LogDir is the host directory of all component logs.
func (c *Cluster) LogDir() string { return c.record.LogDir }

// Binaries are those that the cluster runs, and kubectl.
func (c *Cluster) Binaries() Binaries { return c.record.Binaries }

// Kubeconfig is the path of a kubeconfig with an administrator's certificate,
// for use on the host.
func (c *Cluster) Kubeconfig() string { return kubeconfigPath(stateDir(c.Name())) }

// RESTConfig is the administrator's, without a client-side rate limit. The
// caller owns it.
func (c *Cluster) RESTConfig() *rest.Config { return rest.CopyConfig(c.config) }

// APIServerURL is where the API server is reached from the host.
func (c *Cluster) APIServerURL() string {
	return "https://127.0.0.1:" + strconv.Itoa(c.record.Port)
}

// Apply applies every object of the YAML streams with server-side apply, in
// order, and waits for each CustomResourceDefinition to be served.
func (c *Cluster) Apply(ctx context.Context, manifests ...[]byte) error {
	a, err := newApplier(c.RESTConfig())
	if err != nil {
		return fmt.Errorf("apply: %w", err)
	}
	return a.apply(ctx, manifests...)
}

// LoadImage builds an image and loads it into every node's containerd.
func (c *Cluster) LoadImage(ctx context.Context, img Image) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, n := range c.Nodes() {
		group.Go(func() error {
			if err := n.loadImage(ctx, img); err != nil {
				return fmt.Errorf("load image %s on %s: %w", img.Ref, n.Name, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// Status lists the cluster's components and how they are.
func (c *Cluster) Status(ctx context.Context) ([]ComponentStatus, error) {
	status, err := c.status(ctx)
	return status.Components, err
}

func (c *Cluster) supervisor() controlClient {
	return controlClient{socket: supervisorSocket(stateDir(c.Name()))}
}

func (c *Cluster) status(ctx context.Context) (supervisorStatus, error) {
	var status supervisorStatus
	err := c.supervisor().call(ctx, http.MethodGet, "/status", nil, &status)
	if err != nil {
		err = fmt.Errorf("status of cluster %s: %w", c.Name(), err)
	}
	return status, err
}

// control is where a component is looked after: on a node, or, with an empty
// node name, beside the control plane.
func (c *Cluster) control(node string) controlClient {
	if node == "" {
		return c.supervisor()
	}
	return controlClient{socket: nodeSocket(stateDir(c.Name()), node)}
}

func (c *Cluster) operate(ctx context.Context, operation, name, node string) error {
	if err := c.control(node).post(ctx, "/components/"+name+"/"+operation, nil); err != nil {
		return fmt.Errorf("%s %s of cluster %s: %w", operation, name, c.Name(), err)
	}
	return nil
}

// StopComponent ends a component ("kube-apiserver", "cert-manager-controller",
// …, or with a node's name "kubelet", "containerd", "kube-proxy") with SIGTERM
// and returns when it has ended. Containers outlive a stopped containerd.
func (c *Cluster) StopComponent(ctx context.Context, name, node string) error {
	return c.operate(ctx, "stop", name, node)
}

// KillComponent is StopComponent with SIGKILL.
func (c *Cluster) KillComponent(ctx context.Context, name, node string) error {
	return c.operate(ctx, "kill", name, node)
}

// StartComponent starts a component that was stopped or that ended. It does
// not wait until the component serves.
func (c *Cluster) StartComponent(ctx context.Context, name, node string) error {
	return c.operate(ctx, "start", name, node)
}

// KillNode ends a node as a power cut would, with everything on its disk.
func (c *Cluster) KillNode(ctx context.Context, node string) error {
	if err := c.supervisor().post(ctx, "/nodes/"+node+"/kill", nil); err != nil {
		return fmt.Errorf("cluster %s: %w", c.Name(), err)
	}
	return nil
}

// StartNode starts a node that was killed. Its disk is empty: images have to
// be loaded again. It does not wait until the node is ready.
func (c *Cluster) StartNode(ctx context.Context, node string) error {
	if err := c.supervisor().post(ctx, "/nodes/"+node+"/start", nil); err != nil {
		return fmt.Errorf("cluster %s: %w", c.Name(), err)
	}
	return nil
}

// Nodes lists the nodes, by number.
func (c *Cluster) Nodes() []Node {
	var out []Node
	for i := range c.record.Nodes {
		out = append(out, Node{Name: nodeName(i + 1), IP: nodeIP(i + 1), cluster: c})
	}
	return out
}

// Info is what List says of a cluster.
type Info struct {
	Name string
	// Running is whether it is looked after. If not, something is left of it
	// that Down removes.
	Running           bool
	KubernetesVersion string
	Nodes             int
	Started           time.Time
	LogDir            string
	Kubeconfig        string
}

// List lists the clusters on this machine, also those of which only something
// is left.
func List() ([]Info, error) {
	names, err := knownClusters()
	if err != nil {
		return nil, err
	}
	var out []Info
	for _, name := range names {
		info := Info{Name: name}
		lock, err := lockStateDir(stateDir(name))
		switch {
		case err == nil:
			lock.Close()
		case errors.Is(err, errHeld):
			info.Running = true
		}
		if r, err := readRecord(stateDir(name)); err == nil {
			info.KubernetesVersion, info.Nodes, info.Started, info.LogDir = r.KubernetesVersion, r.Nodes, r.Started, r.LogDir
			info.Kubeconfig = kubeconfigPath(stateDir(name))
		}
		out = append(out, info)
	}
	slices.SortFunc(out, func(a, b Info) int { return a.Started.Compare(b.Started) })
	return out, nil
}
