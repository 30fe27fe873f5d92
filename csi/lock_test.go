// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
)

// The second agent of a driver says that it waits, gives up when it is told to
// stop, and goes on when the first has ended. Another driver's does not wait.
func TestLock(t *testing.T) {
	root := t.TempDir()
	first, err := Lock(t.Context(), root, testDriver, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	other, err := Lock(t.Context(), root, "other.example", testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	defer other()

	read, write := io.Pipe()
	lines := bufio.NewScanner(read)
	second := func(ctx context.Context) <-chan error {
		t.Helper()
		result := make(chan error, 1)
		go func() {
			unlock, err := Lock(ctx, root, testDriver, slog.New(slog.NewTextHandler(write, nil)))
			if err == nil {
				err = unlock()
			}
			result <- err
		}()
		if !lines.Scan() || !strings.Contains(lines.Text(), "another agent") {
			t.Fatalf("the second agent said %q", lines.Text())
		}
		return result
	}
	stopping := errors.New("told to stop")
	ctx, stop := context.WithCancelCause(t.Context())
	result := second(ctx)
	stop(stopping)
	if err := <-result; !errors.Is(err, stopping) {
		t.Errorf("told to stop, it ended with %v", err)
	}
	result = second(t.Context())
	select {
	case err := <-result:
		t.Errorf("it did not wait: %v", err)
	default:
	}
	if err := first(); err != nil {
		t.Fatal(err)
	}
	if err := <-result; err != nil {
		t.Error(err)
	}
}
