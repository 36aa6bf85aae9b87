# What a person types. Everything that is made lies below .build.
#
# Recipes call programs of the tree and hold no logic of their own. Anything that
# takes long prints what it is doing.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

BUILD := .build
BIN   := $(BUILD)/bin
GUEST := $(BUILD)/guest
TOOLS := $(BUILD)/tools
# tools.sh writes env.sh, which puts what it unpacked in front of PATH.
ENV   := . $(TOOLS)/env.sh &&

SHIM       := $(BIN)/containerd-shim-erofsvm-v2
AGENT      := $(BIN)/erofsvm-agent
# Static, and the same bytes from the same sources wherever the tree lies. no_grpc
# leaves out containerd's gRPC services, of which the shim speaks the ttrpc ones: 6 MB
# of the binary, and the memory that their packages take when they are initialised.
SHIM_BUILD  := CGO_ENABLED=0 go build -trimpath -tags no_grpc -ldflags '-s -w -buildid='
# The agent has C in it, for which its libc is musl: glibc takes 0.8 MB more of each
# guest (docs/decisions/0032-the-agent-is-linked-with-musl.md). The compiler is named by
# its whole path: Go's cache knows packages by that, and not by what pkg-config says, and
# would else give one tree the folder of another that may be gone. Functions begin at
# multiples of 16 bytes and not of 32, which is 90 KB less of them.
SECCOMP     := $(CURDIR)/$(TOOLS)/seccomp
MUSL_GCC    := $(CURDIR)/$(TOOLS)/musl/bin/musl-gcc
AGENT_BUILD := CGO_ENABLED=1 CC=$(MUSL_GCC) PKG_CONFIG=$(SECCOMP)/pkg-config go build -trimpath -tags 'netgo osusergo seccomp' -ldflags '-s -w -funcalign=16 -extldflags -static -buildid='

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
# The packages whose tests run the whole path have a target of their own.
E2E_PACKAGES  := ./test/e2e/... ./test/faults/... ./test/truth/... ./test/cri/... ./test/templates/...
UNIT_PACKAGES = $$(go list ./... | grep -v -E '/test/(e2e|faults|truth|cri|templates|k8s)(/|$$)')
TEST_FLAGS    ?=
FUZZ_TIME     ?= 2m

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-22s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# What a run of the demo needs: one containerd and not three, whose builds take
# longest.
RUN_TOOLS := go qemu kernel vhost-device-vsock base debs erofs-utils musl seccomp containerd-2.4.2

.PHONY: run-tools
run-tools:
	@test/setup/tools.sh $(RUN_TOOLS)

.PHONY: tools
tools: ## bring two QEMUs, a guest kernel, erofs-utils and three containerds into .build/tools
	@test/setup/tools.sh

.PHONY: build
build: run-tools ## the shim and the guest agent, static, into .build/bin
	@mkdir -p $(BIN)
	@echo "Building the shim, the guest agent and the tools of the tests"
	@$(ENV) $(SHIM_BUILD) -o $(SHIM) ./cmd/containerd-shim-erofsvm-v2
	@$(ENV) $(AGENT_BUILD) -o $(AGENT) ./cmd/erofsvm-agent
	@$(ENV) CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o $(BIN)/ ./cmd/erofsvm ./guest/image/cmd/build-guest-image ./test/image/cmd/build-test-image ./test/tree/cmd/tree-list ./test/demo

# The kernel of the guest: ours, once `make guest-kernel` has built it, or else that of
# the distribution. GUEST_KERNEL=.build/tools/kernel takes that in any case.
GUEST_KERNEL ?= $(firstword $(wildcard $(TOOLS)/guest-kernel) $(TOOLS)/kernel)

.PHONY: guest-kernel
guest-kernel: ## a kernel with our configuration, which guest-image then takes (7 minutes on two cores, once)
	@test/setup/tools.sh guest-kernel

.PHONY: guest-image
guest-image: build ## the guest's kernel and initramfs into .build/guest; prints what is in them
	@$(BIN)/build-guest-image -kernel $(GUEST_KERNEL) -agent $(AGENT) -out $(GUEST)

.PHONY: images
images: build ## the OCI images of the demo and the tests into .build/images
	@$(BIN)/build-test-image -base $(TOOLS)/base -out $(BUILD)/images

.PHONY: run
run: guest-image images ## run a real image in a VM under a private containerd, and say what happened
	@$(ENV) $(BIN)/demo

.PHONY: test
test: test-unit test-kubernetes test-report test-e2e conformance-short ## every test: unit tests with -race, the Helm chart, the ones that boot VMs, and suites of others in short

.PHONY: test-unit
test-unit: tools ## unit tests with the race detector
	@$(ENV) go test -race $(TEST_FLAGS) -timeout 15m $(UNIT_PACKAGES)

# A module of its own, for which Helm and types of Kubernetes are built.
.PHONY: test-kubernetes
test-kubernetes: run-tools ## the Helm chart, rendered by Helm and read with Kubernetes' types
	@$(ENV) cd test/kubernetes && go test $(TEST_FLAGS) -timeout 10m ./...

# A module of its own too, for which what draws is built.
.PHONY: test-report
test-report: run-tools ## the page that bench makes of its reports
	@$(ENV) cd test/bench/report && go vet ./... && go test $(TEST_FLAGS) -timeout 5m ./...

