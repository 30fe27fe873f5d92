# Copyright The Signet Authors.
# SPDX-License-Identifier: Apache-2.0

# Needs Go, gcc, make and git; as root on Debian the rest is installed (`make
# deps`). What ends a target early is an error with its cause; nothing is left
# running.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO ?= go
VERSION ?= v0.1.0
# Kubernetes of demo, test-e2e and cluster-up: one of those pinned below
# integration/tools.
KUBERNETES_VERSION ?= 1.36.3
KUBERNETES_VERSIONS ?= 1.34.4 1.35.4 1.36.3
# Where a failed end-to-end run leaves its logs.
export SIGNET_LOGS ?= $(CURDIR)/logs
# A clone that git does not trust (another user's, a bind mount) is built too.
export GOFLAGS += -buildvcs=false
FUZZTIME ?= 20s
DEMO_FLAGS ?=
TEST_FLAGS ?=
BENCH_FLAGS ?=

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.9.0
BUF := github.com/bufbuild/buf/cmd/buf@v1.75.0
GOTESTSUM := gotest.tools/gotestsum@v1.13.0
BENCHSTAT := golang.org/x/perf/cmd/benchstat@v0.0.0-20260908200009-22c9c6c9d4da

MODULES := . integration

# gotestsum prints what go test does, the reason of every skip, and a count.
gotest = $(GO) run $(GOTESTSUM) --format $(1) --format-hide-empty-pkg --
# Packages of the integration module that bring up no cluster.
light = $$($(GO) list ./... | grep -v -e /integration/cluster$$ -e /integration/e2e$$)

.PHONY: help
help: ## Say what there is
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: deps
deps: ## Install the Debian packages that a cluster needs (as root; else say what is missing)
	cd integration && if [ "$$(id -u)" = 0 ]; then $(GO) run ./cmd/cluster deps --install; else $(GO) run ./cmd/cluster deps; fi

.PHONY: build
build: ## Build the agent, the approver and the sample into bin/
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/signet-agent ./agent
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/signet-approver ./approver
	cd integration && CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w" -o ../bin/sample ./samples/sample

.PHONY: demo
demo: deps ## Two pods speak mTLS on a real Kubernetes on this machine (as root); some minutes, the first time
	cd integration && $(GO) run ./cmd/demo --kubernetes-version=$(KUBERNETES_VERSION) $(DEMO_FLAGS)

.PHONY: test
test: deps-clients lint test-unit test-cluster test-e2e ## Everything: lint, unit tests with the race detector, end to end on a real Kubernetes (as root)

.PHONY: test-unit
test-unit: ## Unit tests, with the race detector
	$(call gotest,pkgname) -race $(TEST_FLAGS) ./...
	cd integration && $(call gotest,pkgname) -race $(TEST_FLAGS) $(light)

.PHONY: test-cluster
test-cluster: deps ## The tests of the cluster itself
	cd integration && $(call gotest,testname) -count=1 -timeout=30m $(TEST_FLAGS) ./cluster

.PHONY: deps-clients
deps-clients: ## Install gRPC for Python, for two tests of its client (as root; without it they are skipped)
	@if [ "$$(id -u)" = 0 ] && ! [ -d /usr/lib/python3/dist-packages/grpc ]; then \
		apt-get update && apt-get install -y --no-install-recommends python3-grpcio; \
	fi

.PHONY: test-e2e
test-e2e: deps deps-clients ## End to end: a real Kubernetes with two nodes on this machine
	cd integration && SIGNET_KUBERNETES_VERSION=$(KUBERNETES_VERSION) $(call gotest,testname) -count=1 -timeout=30m $(TEST_FLAGS) ./e2e

.PHONY: soak
soak: deps deps-clients ## End to end, with ten minutes under readers that never stop
	cd integration && SIGNET_SOAK=10m SIGNET_KUBERNETES_VERSION=$(KUBERNETES_VERSION) $(call gotest,testname) -count=1 -timeout=45m $(TEST_FLAGS) ./e2e

.PHONY: test-versions
test-versions: deps deps-clients ## End to end on every supported version of Kubernetes
	cd integration && for version in $(KUBERNETES_VERSIONS); do \
		echo "Kubernetes $$version"; \
		SIGNET_KUBERNETES_VERSION=$$version $(call gotest,testname) -count=1 -timeout=60m $(TEST_FLAGS) ./e2e; \
	done

