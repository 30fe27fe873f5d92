// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Package failpoint lets tests kill the agent at a chosen line.
//
// Here marks a line. In a normal build it is an empty function, which the compiler
// inlines to nothing: neither the names nor a branch are in the binary, and a test
// looks. Built with the tag "failpoint", Here ends the process at once, as SIGKILL
// does, if a file of the point's name lies in the folder that the environment
// variable SIGNET_FAILPOINTS names. It removes the file first, so a point fires
// once, the process that follows lives, and whoever armed it can watch the file go.
//
// Names lists every point; a test holds it to the code, both ways. integration/e2e
// runs over all of them, on a real cluster.
//
// The package never decides anything in a binary that somebody installs: no
// manifest, no image and no target of the Makefile is built with the tag.
package failpoint