.PHONY: test-e2e
test-e2e: tools guest-image images ## end-to-end and fault tests: containerd, the shim, QEMU and a guest
	@$(ENV) go test -race -count=1 $(TEST_FLAGS) -timeout 30m -p 1 $(E2E_PACKAGES)

.PHONY: test-cri
test-cri: tools guest-image images ## pods by the CRI of three containerds, as the kubelet makes them (test-e2e has a selection)
	@$(ENV) go test -race -count=1 $(TEST_FLAGS) -timeout 30m ./test/cri -args -all

.PHONY: kubernetes-tools
kubernetes-tools:
	@test/setup/tools.sh kubernetes

# Not part of `test`: the programs of Kubernetes take long to build, once. LOGS=dir keeps
# what they say.
.PHONY: test-k8s
test-k8s: tools kubernetes-tools guest-image images ## a real Kubernetes of one node with pods in VMs, driven by kubectl (slow at first)
	@$(ENV) go test -race -count=1 $(TEST_FLAGS) -timeout 30m -v ./test/k8s $(if $(LOGS),-args -logs $(abspath $(LOGS)))

.PHONY: test-vhost
test-vhost: guest-image ## the kernel's vsock and network backends, inside an outer VM where the host has none (slow)
	@$(ENV) go test -tags vhostvsock $(TEST_FLAGS) -timeout 30m -v -run '^TestVhost$$' ./hypervisor/qemu

CONFORMANCE := $(BIN)/conformance

.PHONY: conformance-program
conformance-program:
	@$(ENV) CGO_ENABLED=0 go build -trimpath -o $(CONFORMANCE) ./test/conformance

.PHONY: conformance
conformance: guest-image images conformance-program ## the suite shimtest, by others, against the shim
	@$(ENV) $(CONFORMANCE) shimtest

.PHONY: conformance-containerd
conformance-containerd: tools guest-image images conformance-program ## the client tests of three containerds (slow)
	@$(ENV) $(CONFORMANCE) containerd

.PHONY: conformance-short
conformance-short: tools guest-image images conformance-program ## what of both fits into the check of a change
	@$(ENV) $(CONFORMANCE) -short shimtest
	@$(ENV) $(CONFORMANCE) -short containerd

.PHONY: lint
lint: tools ## gofmt, vet, staticcheck and the house rules
	@$(ENV) unformatted=$$(gofmt -l $$(git ls-files '*.go' 2>/dev/null || find . -name '*.go')); \
		if [ -n "$$unformatted" ]; then echo "not formatted (gofmt -w): $$unformatted" >&2; exit 1; fi
	@$(ENV) go vet ./...
	@$(ENV) go run $(STATICCHECK) ./...
	@$(ENV) go test -count=1 ./test/policy

BENCH        := $(BUILD)/bench
BENCH_REPORT := go -C test/bench/report run . -dir $(CURDIR)/$(BENCH)

.PHONY: bench
bench: guest-image images conformance-program ## a ctr run by phases, memory, layers, execs and their streams, pods, runc beside, into .build/bench/report.md
	@test/setup/tools.sh fio runc iperf3
	@$(ENV) go run ./test/bench -out $(BENCH)
	@$(ENV) go run ./test/bench/templates -out $(BENCH)
	@$(ENV) go run ./test/bench/disks -out $(BENCH)
	@$(ENV) go run ./test/bench/execs -out $(BENCH)
	@$(ENV) go run ./test/bench/network -out $(BENCH)
	@$(ENV) go run ./test/bench/pods -out $(BENCH)
	@$(ENV) $(CONFORMANCE) benchmarks
	@$(ENV) $(BENCH_REPORT)

# What takes longest is left out or made small: the ratios are as good, and their
# spread is not.
.PHONY: bench-quick
bench-quick: guest-image images ## the same within ten minutes, with fewer samples and without runc
	@test/setup/tools.sh fio iperf3
	@$(ENV) go run ./test/bench -out $(BENCH) -runs 2
	@$(ENV) go run ./test/bench/templates -out $(BENCH) -runs 2 -pods 3 -burst 5
	@$(ENV) go run ./test/bench/disks -out $(BENCH) -runs 1 -ways=false
	@$(ENV) go run ./test/bench/execs -out $(BENCH) -samples 50 -execs 50 -size 64 -flow 64
	@$(ENV) go run ./test/bench/network -out $(BENCH) -runs 1
	@$(ENV) go run ./test/bench/pods -out $(BENCH) -runs 1 -containers 1 -pods 1,3
	@$(ENV) $(BENCH_REPORT)

.PHONY: proto
proto: ## regenerate agentclient/pb and runtime/sandboxapi/podconfig from their .proto files
	@test/setup/tools.sh protoc
	@$(ENV) agentclient/pb/generate.sh

.PHONY: fuzz
fuzz: tools ## every fuzz target for FUZZ_TIME (2m)
	@$(ENV) for pkg in $$(go list ./...); do \
		for target in $$(go test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
			echo "$$pkg $$target"; go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZ_TIME) $$pkg; \
		done; done

.PHONY: clean
clean: ## remove what was built; keep the tools and the guest kernel
	@rm -rf --one-file-system $(BIN) $(GUEST) $(BUILD)/images $(BUILD)/run $(BUILD)/bench
