// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// nodeConfig is what a node is told by the supervisor, once it has been
// connected to the network.
type nodeConfig struct {
	// Index from 1, of Nodes.
	Index, Nodes int
	// NewRoot is an empty directory on which the node builds its root.
	NewRoot string
	// Exposed host directories are visible and writable at the same path.
	Exposed []string
	// Socket is where the node serves its control operations.
	Socket string
	// Files by name, written to nodeConfigDir; CNI is the network's
	// configuration.
	Files map[string][]byte
	CNI   []byte
	// Components to look after, and ctr's path.
	Components []component
	Ctr        string
	// Shim is the path of containerd's shim.
	Shim string
}

// GoString hides the keys among the files.
func (nodeConfig) GoString() string { return "nodeConfig{redacted}" }

// String hides the keys among the files.
func (c nodeConfig) String() string { return "configuration of " + nodeName(c.Index) }

// nodeMain is PID 1 of a node.
func nodeMain() error {
	lifeline := bufio.NewReader(inherited(fdLifeline, "lifeline"))
	var config nodeConfig
	if err := receive(lifeline, &config); err != nil {
		return err
	}
	if err := layOutNode(config); err != nil {
		return err
	}
	reaper := newReaper()
	set := newComponentSet(reaper, config.Components)
	images := imageLoader{reaper: reaper, ctr: config.Ctr}
	name := nodeName(config.Index)

	mux := http.NewServeMux()
	handleComponents(mux, set, func(context.Context) any { return set.status(name) })
	mux.HandleFunc("POST /images", func(w http.ResponseWriter, r *http.Request) {
		answer(w, struct{}{}, images.load(r.Context(), r.URL.Query().Get("ref"), r.Body))
	})
	mux.HandleFunc("GET /failure", func(w http.ResponseWriter, r *http.Request) {
		select {
		case err := <-set.failed:
			answer(w, nil, err)
		case <-r.Context().Done():
		}
	})
	if err := serveControl(config.Socket, mux); err != nil {
		return err
	}
	if err := set.start(componentContainerd); err != nil {
		return err
	}
	// The end of the lifeline is the end of the supervisor, and of its PID
	// namespace with this node in it. Leaving is only for good measure.
	_, err := io.Copy(io.Discard, lifeline)
	return err
}

// layOutNode turns this process's new namespaces into a node.
func layOutNode(config nodeConfig) error {
	if err := syscall.Sethostname([]byte(nodeName(config.Index))); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := enterNodeRoot(config.NewRoot, config.Exposed...); err != nil {
		return err
	}
	if err := setUpNodeNetwork(config.Index, config.Nodes); err != nil {
		return err
	}
	for name, content := range config.Files {
		if err := os.WriteFile(filepath.Join(nodeConfigDir, name), content, 0o600); err != nil {
			return fmt.Errorf("write node configuration: %w", err)
		}
	}
	if err := os.Mkdir(nodeShimDir, 0o755); err != nil {
		return fmt.Errorf("name containerd's shim: %w", err)
	}
	if err := os.Symlink(config.Shim, filepath.Join(nodeShimDir, componentShim)); err != nil {
		return fmt.Errorf("name containerd's shim: %w", err)
	}
	if err := os.WriteFile(filepath.Join(nodeCNIConfigDir, "10-pods.conflist"), config.CNI, 0o644); err != nil {
		return fmt.Errorf("write network configuration: %w", err)
	}
	return nil
}

// imageLoader imports images into a node's containerd.
type imageLoader struct {
	reaper *reaper
	ctr    string
}

// load imports a docker-archive and returns when a kubelet would find the
// image in it.
func (l imageLoader) load(ctx context.Context, ref string, archive io.Reader) error {
	if err := l.importArchive(ctx, archive); err != nil {
		return err
	}
	return waitForImage(ctx, ref)
}

// waitForImage waits until the runtime interface lists an image: it learns of
// what was imported by an event.
func waitForImage(ctx context.Context, ref string) error {
	conn, err := grpc.NewClient("unix://"+containerdSocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("find image %s: %w", ref, err)
	}
	defer conn.Close()
	client := cri.NewImageServiceClient(conn)
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	err = retry(ctx, 10*time.Millisecond, func(ctx context.Context) error {
		answer, err := client.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: ref}})
		if err == nil && answer.GetImage() == nil {
			err = errors.New("not listed by the container runtime")
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("find image %s: %w", ref, err)
	}
	return nil
}

func (l imageLoader) importArchive(ctx context.Context, archive io.Reader) error {
	if err := waitForSocket(ctx, containerdSocket); err != nil {
		return fmt.Errorf("load image: %w", err)
	}
	read, write, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("load image: %w", err)
	}
	defer write.Close()
	output, err := os.CreateTemp("/run/tmp", "ctr-")
	if err != nil {
		return fmt.Errorf("load image: %w", errors.Join(err, read.Close()))
	}
	defer output.Close()
	defer os.Remove(output.Name())

	argv := []string{"ctr", "--address", containerdSocket, "--namespace", "k8s.io", "images", "import", "--local", "-"}
	_, ended, err := l.reaper.start(l.ctr, argv, &os.ProcAttr{
		Dir: "/", Env: append(cleanEnviron(), "TMPDIR=/run/tmp"), Files: []*os.File{read, output, output},
	})
	if err := errors.Join(err, read.Close()); err != nil {
		return fmt.Errorf("load image: %w", err)
	}
	// When ctr fails it stops reading; its own words say more than the pipe's.
	_, copied := io.Copy(write, archive)
	closed := write.Close()
	if status := <-ended; status != 0 {
		said, err := os.ReadFile(output.Name())
		if err != nil {
			return fmt.Errorf("load image: ctr: %s", describe(status))
		}
		return fmt.Errorf("load image: ctr: %s: %s", describe(status), tail(bytes.TrimSpace(said), 5))
	}
	if err := errors.Join(copied, closed); err != nil {
		return fmt.Errorf("load image: %w", err)
	}
	return nil
}

// waitForSocket waits until a server accepts connections.
func waitForSocket(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return retry(ctx, 50*time.Millisecond, func(ctx context.Context) error {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", path)
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// retry calls f until it succeeds or the context ends, which then is joined
// by what f said last. It is for servers that have no way to announce that
// they are ready.
func retry(ctx context.Context, interval time.Duration, f func(context.Context) error) error {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		err := f(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("%w (last: %w)", context.Cause(ctx), err)
		}
	}
}