# What protects users of the API; see proto/doc.go. buf is built from source, which
# takes one to two minutes on two cores, the first time.
proto_checks = cd proto && $(GO) run $(BUF) lint && $(GO) run $(BUF) breaking --against baseline.txtpb

# Text may come out with other spaces from another build of buf; this does not.
image = $(GO) run $(BUF) build --exclude-source-info -o -

.PHONY: generate
generate: ## Generate the code of proto/ anew; refuses changes that break users of the API
	$(proto_checks)
	cd proto && $(GO) run $(BUF) generate && $(GO) run $(BUF) build --exclude-source-info -o baseline.txtpb

.PHONY: lint-proto
lint-proto: ## Check proto/: style, breaking changes, and that the generated code is current
	@echo "buf lint and breaking-change check in proto"
	@$(proto_checks)
	@fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; cd proto; $(GO) run $(BUF) generate -o "$$fresh"; \
	for file in $$(cd "$$fresh" && find . -type f); do \
		cmp -s "$$fresh/$$file" "$$file" || { echo "proto/$$file is not what the .proto files say: run make generate"; exit 1; }; \
	done; \
	cmp -s <($(image)) <($(GO) run $(BUF) build baseline.txtpb -o -) || { echo "proto/baseline.txtpb is not what the .proto files say: run make generate"; exit 1; }

.PHONY: lint
lint: lint-proto ## gofmt, go vet, staticcheck, proto/, and govulncheck where its database can be reached
	@unformatted=$$(gofmt -l .); \
	if [ -n "$$unformatted" ]; then echo "not formatted with gofmt:"; echo "$$unformatted"; exit 1; fi
	@for module in $(MODULES); do \
		echo "go vet and staticcheck in $$module"; \
		(cd $$module && $(GO) vet ./... && $(GO) run $(STATICCHECK) ./...); \
	done
	@if curl --silent --fail --max-time 10 --output /dev/null https://vuln.go.dev/index/db.json; then \
		for module in $(MODULES); do (cd $$module && $(GO) run $(GOVULNCHECK) ./...); done; \
	else \
		echo "govulncheck skipped: its database at vuln.go.dev cannot be reached from here (or there is no curl)"; \
	fi

# The end-to-end tests that show rules which only a real node can show.
CONFORMANCE_CLUSTER ?= TestRunning/^speaking$$

.PHONY: conformance
conformance: deps ## Run the tests of the SPIFFE standards' rules, on a real Kubernetes too (as root); writes docs/conformance.md
	$(GO) run ./internal/conformance/generate -race -cluster='$(CONFORMANCE_CLUSTER)'

.PHONY: fuzz
fuzz: ## Fuzz every fuzz target for FUZZTIME each
	@for package in $$($(GO) list ./...); do \
		for target in $$($(GO) test -list '^Fuzz' $$package | grep '^Fuzz' || true); do \
			echo "$$package $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $$package; \
		done; \
	done

.PHONY: bench
bench: deps ## Measure Signet beside the least that any client has to do, on a real Kubernetes (as root); writes docs/benchmarks.md
	cd integration && $(GO) run ./cmd/bench --kubernetes-version=$(KUBERNETES_VERSION) $(BENCH_FLAGS)

.PHONY: bench-compare
bench-compare: ## Compare the last two runs of make bench
	@runs=$$( (ls bin/bench/*.txt 2>/dev/null || true) | tail -n 2); \
	if [ "$$(wc -w <<<"$$runs")" != 2 ]; then echo "bin/bench holds fewer than two runs: run make bench twice"; exit 1; fi; \
	$(GO) run $(BENCHSTAT) $$runs

.PHONY: bench-micro
bench-micro: ## Go benchmarks of single packages
	$(GO) test -run '^$$' -bench . -benchmem ./...

.PHONY: cluster-up
cluster-up: deps ## Bring up a Kubernetes with two nodes and leave it running
	cd integration && $(GO) run ./cmd/cluster up --nodes 2 --kubernetes-version $(KUBERNETES_VERSION)

.PHONY: cluster-down
cluster-down: ## Take it down
	cd integration && $(GO) run ./cmd/cluster down

.PHONY: clean
clean: ## Remove what was built and logged here (not the cache outside the repository)
	rm -rf bin logs
