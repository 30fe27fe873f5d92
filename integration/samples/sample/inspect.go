// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
)

// entry describes one name in a directory.
type entry struct {
	Name string `json:"name"`
	node
	// Target is where a symbolic link points, and Resolved what is there.
	Target   string `json:"target,omitempty"`
	Resolved *node  `json:"resolved,omitempty"`
}

// node is what a name leads to.
type node struct {
	// Type is file, directory, symlink, socket or other.
	Type string `json:"type"`
	// Mode holds the permission bits in octal.
	Mode string `json:"mode"`
	UID  uint32 `json:"uid"`
	GID  uint32 `json:"gid"`
	Size int64  `json:"size"`
}

func newListCommand(p *printer) *cobra.Command {
	return &cobra.Command{
		Use:   "ls DIR",
		Short: "List a directory, itself first: types, modes, owners and link targets, as JSON",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			entries, err := list(args[0])
			if err != nil {
				return err
			}
			p.print(entries)
			return nil
		},
	}
}

func list(dir string) ([]entry, error) {
	self, err := describe(dir, ".")
	if err != nil {
		return nil, err
	}
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	entries := []entry{self}
	for _, name := range names {
		e, err := describe(dir, name.Name())
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	return entries, nil
}

func describe(dir, name string) (entry, error) {
	path := filepath.Join(dir, name)
	info, err := os.Lstat(path)
	if err != nil {
		return entry{}, err
	}
	e := entry{Name: name, node: nodeOf(info)}
	if e.Type != "symlink" {
		return e, nil
	}
	if e.Target, err = os.Readlink(path); err != nil {
		return entry{}, err
	}
	// A link that leads nowhere, or where we may not go, is no error: it is what
	// there is to see.
	if info, err := os.Stat(path); err == nil {
		resolved := nodeOf(info)
		e.Resolved = &resolved
	}
	return e, nil
}

func nodeOf(info fs.FileInfo) node {
	mode := info.Mode()
	permissions := uint32(mode.Perm())
	for bit, value := range map[fs.FileMode]uint32{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if mode&bit != 0 {
			permissions |= value
		}
	}
	n := node{Type: typeOf(mode), Mode: fmt.Sprintf("%04o", permissions), Size: info.Size()}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		n.UID, n.GID = stat.Uid, stat.Gid
	}
	return n
}

func typeOf(mode fs.FileMode) string {
	switch mode.Type() {
	case 0:
		return "file"
	case fs.ModeDir:
		return "directory"
	case fs.ModeSymlink:
		return "symlink"
	case fs.ModeSocket:
		return "socket"
	}
	return "other"
}

func newCatCommand(out io.Writer) *cobra.Command {
	return &cobra.Command{
		Use:   "cat FILE",
		Short: "Print a file as it is (also a private key)",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = io.Copy(out, f)
			return err
		},
	}
}
