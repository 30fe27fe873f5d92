// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/signet-spiffe/signet/agent/issue"
	"github.com/signet-spiffe/signet/agent/issue/selfca"
	"github.com/signet-spiffe/signet/agent/trust"
	"github.com/signet-spiffe/signet/agent/workload"
	"github.com/signet-spiffe/signet/internal/observe"
	"github.com/signet-spiffe/signet/internal/pki"
	agentv1 "github.com/signet-spiffe/signet/proto/signet/agent/v1"
)

var td = spiffeid.RequireTrustDomainFromString("example.org")

// issuer signs, or refuses in the test's words.
type issuer struct {
	*selfca.Issuer
	mu     sync.Mutex
	refuse error
}

func (i *issuer) Issue(ctx context.Context, r issue.IssueRequest) (issue.Issued, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.refuse != nil {
		return issue.Issued{}, i.refuse
	}
	return i.Issuer.Issue(ctx, r)
}

func (i *issuer) refuseWith(err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.refuse = err
}

// tmpfs is storage without mounts.
type tmpfs struct{}

func (tmpfs) Prepare(workload.Volume) error                 { return nil }
func (tmpfs) Store(workload.Volume, workload.Content) error { return nil }
func (tmpfs) Push(workload.Volume, workload.Content)        {}
func (tmpfs) Remove(string) error                           { return nil }

// buffer is a log that may be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// fixture is a lifecycle with an admin socket.
type fixture struct {
	registry *workload.Registry
	issuer   *issuer
	level    *observe.Level
	log      *buffer
	path     string
	heard    time.Time
	stop     func() error // Ends the server as an agent that stops does, and returns what Run did.
}

// start serves on a real socket.
func start(t *testing.T, edit ...func(*Options)) *fixture {
	t.Helper()
	ca, err := selfca.New(selfca.Options{TrustDomain: td})
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{issuer: &issuer{Issuer: ca}, level: observe.NewLevel(slog.LevelInfo), log: &buffer{}, path: filepath.Join(t.TempDir(), "admin", "admin.sock")}
	f.registry = workload.New(workload.Options{
		Issuer: f.issuer, Trust: trust.NewObserved(td), Volumes: tmpfs{}, KeyType: pki.P256, Duration: time.Hour, PublishTimeout: 10 * time.Second,
		ID: func(p issue.Pod) (spiffeid.ID, error) {
			return spiffeid.FromSegments(td, "ns", p.Namespace, "sa", p.ServiceAccount)
		},
		Log: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	})
	o := Options{
		Path: f.path, Workloads: f.registry, Level: f.level, Heard: func() time.Time { return f.heard },
		About: About{Version: "v9.8.7", Node: "node-1", Driver: "driver.example", TrustDomain: td.Name(), Started: time.Now().Add(-90 * time.Second)},
		Log:   slog.New(slog.NewTextHandler(f.log, &slog.HandlerOptions{Level: f.level})),
	}
	for _, e := range edit {
		e(&o)
	}
	server, err := NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	running := make(chan struct{})
	living, end := context.WithCancel(context.Background())
	go func() { defer close(running); f.registry.Run(living) }()
	f.stop = sync.OnceValue(func() error { cancel(); return <-ended })
	t.Cleanup(func() {
		if err := f.stop(); err != nil {
			t.Errorf("Run returned %v", err)
		}
		end()
		<-running
	})
	return f
}

// publish makes a volume of pod in namespace.
func (f *fixture) publish(t *testing.T, volume, namespace, pod string) {
	t.Helper()
	v := workload.Volume{ID: volume, Pod: issue.Pod{Namespace: namespace, Name: pod, UID: "uid-" + pod, ServiceAccount: "account"}}
	if err := f.registry.Publish(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	for _, s := range f.registry.List() {
		if s.Volume == volume && s.Serial != "" {
			return
		}
	}
	t.Errorf("volume %s is published and not listed as ready", volume)
}

func (f *fixture) dial(t *testing.T) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+f.path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func (f *fixture) client(t *testing.T) agentv1.AgentServiceClient {
	t.Helper()
	return agentv1.NewAgentServiceClient(f.dial(t))
}

func wantCode(t *testing.T, what string, err error, want codes.Code, words ...string) {
	t.Helper()
	if status.Code(err) != want {
		t.Errorf("%s: %v, want %s", what, err, want)
	}
	for _, word := range words {
		if !strings.Contains(fmt.Sprint(err), word) {
			t.Errorf("%s: %v does not say %q", what, err, word)
		}
	}
}

// nobody is a user that owns nothing.
const nobody = 65534

// dialAs connects as another user. Only the thread that connects becomes that user,
// and it ends there.
func dialAs(path string, uid int) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	results := make(chan result)
	go func() {
		runtime.LockOSThread() // And never unlocks: the thread ends with the goroutine.
		conn, err := func() (net.Conn, error) {
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return nil, err
			}
			file := os.NewFile(uintptr(fd), path)
			defer file.Close()
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
				return nil, fmt.Errorf("setresuid: %w", errno)
			}
			if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
				return nil, fmt.Errorf("connect: %w", err)
			}
			return net.FileConn(file)
		}()
		results <- result{conn, err}
	}()
	r := <-results
	return r.conn, r.err
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can become another user")
	}
}
