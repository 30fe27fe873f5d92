// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
)

const (
	keyMode    = 0o600
	publicMode = 0o644
)

// file is one file that is to be written.
type file struct {
	name    string
	what    string // It is, for the user.
	content []byte
	mode    fs.FileMode
}

// writeX509 writes what SPIRE's -write does, and says so on w. Files of a set appear
// one right after the other, each complete; if one cannot be written, none appears.
func writeX509(w io.Writer, dir string, svids []x509SVID, answer *workload.X509SVIDResponse) error {
	var files []file
	for i, svid := range svids {
		files = append(files,
			file{fmt.Sprintf("svid.%d.pem", i), fmt.Sprintf("SVID #%d", i), encode(svid.chain), publicMode},
			file{fmt.Sprintf("svid.%d.key", i), fmt.Sprintf("key #%d", i),
				pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: answer.GetSvids()[i].GetX509SvidKey()}), keyMode},
			file{fmt.Sprintf("bundle.%d.pem", i), fmt.Sprintf("bundle #%d", i), encode(svid.bundle), publicMode})
		for j, f := range svid.federated {
			files = append(files, file{fmt.Sprintf("federated_bundle.%d.%d.pem", i, j),
				fmt.Sprintf("federated bundle #%d for trust domain %s", j, f.domain), encode(f.authorities), publicMode})
		}
	}
	if err := writeFiles(dir, files); err != nil {
		return fmt.Errorf("-write %s: %w", dir, err)
	}
	p := &printer{w: w}
	for _, f := range files {
		p.printf("Writing %s to file %s.\n", f.what, filepath.Join(dir, f.name))
	}
	return p.err
}

func encode(certs []*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// writeFiles writes each file under another name first. A name that is taken by
// anything but a regular file is an error: a symbolic link may be somebody's who
// wants the key elsewhere.
func writeFiles(dir string, files []file) (err error) {
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("there is no such directory; make it, as with mkdir -m 700")
	}
	if err != nil {
		return err
	}
	defer root.Close()
	suffix := ".tmp-" + rand.Text()[:10]
	defer func() {
		if err == nil {
			return
		}
		for _, f := range files {
			_ = root.Remove("." + f.name + suffix) // As far as they are there.
		}
	}()
	for _, f := range files {
		info, err := root.Lstat(f.name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err == nil && !info.Mode().IsRegular() {
			return fmt.Errorf("%s is there and is no regular file; remove it first", f.name)
		}
		if err := writeNew(root, "."+f.name+suffix, f); err != nil {
			return err
		}
	}
	for _, f := range files {
		if err := root.Rename("."+f.name+suffix, f.name); err != nil {
			return err
		}
	}
	return nil
}

// writeNew makes a file that has its final mode from the beginning, or a stricter one.
func writeNew(root *os.Root, name string, f file) error {
	out, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, f.mode)
	if err != nil {
		return err
	}
	if _, err := out.Write(f.content); err != nil {
		return errors.Join(err, out.Close())
	}
	return out.Close()
}
