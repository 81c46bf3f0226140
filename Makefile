# Everything a fresh clone needs is installed by hack/deps.sh (as root, with
# apt) or named by it. Tests that need device-mapper run on a real kernel: the
# host's own, or a User-mode Linux that hack/testkernel boots.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
GO ?= go
PROTOC_GEN_GO := google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
PROTOC_GEN_GO_GRPC := google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
KERNEL := $(CURDIR)/hack/testkernel exec
CUTS ?= 20
DURATION ?= 0s
VERSION ?= $(shell sed -n 's/^appVersion: *//p' deploy/helm/csi-dmsnap/Chart.yaml)
IMAGE ?= ghcr.io/csi-dmsnap/csi-dmsnap:$(VERSION)
ARCH ?= amd64
# Modules of their own, so that the driver's stays lean.
MODULES := hack/image hack/chart test/e2e

.PHONY: all build image image-root chart pictures demo points test test-unit test-kernel test-race kernels lint generate bench deps cluster cluster-down e2e e2e-smoke clean

all: build

build: ## the binary, bin/csi-dmsnap
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/csi-dmsnap ./cmd/csi-dmsnap

out/image/csi-dmsnap-$(ARCH): FORCE
	CGO_ENABLED=0 GOOS=linux GOARCH=$(ARCH) $(GO) build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$(VERSION)" -o $@ ./cmd/csi-dmsnap
FORCE:

image: out/image/csi-dmsnap-$(ARCH) ## the container image, out/image/csi-dmsnap-ARCH.tar; see hack/image
	$(GO) -C hack/image run . -arch $(ARCH) -binary $(CURDIR)/$< -debs $(CURDIR)/out/debs -reference $(IMAGE) -archive $(CURDIR)/$<.tar

image-root: out/image/csi-dmsnap-$(ARCH) ## the same files in a directory, out/image/root; the Dockerfile uses it
	rm -rf out/image/root
	$(GO) -C hack/image run . -arch $(ARCH) -binary $(CURDIR)/$< -debs $(CURDIR)/out/debs -root $(CURDIR)/out/image/root

pictures: ## the pictures in docs/pictures, after a change of their texts
	$(GO) run ./hack/pictures

chart: ## the chart's README, the plain manifests and the golden renders, after a change of the chart
	cd hack/chart && $(GO) run . && $(GO) test -update ./...

deps: ## install or name what the tests need
	@hack/deps.sh

cluster: image bin/e2e ## a real Kubernetes with two nodes and the driver; prints KUBECONFIG
	@hack/deps.sh --e2e
	@bin/e2e up --driver

cluster-down: bin/e2e ## end it
	@bin/e2e down

e2e: image bin/e2e ## all tests on a real Kubernetes; hours. E2E="upstream --focus subPath" selects
	@hack/deps.sh --e2e
	@bin/e2e test $(E2E)

e2e-smoke: image bin/e2e ## the user's story and five of Kubernetes' own tests
	@hack/deps.sh --e2e
	@bin/e2e test smoke

# The programs of the cluster are compiled with -trimpath: so this shares their cache.
bin/e2e: FORCE
	@cd test/e2e && CGO_ENABLED=0 $(GO) build -buildvcs=false -trimpath -o ../../$@ .

demo: deps build ## the main job on a real kernel, told step by step
	@hack/demo

test: deps ## all tests; ends with their number. DURATION=8h goes on cutting the power
	@hack/test -cuts $(CUTS) -duration $(DURATION)

# KERNELS="uml-6.12 uml-smp", PARTS="kernel sanity powercut", PACKAGES=./internal/pool, RUN=TestCut
# and CUTS narrow it. Other kernels than the installed one are fetched once, and uml-smp
# is built, which takes the better part of an hour. All of it takes some hours.
kernels: ## kernel tests, csi-sanity and power cuts on several kernels; ends with a matrix
	@hack/deps.sh --kernels
	@KERNELS="$(KERNELS)" PARTS="$(PARTS)" PACKAGES="$(PACKAGES)" RUN='$(RUN)' CUTS=$(CUTS) hack/kernels

points: deps ## cut each operation at each of its points; hours. POINTS="cut,expand", POINTS=cut-next:17 selects
	@hack/points $(POINTS)

lint:
	@test -z "$$(gofmt -l cmd hack internal pkg test)" || { gofmt -l cmd hack internal pkg test; echo "not gofmt-clean"; exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags kernel ./...
	$(GO) vet -tags powercut ./test/powercut/...
	$(GO) vet -tags kernel,points ./...
	$(GO) run $(STATICCHECK) -tags kernel ./...
	$(GO) run $(STATICCHECK) -tags powercut ./test/powercut/...
	$(GO) run $(STATICCHECK) -tags kernel,points ./test/points ./internal/point
	for m in $(MODULES); do (cd $$m && $(GO) vet ./... && $(GO) run $(STATICCHECK) ./...); done

generate: ## code from internal/roleapi/*.proto; needs protoc (Debian: protobuf-compiler)
	GOBIN=$(CURDIR)/out/protoc $(GO) install $(PROTOC_GEN_GO)
	GOBIN=$(CURDIR)/out/protoc $(GO) install $(PROTOC_GEN_GO_GRPC)
	PATH=$(CURDIR)/out/protoc:$$PATH protoc --go_out=. --go_opt=paths=source_relative \
		--go-grpc_out=. --go-grpc_opt=paths=source_relative internal/roleapi/*.proto

# DMSNAP_BENCH="-quick": fewer repetitions; "-run 'write_.*64KiB'": only figures whose
# names match; "-list": their names. A full run takes about an hour and 30 GB.
bench: deps ## measure against lvm2 in the same kernel; writes out/bench.json. DMSNAP_BENCH="-quick -run freeze" selects
	@hack/bench $(DMSNAP_BENCH)

clean:
	rm -rf bin out
