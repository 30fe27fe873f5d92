// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// secrets are what a private key and a service account's token look like: the
// PEM header, and two parts of a JWT, of which the first begins with {" in
// base64.
var secrets = regexp.MustCompile(`PRIVATE KEY-----|eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}`)

// No token and no private key in logs at any level, in Events, in any object
// that describes Signet's work. The agents and approvers of this run logged all
// they can.
func testNoSecretIsWrittenAnywhere(t *testing.T) {
	ctx := needCluster(t, testTimeout)
	dir := t.TempDir()
	if err := env.cluster.CollectLogs(ctx, dir); err != nil {
		t.Fatal(err)
	}
	files, agents := 0, 0
	for _, root := range []string{dir, env.logs} {
		err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.Type().IsRegular() {
				return err
			}
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			files++
			if bytes.Contains(content, []byte("NodePublishVolume")) {
				agents++
			}
			if at := secrets.FindIndex(content); at != nil {
				// Not the secret itself: this is a log, too.
				t.Errorf("%s holds a key or a token at byte %d, in the line that begins %q", path, at[0], beginning(content, at[0]))
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if files < 20 || agents == 0 {
		t.Errorf("%d files were searched, %d of which speak of publishing: this test looks in the wrong place", files, agents)
	}
}

// beginning is the begin of the line around an offset.
func beginning(content []byte, at int) []byte {
	line := content[bytes.LastIndexByte(content[:at], '\n')+1 : at]
	return line[:min(len(line), 80)]
}

// The expression that finds secrets does find them.
func TestSecretsAreRecognised(t *testing.T) {
	for _, secret := range []string{
		"-----BEGIN PRIVATE KEY-----",
		"-----BEGIN EC PRIVATE KEY-----",
		"token eyJhbGciOiJSUzI1NiIsImtpZCI6IngifQ.eyJhdWQiOlsiaHR0cHM6Ly9rIl19.c2lnbmF0dXJl",
	} {
		if !secrets.MatchString(secret) {
			t.Errorf("%q is not recognised", secret)
		}
	}
	if secrets.MatchString("-----BEGIN CERTIFICATE-----") {
		t.Error("a certificate is taken for a secret")
	}
}
