// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Package install puts Signet on a cluster the way a user does: images under
// the names in the manifests, the example issuer, whose root an administrator
// approves, and the manifests of deploy/ as `kubectl kustomize` prints them.
//
// It owns the order of these steps and the waiting between them. What may
// differ between installations (trust domain, lifetime, requester, log level)
// is changed in the arguments of the containers, as a user's own kustomize
// patch would; there are no manifests that only tests see.
//
// Every wait is on a watch. An installation that does not come up says which
// pod is to blame and how its log ends.
//
// It never talks to Signet itself and knows nothing of its protocols: what is
// installed here is tested elsewhere.
package install
