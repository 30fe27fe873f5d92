// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// One volume's tmpfs is full, of bytes or of inodes, in the part that the pod sees
// or in the private one: its SVID stays as it is and is served, and is renewed when
// there is room again; its neighbour notices nothing. A volume that is full can be
// removed.
func testAFullVolumeErrsAlone(t *testing.T) {
	t.Parallel()
	ctx := needCluster(t, 2*testTimeout)
	needLab(t)
	ns := newNamespace(ctx, t)
	n := node(ctx, t, nodeOne)
	k := newKeeper(ctx, t)
	keep := func(name string) *kept {
		pod := runPod(ctx, t, ns, podSpec{Name: name, Node: nodeOne, Driver: lab.DriverName(), Attributes: labAttributes()})
		return k.keep(t, n, pod, volumeName, labID(ns))
	}
	full, neighbour := keep("full"), keep("neighbour")
	agent := mustAgentIn(ctx, t, lab.Namespace(), nodeOne)
	handle := n.volumeHandle(t, full.pod)
	volume := n.path(filepath.Join("/var/lib/kubelet/plugins", lab.DriverName(), "volumes", handle))

	for _, c := range []struct {
		name string
		fill func(t *testing.T, dir string)
		part string
	}{
		{"bytes, private part", fillBytes, "private"},
		{"bytes, pod's part", fillBytes, "pod"},
		{"inodes, private part", fillInodes, "private"},
		{"inodes, pod's part", fillInodes, "pod"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(volume, c.part, "filling")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			said := followAgent(ctx, t, agent, "could not store the SVID", handle)
			c.fill(t, dir)
			<-said
			k.mu.Lock()
			serial := full.present().serial
			k.mu.Unlock()
			if got := waitSocket(ctx, t, n, full.pod); got != serial {
				t.Errorf("the socket serves %s, the files have %s", got, serial)
			}
			k.waitNext(ctx, t, keptOnes(neighbour))
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			k.waitNext(ctx, t, keptOnes(full))
		})
	}
	k.check(t, keptOnes(full, neighbour))
	if full.broken+neighbour.broken != 0 {
		t.Errorf("streams broke %d and %d times", full.broken, neighbour.broken)
	}
	if after := mustAgentIn(ctx, t, lab.Namespace(), nodeOne); after.UID != agent.UID || after.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Error("the agent was restarted")
	}

	dir := filepath.Join(volume, "private", "filling")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	fillBytes(t, dir)
	k.release(full)
	deletePod(ctx, t, full.pod)
	n.waitMounts(ctx, t, func(all []mount) error {
		for _, m := range all {
			if strings.Contains(m.Point, handle) || strings.Contains(m.Point, string(full.pod.UID)) {
				return fmt.Errorf("%s is still mounted", m.Point)
			}
		}
		return nil
	})
	k.waitNext(ctx, t, keptOnes(neighbour))
}

// fillBytes writes until there is no room.
func fillBytes(t *testing.T, dir string) {
	t.Helper()
	file, err := os.Create(filepath.Join(dir, "bytes"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, size := range []int{64 << 10, 4 << 10, 1} {
		block := make([]byte, size)
		for err = nil; err == nil; {
			_, err = file.Write(block)
		}
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("fill %s: %v, want no space left", dir, err)
	}
}

// fillInodes makes files until there can be no more.
func fillInodes(t *testing.T, dir string) {
	t.Helper()
	for i := 0; ; i++ {
		file, err := os.Create(filepath.Join(dir, fmt.Sprint(i)))
		if errors.Is(err, unix.ENOSPC) && i > 0 {
			return
		}
		if err != nil {
			t.Fatalf("fill %s: %v, want no space left", dir, err)
		}
		if err := file.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// followAgent waits, from now on, for a line in an agent's log that has all of the
// texts; the channel is closed then. The end of the log before that ends the test.
func followAgent(ctx context.Context, t *testing.T, agent *corev1.Pod, texts ...string) <-chan struct{} {
	t.Helper()
	now := metav1.Now()
	ctx, cancel := context.WithCancel(ctx)
	t.Cleanup(cancel)
	stream, err := env.Kube.CoreV1().Pods(agent.Namespace).GetLogs(agent.Name, &corev1.PodLogOptions{Follow: true, SinceTime: &now}).Stream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	said := make(chan struct{})
	go func() {
		defer close(said)
		defer stream.Close()
		lines := bufio.NewScanner(stream)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			all := true
			for _, text := range texts {
				all = all && strings.Contains(lines.Text(), text)
			}
			if all {
				return
			}
		}
		t.Errorf("the log of %s ended without %q: %v", agent.Name, texts, errors.Join(lines.Err(), context.Cause(ctx)))
	}()
	return said
}
