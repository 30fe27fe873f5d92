// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

// Command passer passes a point and says so.
package main

import (
	"fmt"

	"github.com/signet-spiffe/signet/internal/failpoint"
)

func main() {
	defer fmt.Println("deferred")
	failpoint.Here("some/point")
	fmt.Println("passed")
}
