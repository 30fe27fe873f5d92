// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"os"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestWatchPods is what holds with the component that lets the agent read pods.
func TestWatchPods(t *testing.T) {
	ctx := needCluster(t, testTimeout)
	options := standardOptions()
	options.WatchPods = true
	if err := env.Signet(ctx, options); err != nil {
		t.Fatal(err)
	}
	defer reinstall(t, nil, nil)
	// A group of its own: parallel parts end with it, before the next change.
	t.Run("running", func(t *testing.T) {
		run(t, []part{
			{"files belong to the shared user", testFilesBelongToTheSharedUser},
			{"files keep their owner", testFilesKeepTheirOwner},
		})
	})
}

const sharedUser, otherUser, sharedGroup = int64(1321), int64(1400), int64(2000)

// asUsers makes a pod of which every container runs as its own of the users, the
// first one "app"; nil says nothing. No container is in a group that reads files
// without being told to.
func asUsers(pod, fsGroup *int64, init bool, users ...*int64) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: pod, FSGroup: fsGroup}
		if pod != nil { // Containerd takes no group without a user.
			p.Spec.SecurityContext.RunAsGroup = ptr(otherUser)
		}
		template := p.Spec.Containers[0]
		p.Spec.Containers = nil
		for i, user := range users {
			c := template.DeepCopy()
			if i > 0 {
				c.Name = fmt.Sprint("beside-", i)
			}
			if user != nil {
				c.SecurityContext = &corev1.SecurityContext{RunAsUser: user, RunAsGroup: ptr(otherUser)}
			}
			if init && i == len(users)-1 {
				c.Args = []string{"fetch"}
				p.Spec.InitContainers = append(p.Spec.InitContainers, *c)
				continue
			}
			p.Spec.Containers = append(p.Spec.Containers, *c)
		}
	}
}

// A shared runAsUser owns the files, with the group of fs-group or fsGroup; where
// there is none, root does. Seen from inside the container. The socket is open to
// everybody.
func testFilesBelongToTheSharedUser(t *testing.T) {
	t.Parallel()
	ctx := needCluster(t, testTimeout)
	ns := newNamespace(ctx, t)
	root := ptr(int64(0)) // Looks where only the owner and the group may enter.
	tests := map[string]struct {
		change     func(*corev1.Pod)
		attributes map[string]string
		uid, gid   int64
	}{
		"pod-level":       {asUsers(ptr(sharedUser), nil, false, nil, nil), nil, sharedUser, 0},
		"container-level": {asUsers(nil, nil, false, ptr(sharedUser), ptr(sharedUser)), nil, sharedUser, 0},
		"overridden":      {asUsers(ptr(otherUser), nil, false, ptr(sharedUser), ptr(sharedUser)), nil, sharedUser, 0},
		"with-fsgroup":    {asUsers(ptr(sharedUser), ptr(sharedGroup), false, nil), nil, sharedUser, sharedGroup},
		"with-attribute":  {asUsers(ptr(sharedUser), ptr(int64(3000)), false, nil), chosen(map[string]string{"fs-group": "2000"}), sharedUser, sharedGroup},
		"init-too":        {asUsers(ptr(sharedUser), nil, true, nil, ptr(sharedUser)), nil, sharedUser, 0},
		"differing":       {asUsers(ptr(sharedUser), nil, false, root, nil), nil, 0, 0},
		"init-differs":    {asUsers(nil, ptr(sharedGroup), true, ptr(sharedUser), ptr(otherUser)), nil, 0, sharedGroup},
		"unset":           {asUsers(nil, ptr(sharedGroup), false, ptr(sharedUser), nil), nil, 0, sharedGroup},
	}
	for name, test := range tests {
		createPod(ctx, t, ns, podSpec{Name: name, Attributes: test.attributes, Change: test.change})
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			pod := waitPod(ctx, t, ns, name, "to be ready", readyOrNot)
			wantOwner(ctx, t, pod, test.uid, test.gid)
			// It can be read by whom it is for, and it works.
			checkFiles(ctx, t, pod, spiffeID(ns, "default"), fetch(ctx, t, pod).Serial)
		})
	}
	t.Run("another user has the socket but not the files", func(t *testing.T) {
		pod := runPod(ctx, t, ns, podSpec{Name: "stranger", Change: asUsers(nil, nil, false, ptr(sharedUser), ptr(otherUser))})
		fetch(ctx, t, pod)
		for _, container := range []string{"app", "beside-1"} {
			if out, err := execute(ctx, pod, container, "cat", mountPath+"/tls.key"); err == nil {
				t.Errorf("%s read %d bytes of tls.key", container, len(out))
			} else if _, ran := exitedWith(err); !ran {
				t.Errorf("cat in %s: %v", container, err)
			}
		}
	})
}

func wantOwner(ctx context.Context, t *testing.T, pod *corev1.Pod, uid, gid int64) {
	t.Helper()
	names := list(ctx, t, pod, mountPath)
	for name, mode := range map[string]string{"..data": "0550", "tls.crt": "0440", "tls.key": "0440", "ca.crt": "0440"} {
		got := names[name].Resolved
		if got == nil {
			t.Errorf("%s is not there", name)
		} else if got.Mode != mode || int64(got.UID) != uid || int64(got.GID) != gid {
			t.Errorf("%s is %s %d:%d, want %s %d:%d", name, got.Mode, got.UID, got.GID, mode, uid, gid)
		}
	}
	if got := names["spiffe.sock"]; got.Type != "socket" || got.Mode != "0777" || got.UID != 0 {
		t.Errorf("spiffe.sock is a %s with mode %s of %d, want a socket with 0777 of root", got.Type, got.Mode, got.UID)
	}
}

// A renewal, and a restart of the agent before it, change nobody's files but for
// what they say.
func testFilesKeepTheirOwner(t *testing.T) {
	ctx := needCluster(t, rotationTimeout)
	ns := newNamespace(ctx, t)
	pod := runPod(ctx, t, ns, podSpec{Name: "app", Node: nodeOne, Change: asUsers(ptr(sharedUser), ptr(sharedGroup), false, nil)})
	before := fetch(ctx, t, pod)
	restartAgent(ctx, t, func(process *os.Process, _ *corev1.Pod) error { return process.Kill() })
	wantOwner(ctx, t, pod, sharedUser, sharedGroup)
	checkRotatesOn(ctx, t, pod, before.Serial)
	wantOwner(ctx, t, pod, sharedUser, sharedGroup)
}
