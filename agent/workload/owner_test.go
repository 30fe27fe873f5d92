// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/signet-spiffe/signet/agent/issue"
)

// owners answers Options.Owner as the test wants.
type owners struct {
	mu    sync.Mutex
	asked int
	user  *int64
	err   error
	wait  bool // Until ctx ends.
}

func (o *owners) find(ctx context.Context, _ Volume) (*int64, error) {
	o.mu.Lock()
	o.asked++
	user, err, wait := o.user, o.err, o.wait
	o.mu.Unlock()
	if wait {
		<-ctx.Done()
		return nil, fmt.Errorf("%w: no answer", issue.ErrUnavailable)
	}
	return user, err
}

// set changes the answer from here on.
func (o *owners) set(user *int64, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.user, o.err = user, err
}

// owned remembers whose files were written.
type owned struct {
	*recorder
	mu   sync.Mutex
	uids []string
}

func (o *owned) Store(v Volume, c Content) error {
	o.mu.Lock()
	uid := "root"
	if v.UID != nil {
		uid = fmt.Sprint(*v.UID)
	}
	o.uids = append(o.uids, uid)
	o.mu.Unlock()
	return o.recorder.Store(v, c)
}

func (o *owned) all() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return fmt.Sprint(o.uids)
}

func runOwned(t *testing.T, test func(t *testing.T, w *world, o *owners, files *owned)) {
	t.Helper()
	thousand := int64(1000)
	o := &owners{user: &thousand}
	var files *owned
	runWith(t, func(options *Options, w *world) {
		files = &owned{recorder: w.volumes}
		options.Volumes, options.Owner = files, o.find
	}, func(t *testing.T, w *world) { test(t, w, o, files) })
}

// The owner is found once, for a new volume, and stays through renewals, bundle
// changes and publishes that come again.
func TestOwnerIsFoundOnce(t *testing.T) {
	runOwned(t, func(t *testing.T, w *world, o *owners, files *owned) {
		if err := w.Publish(t.Context(), cart("v")); err != nil {
			t.Fatal(err)
		}
		o.set(nil, errors.New("must not be asked"))
		if err := w.Publish(t.Context(), cart("v")); err != nil {
			t.Errorf("publish of a published volume: %v", err)
		}
		time.Sleep(41 * time.Second)
		synctest.Wait()
		w.trust.replace(newIssuer(t, time.Minute).bundle())
		synctest.Wait()
		if got, want := files.all(), "[1000 1000 1000]"; got != want {
			t.Errorf("the files belonged to %s, want %s", got, want)
		}
		if o.asked != 1 {
			t.Errorf("asked %d times, want once", o.asked)
		}
	})
}

// A volume whose owner cannot be found is not begun, and a later publish finds it.
func TestOwnerThatCannotBeFound(t *testing.T) {
	runOwned(t, func(t *testing.T, w *world, o *owners, files *owned) {
		user := o.user
		o.set(nil, fmt.Errorf("%w: forbidden", issue.ErrUnavailable))
		if err := w.Publish(t.Context(), cart("v")); !errors.Is(err, issue.ErrUnavailable) {
			t.Errorf("%v, want unavailable", err)
		}
		synctest.Wait()
		if got := w.volumes.log(); got != "" || len(w.all()) != 0 {
			t.Errorf("begun all the same: %q", got)
		}
		o.set(user, nil)
		if err := w.Publish(t.Context(), cart("v")); err != nil {
			t.Fatal(err)
		}
		if got := files.all(); got != "[1000]" {
			t.Errorf("the files belonged to %s", got)
		}
	})
}

// The search for the owner is within the time of the publish, and its end is said
// to be an outage.
func TestOwnerTakesTooLong(t *testing.T) {
	runOwned(t, func(t *testing.T, w *world, o *owners, _ *owned) {
		o.wait = true
		begin := time.Now()
		err := w.Publish(t.Context(), cart("v"))
		if !errors.Is(err, issue.ErrUnavailable) || errors.Is(err, ErrPending) {
			t.Errorf("%v, want unavailable", err)
		}
		if took := time.Since(begin); took != 10*time.Second {
			t.Errorf("gave up after %s, want the publish timeout", took)
		}
	})
}

// A publish that joins a volume without having asked for its owner begins none
// when that volume has ended meanwhile: the files would be root's.
func TestJoiningBeginsNothing(t *testing.T) {
	runOwned(t, func(t *testing.T, w *world, _ *owners, files *owned) {
		answer := make(chan error, 1)
		v := cart("v")
		id, err := w.ID(v.Pod)
		if err != nil {
			t.Fatal(err)
		}
		w.post(v.ID, message{event: Published{}, volume: &v, id: id, answer: answer, joins: true})
		if err := <-answer; !errors.Is(err, ErrUnpublished) {
			t.Errorf("%v, want that the volume ended", err)
		}
		synctest.Wait()
		if got := files.all(); got != "[]" || len(w.all()) != 0 {
			t.Errorf("begun all the same, files of %s", got)
		}
		if err := w.Publish(t.Context(), cart("v")); err != nil {
			t.Fatal(err)
		}
		if got := files.all(); got != "[1000]" {
			t.Errorf("the files belonged to %s", got)
		}
	})
}

// A publish that finds another under way joins it and its owner.
func TestOverlappingPublishesHaveOneOwner(t *testing.T) {
	runOwned(t, func(t *testing.T, w *world, o *owners, files *owned) {
		release := make(chan struct{})
		w.issuer.then(func(ctx context.Context, r issue.IssueRequest) (issue.Issued, error) {
			<-release
			return w.issuer.sign(ctx, r)
		})
		results := make(chan error, 2)
		go func() { results <- w.Publish(t.Context(), cart("v")) }()
		synctest.Wait()
		go func() { results <- w.Publish(t.Context(), cart("v")) }()
		synctest.Wait()
		close(release)
		for range 2 {
			if err := <-results; err != nil {
				t.Error(err)
			}
		}
		if got := files.all(); got != "[1000]" || o.asked != 1 {
			t.Errorf("files of %s, asked %d times", got, o.asked)
		}
	})
}
