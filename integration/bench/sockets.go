// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/metadata"
)

const socketName = "spiffe.sock"

// fetch asks a volume's socket for its SVID, on a new connection, and returns the
// serial.
func (v volume) fetch(ctx context.Context) (serial string, err error) {
	conn, err := v.connect()
	if err != nil {
		return "", err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true"))
	defer cancel()
	stream, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	if err != nil {
		return "", err
	}
	answer, err := stream.Recv()
	if err != nil {
		return "", err
	}
	if len(answer.GetSvids()) == 0 {
		return "", errors.New("the answer holds no SVID")
	}
	chain, err := x509.ParseCertificates(answer.GetSvids()[0].GetX509Svid())
	if err != nil || len(chain) == 0 {
		return "", errors.Join(errors.New("the answer holds no certificate"), err)
	}
	return chain[0].SerialNumber.Text(16), nil
}

// answers waits, for each of the volumes, until a new agent's socket appears in it
// and then asks that socket. It says what serial each served, and when.
type answers struct {
	volumes map[string]volume // by directory
	watcher *fsnotify.Watcher
}

// expect begins to watch. It is called after the agent before has ended and before
// the next is started: what appears is the next one's.
func expect(volumes []volume) (*answers, error) {
	watcher, err := fsnotify.NewBufferedWatcher(uint(4 * len(volumes)))
	if err != nil {
		return nil, fmt.Errorf("watch the volumes: %w", err)
	}
	a := &answers{volumes: map[string]volume{}, watcher: watcher}
	for _, v := range volumes {
		if err := watcher.Add(v.target); err != nil {
			return nil, errors.Join(fmt.Errorf("watch volume %s: %w", v.target, err), watcher.Close())
		}
		a.volumes[v.target] = v
	}
	return a, nil
}

// served is one socket's first answer.
type served struct {
	volume, serial string
	at             time.Time
}

// collect returns when every socket has answered.
func (a *answers) collect(ctx context.Context) ([]served, error) {
	defer a.watcher.Close()
	group, ctx := errgroup.WithContext(ctx)
	results := make(chan served, len(a.volumes))
	waiting := len(a.volumes)
	asked := map[string]bool{}
	for len(asked) < waiting {
		select {
		case event, ok := <-a.watcher.Events:
			dir := filepath.Dir(event.Name)
			v, known := a.volumes[dir]
			if !ok || !known || filepath.Base(event.Name) != socketName || !event.Has(fsnotify.Create) || asked[dir] {
				continue
			}
			asked[dir] = true
			group.Go(func() error {
				serial, err := v.fetch(ctx)
				if err != nil {
					return fmt.Errorf("ask the socket of pod %s/%s: %w", v.namespace, v.pod.name, err)
				}
				results <- served{v.id, serial, time.Now()}
				return nil
			})
		case err := <-a.watcher.Errors:
			return nil, errors.Join(fmt.Errorf("watch the volumes: %w", err), group.Wait())
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("%d of %d sockets appeared: %w", len(asked), waiting, context.Cause(ctx)), group.Wait())
		}
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	close(results)
	var all []served
	for s := range results {
		all = append(all, s)
	}
	return all, nil
}
