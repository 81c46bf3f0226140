# Everything a fresh clone needs is installed by hack/deps.sh (as root, with
# apt) or named by it. Tests that need device-mapper run on a real kernel: the
# host's own, or a User-mode Linux that hack/testkernel boots.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
GO ?= go
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
KERNEL := $(CURDIR)/hack/testkernel exec
CUTS ?= 20

.PHONY: all build demo test test-unit test-kernel test-race lint bench deps clean

all: build

build: ## the binary, bin/csi-dmsnap
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/csi-dmsnap ./cmd/csi-dmsnap

deps: ## install or name what the tests need
	@hack/deps.sh

demo: deps build ## the main job on a real kernel, told step by step
	@hack/demo

test: deps ## all tests; ends with their number
	@hack/test -cuts $(CUTS)

lint:
	@test -z "$$(gofmt -l cmd hack pkg test)" || { gofmt -l cmd hack pkg test; echo "not gofmt-clean"; exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags kernel ./...
	$(GO) vet -tags powercut ./test/powercut/...
	$(GO) run $(STATICCHECK) -tags kernel ./...
	$(GO) run $(STATICCHECK) -tags powercut ./test/powercut/...

bench: deps ## measure against lvm2 in the same kernel; writes out/bench.json
	@mkdir -p out
	@hack/bench

clean:
	rm -rf bin out
