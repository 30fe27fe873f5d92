// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// screen prints what happens, each line with the time since the start. On a
// terminal it has colours and, below all lines, one that changes in place. It
// is safe for concurrent use.
type screen struct {
	began    time.Time
	terminal bool

	mu     sync.Mutex
	out    io.Writer
	status string
}

func newScreen(out *os.File) *screen {
	info, err := out.Stat()
	terminal := err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	return &screen{began: time.Now(), terminal: terminal, out: out}
}

// Colours, as SGR parameters.
const (
	bold   = "1"
	grey   = "90"
	red    = "31"
	green  = "32"
	yellow = "33"
	cyan   = "36"
)

func (s *screen) paint(colour, text string) string {
	if !s.terminal || colour == "" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// title prints a line without a time.
func (s *screen) title(text string) {
	s.print(s.paint(bold, text))
}

// say prints one thing that happened.
func (s *screen) say(colour, topic, format string, args ...any) {
	at := fmt.Sprintf("%6.1fs", time.Since(s.began).Seconds())
	s.print(s.paint(grey, at) + "  " + s.paint(colour, fmt.Sprintf("%-9s", topic)) + " " + fmt.Sprintf(format, args...))
}

func (s *screen) print(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clearStatus()
	fmt.Fprintln(s.out, line)
	s.drawStatus()
}

// now sets the line that changes in place; without a terminal there is none.
func (s *screen) now(format string, args ...any) {
	if !s.terminal {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clearStatus()
	s.status = fmt.Sprintf(format, args...)
	s.drawStatus()
}

// rest removes the line that changes in place.
func (s *screen) rest() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clearStatus()
	s.status = ""
}

func (s *screen) clearStatus() {
	if s.status != "" {
		fmt.Fprint(s.out, "\r\x1b[2K")
	}
}

func (s *screen) drawStatus() {
	if s.status != "" {
		fmt.Fprint(s.out, s.paint(grey, s.status))
	}
}

// lines is a writer whose every line is said on one topic.
func (s *screen) lines(colour, topic string) io.Writer {
	return &lineWriter{say: func(line string) { s.say(colour, topic, "%s", line) }}
}

type lineWriter struct {
	say func(string)

	mu   sync.Mutex
	rest []byte
}

func (w *lineWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rest = append(w.rest, p...)
	for {
		line, after, ok := bytes.Cut(w.rest, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		w.say(string(line))
		w.rest = after
	}
}
