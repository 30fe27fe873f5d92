// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/signet-spiffe/signet/integration/install"
)

const (
	// soakVariable changes how long the soak takes; acceptance is ten minutes.
	soakVariable = "SIGNET_SOAK"
	// defaultSoak is about as long as the tests before its end take anyway.
	defaultSoak = 6 * time.Minute
	soakReads   = 100_000

	soakNamespace = "soak"
)

func soakTime() (time.Duration, error) {
	text := os.Getenv(soakVariable)
	if text == "" {
		return defaultSoak, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < svidLife {
		return 0, fmt.Errorf("%s=%s: want a duration of at least %s", soakVariable, text, svidLife)
	}
	return d, nil
}

// startSoak starts two pods, one on each node, in which one container holds a
// stream and another loads key and certificate, a hundred thousand times on the
// first node. They live through whatever the tests do until TestSoak.
var startSoak = sync.OnceValue(func() error {
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	long, err := soakTime()
	if err != nil {
		return err
	}
	namespaces := env.Kube.CoreV1().Namespaces()
	if _, err := namespaces.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: soakNamespace}}, metav1.CreateOptions{}); err != nil {
		return err
	}
	if err := awaitServiceAccount(ctx, soakNamespace, "default"); err != nil {
		return err
	}
	for _, node := range []string{nodeOne, nodeTwo} {
		reads := soakReads
		if node == nodeTwo {
			reads /= 10
		}
		spec := podSpec{Name: node, Node: node, Args: []string{"hold"}, Change: func(pod *corev1.Pod) {
			reader := pod.Spec.Containers[0].DeepCopy()
			reader.Name, reader.Args = "reader", []string{"read", fmt.Sprint("--count=", reads), fmt.Sprint("--spread=", long)}
			pod.Spec.Containers = append(pod.Spec.Containers, *reader)
		}}
		if _, err := env.Kube.CoreV1().Pods(soakNamespace).Create(ctx, spec.pod(), metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	return nil
})

// testSoak waits for what the run began with: short-lived SVIDs, renewed again and
// again while agents and what they need came and went, under readers that never
// stopped. No key without its certificate, none expired, and every SVID that the
// files had was on the stream.
func testSoak(t *testing.T) {
	if env.skipped != "" {
		t.Skip(env.skipped)
	}
	long, err := soakTime()
	if err != nil {
		t.Fatal(err)
	}
	ctx := needCluster(t, long+testTimeout)
	if err := startSoak(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{nodeOne, nodeTwo} {
		t.Run(name, func(t *testing.T) { joinSoak(ctx, t, name) })
	}
	if t.Failed() {
		return
	}
	if err := env.Kube.CoreV1().Namespaces().Delete(ctx, soakNamespace, metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}
}

func joinSoak(ctx context.Context, t *testing.T, name string) {
	pod := waitPod(ctx, t, soakNamespace, name, "to have read its files", func(pod *corev1.Pod) error {
		for _, status := range pod.Status.ContainerStatuses {
			end := status.State.Terminated
			switch {
			case status.RestartCount > 0, status.Name == "app" && end != nil:
				return install.Never(fmt.Errorf("container %s ended", status.Name))
			case status.Name == "reader" && end != nil && end.ExitCode != 0:
				return install.Never(fmt.Errorf("the reader failed with exit code %d", end.ExitCode))
			case status.Name == "reader" && end != nil:
				return nil
			}
		}
		return errors.New("the reader is at work")
	})
	log, err := env.Kube.CoreV1().Pods(soakNamespace).GetLogs(name, &corev1.PodLogOptions{Container: "reader"}).DoRaw(ctx)
	if err != nil {
		t.Fatal(err)
	}
	got := decodeJSON[struct {
		Reads, Generations, Expired int
		Serials                     []string
		MS                          float64
	}](t, bytes.TrimSpace(log))
	long := time.Duration(got.MS * float64(time.Millisecond)).Round(time.Second)
	if rotations, least := len(got.Serials)-1, int(long/svidLife); rotations < least || got.Expired != 0 {
		t.Errorf("%d reads in %s met %d rotations, want at least %d; %d expired", got.Reads, long, rotations, least, got.Expired)
	}
	// The stream may be a moment behind the files.
	last := got.Serials[len(got.Serials)-1]
	var streamed []string
	breaks := map[string]int{}
	follow(ctx, t, pod, func(line said) bool {
		switch line.Event {
		case "update":
			streamed = appendNew(streamed, line.OwnSerial)
		case "error":
			breaks[line.Code]++
		}
		return slices.Contains(streamed, last)
	})
	for _, serial := range got.Serials {
		if !slices.Contains(streamed, serial) {
			t.Errorf("SVID %s was in the files and never on the stream", serial)
		}
	}
	for code, n := range breaks {
		if code != "Unavailable" {
			t.Errorf("the stream ended %d times with %s", n, code)
		}
	}
	t.Logf("%d reads in %s: %d SVIDs, %d swaps of the files; the stream brought %d and broke %d times",
		got.Reads, long, len(got.Serials), got.Generations, len(streamed), breaks["Unavailable"])
}
