// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// volume writes files as the agent does: a new directory per generation, a
// symbolic link swapped in one rename, the generation before kept until the
// next write.
type volume struct {
	t       *testing.T
	dir     string
	n       int
	written []string
}

func newVolume(t *testing.T) *volume { return &volume{t: t, dir: t.TempDir()} }

func (v *volume) must(err error) {
	v.t.Helper()
	if err != nil {
		v.t.Fatal(err)
	}
}

func (v *volume) write(files map[string][]byte) {
	v.t.Helper()
	if len(v.written) == 2 {
		v.must(os.RemoveAll(filepath.Join(v.dir, v.written[0])))
		v.written = v.written[1:]
	}
	v.n++
	generation := fmt.Sprintf("..gen-%d", v.n)
	v.must(os.Mkdir(filepath.Join(v.dir, generation), 0o700))
	for name, content := range files {
		v.must(os.WriteFile(filepath.Join(v.dir, generation, name), content, 0o400))
		if v.n == 1 {
			v.must(os.Symlink(currentLink+"/"+name, filepath.Join(v.dir, name)))
		}
	}
	v.must(os.Symlink(generation, filepath.Join(v.dir, "..data_tmp")))
	v.must(os.Rename(filepath.Join(v.dir, "..data_tmp"), filepath.Join(v.dir, currentLink)))
	v.written = append(v.written, generation)
}

// A reader never meets a key that does not belong to its certificate, however
// often the files change under it.
func TestReadingIsConsistentUnderTenThousandSwaps(t *testing.T) {
	const swaps = 10_000
	ca := newTestCA(t)
	var sets []map[string][]byte
	for range 16 {
		sets = append(sets, ca.files(ca.issue("/reader", time.Now().Add(time.Hour))))
	}
	v := newVolume(t)
	v.write(sets[0])

	ctx, stop := context.WithCancel(t.Context())
	type result struct {
		reads, generations int
		err                error
	}
	results := make(chan result)
	go func() {
		var r result
		last := ""
		for ctx.Err() == nil && r.err == nil {
			var id identity
			if id, r.err = readFiles(v.dir); id.generation != last {
				last = id.generation
				r.generations++
			}
			r.reads++
		}
		results <- r
	}()
	for n := 1; n <= swaps; n++ {
		v.write(sets[n%len(sets)])
	}
	stop()
	r := <-results
	if r.err != nil {
		t.Errorf("read %d: %v", r.reads, r.err)
	}
	if r.generations < 100 {
		t.Errorf("reader met %d generations in %d reads: too few to prove anything", r.generations, r.reads)
	}
	t.Logf("%d reads met %d of %d generations", r.reads, r.generations, swaps+1)
}

func TestFilesFollowRotationAndSurviveBadOnes(t *testing.T) {
	ca := newTestCA(t)
	first, second := ca.issue("/a", time.Now().Add(time.Hour)), ca.issue("/a", time.Now().Add(time.Hour))
	v := newVolume(t)
	v.write(ca.files(first))
	problems := make(chan error, 10)
	f, err := openFiles(v.dir, func(err error) { problems <- err })
	if err != nil {
		t.Fatal(err)
	}
	serial := func() string {
		svid, err := f.GetX509SVID()
		if err != nil {
			t.Fatal(err)
		}
		return serialOf(svid.Certificates[0])
	}
	if got, want := serial(), serialOf(first.Certificates[0]); got != want {
		t.Fatalf("serial is %s, want %s", got, want)
	}

	mixed := ca.files(first)
	mixed[keyFile] = ca.files(second)[keyFile]
	v.write(mixed)
	if err := <-problems; !strings.Contains(err.Error(), "tls.key") {
		t.Errorf("a key of another certificate was reported as %q", err)
	}
	if got, want := serial(), serialOf(first.Certificates[0]); got != want {
		t.Fatalf("after bad files the serial is %s, want %s as before", got, want)
	}

	_, changed := f.current()
	v.write(ca.files(second))
	<-changed
	if got, want := serial(), serialOf(second.Certificates[0]); got != want {
		t.Errorf("after rotation the serial is %s, want %s", got, want)
	}
	if err := f.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

func TestReadFilesSaysWhatIsWrong(t *testing.T) {
	ca := newTestCA(t)
	good := func() map[string][]byte { return ca.files(ca.issue("/a", time.Now().Add(time.Hour))) }
	tests := map[string]struct {
		files map[string][]byte
		want  string
	}{
		"no volume":           {nil, "..data"},
		"no key":              {without(good(), keyFile), keyFile},
		"no bundle":           {without(good(), bundleFile), bundleFile},
		"garbage certificate": {with(good(), certFile, "garbage"), "parse tls.crt"},
		"empty bundle":        {with(good(), bundleFile, ""), "parse ca.crt"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			v := newVolume(t)
			if test.files != nil {
				v.write(test.files)
			}
			_, err := readFiles(v.dir)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %v, want it to mention %q", err, test.want)
			}
		})
	}
}

func without(files map[string][]byte, name string) map[string][]byte {
	delete(files, name)
	return files
}

func with(files map[string][]byte, name, content string) map[string][]byte {
	files[name] = []byte(content)
	return files
}

func TestReadRepeatedlyCountsExpired(t *testing.T) {
	ca := newTestCA(t)
	v := newVolume(t)
	svid := ca.issue("/a", time.Now().Add(time.Hour))
	v.write(ca.files(svid))
	got, err := readRepeatedly(t.Context(), v.dir, 3, 0, time.Now)
	if err != nil || got.Reads != 3 || got.Generations != 1 || got.Serial != serialOf(svid.Certificates[0]) {
		t.Errorf("got %+v, %v", got, err)
	}
	later := func() time.Time { return time.Now().Add(2 * time.Hour) }
	got, err = readRepeatedly(t.Context(), v.dir, 3, 0, later)
	if err == nil || got.Expired != 3 {
		t.Errorf("two hours later: got %+v, %v; want 3 expired and an error", got, err)
	}
}
