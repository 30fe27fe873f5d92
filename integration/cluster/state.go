// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// stateRoot holds one directory per cluster. Its lock (flock on the directory
// itself) is the janitor's for as long as that lives: whoever gets the lock
// knows that nobody looks after what is there.
const stateRoot = "/run/signet-clusters"

// cleanUpTimeout bounds the removal of a cluster.
const cleanUpTimeout = 30 * time.Second

func stateDir(name string) string          { return filepath.Join(stateRoot, name) }
func privateDir(state string) string       { return filepath.Join(state, "private") }
func socketDir(state string) string        { return filepath.Join(state, "sockets") }
func kubeconfigPath(state string) string   { return filepath.Join(state, "kubeconfig") }
func recordPath(state string) string       { return filepath.Join(state, "cluster.json") }
func supervisorSocket(state string) string { return filepath.Join(socketDir(state), "supervisor.sock") }
func nodeSocket(state, node string) string { return filepath.Join(socketDir(state), node+".sock") }
func janitorSocket(state string) string    { return filepath.Join(state, "janitor.sock") }

// record is what a state directory says about its cluster.
type record struct {
	Name              string
	KubernetesVersion string
	Nodes             int
	Port              int
	LogDir            string
	Binaries          Binaries
	// Supervisor is its process number on the host.
	Supervisor int
	Started    time.Time
}

func writeRecord(dir string, r record) error {
	content, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write cluster record: %w", err)
	}
	tmp := recordPath(dir) + ".tmp"
	if err := os.WriteFile(tmp, content, 0o600); err != nil {
		return fmt.Errorf("write cluster record: %w", err)
	}
	if err := os.Rename(tmp, recordPath(dir)); err != nil {
		return fmt.Errorf("write cluster record: %w", err)
	}
	return nil
}

func readRecord(dir string) (record, error) {
	var r record
	content, err := os.ReadFile(recordPath(dir))
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(content, &r); err != nil {
		return r, fmt.Errorf("cluster record %s: %w", recordPath(dir), err)
	}
	return r, nil
}

// errHeld says that a state directory's lock is somebody else's.
var errHeld = errors.New("in use")

// lockStateDir takes the lock of an existing state directory. It returns
// errHeld if it is taken, and fs.ErrNotExist if the directory goes away.
func lockStateDir(dir string) (*os.File, error) {
	file, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = errHeld
		}
		return nil, errors.Join(err, file.Close())
	}
	if err := stillThere(file, dir); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// stillThere checks that the locked directory is the one of that name, not one
// that has been removed since it was opened.
func stillThere(file *os.File, dir string) error {
	held, err := file.Stat()
	if err != nil {
		return err
	}
	there, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if !os.SameFile(held, there) {
		return fs.ErrNotExist
	}
	return nil
}

// createStateDir makes and locks a cluster's directory. What a cluster of the
// same name left that nobody looks after any more is removed first.
func createStateDir(name string) (*os.File, error) {
	if err := removeStale(name); err != nil {
		if errors.Is(err, errHeld) {
			return nil, fmt.Errorf("there is a cluster %s already", name)
		}
		return nil, err
	}
	dir := stateDir(name)
	if err := os.MkdirAll(stateRoot, 0o755); err != nil {
		return nil, fmt.Errorf("create state directory: %w", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create state directory: %w", err)
	}
	lock, err := lockStateDir(dir)
	if err != nil {
		return nil, fmt.Errorf("lock state directory %s: %w", dir, err)
	}
	for _, d := range []string{privateDir(dir), socketDir(dir)} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return nil, fmt.Errorf("create state directory: %w", errors.Join(err, lock.Close()))
		}
	}
	return lock, nil
}

// removeStale removes what is left of a cluster whose janitor is gone. It
// returns errHeld if there is a janitor, and nil if there is nothing.
func removeStale(name string) error {
	lock, err := lockStateDir(stateDir(name))
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		defer lock.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), cleanUpTimeout)
	defer cancel()
	if err := errors.Join(removeCgroups(ctx, clusterCgroup(name)), removeStateDir(stateDir(name))); err != nil {
		return fmt.Errorf("remove what is left of cluster %s: %w", name, err)
	}
	return nil
}

// removeStateDir removes a state directory, and the root of all when it was
// the last.
func removeStateDir(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove state directory: %w", err)
	}
	// Fails, rightly, while there are others.
	_ = os.Remove(stateRoot)
	return nil
}

// knownClusters lists the names of all clusters that left a trace on this
// machine, running or not.
func knownClusters() ([]string, error) {
	names, err := clusterCgroups()
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(stateRoot)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list clusters: %w", err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	slices.Sort(names)
	names = slices.Compact(names)
	return slices.DeleteFunc(names, func(n string) bool { return checkName(n) != nil }), nil
}

// Down ends a cluster by name, whoever started it, and returns when nothing
// of it is left. What a killed janitor left behind is removed as well.
func Down(ctx context.Context, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	if err := askJanitor(ctx, name); err != nil {
		return fmt.Errorf("end cluster %s: %w", name, err)
	}
	return removeStale(name)
}

// askJanitor tells a cluster's janitor to end it, and waits for the end of the
// connection, which is the end of the janitor.
func askJanitor(ctx context.Context, name string) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", janitorSocket(stateDir(name)))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil // no janitor
	}
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	said, err := io.ReadAll(conn)
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	// A reset is an end as well.
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		return err
	}
	if len(said) > 0 {
		return errors.New(string(said))
	}
	return nil
}
