# hack/deps.sh installs everything that a fresh clone needs (as root, with apt),
# or names it. Tests that need device-mapper run on a real kernel: the host's,
# or a User-mode Linux that hack/testkernel boots.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
GO ?= go
GOLANGCI_LINT := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
ACTIONLINT := github.com/rhysd/actionlint/cmd/actionlint@v1.7.12
PROTOC_GEN_GO := google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
PROTOC_GEN_GO_GRPC := google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2
KERNEL := $(CURDIR)/hack/testkernel exec
CUTS ?= 20
DURATION ?= 0s
FOR ?= 1h
SEED ?= 0
VERSION ?= $(shell sed -n 's/^appVersion: *//p' deploy/helm/csi-dmsnap/Chart.yaml)
IMAGE ?= ghcr.io/csi-dmsnap/csi-dmsnap:$(VERSION)
ARCH ?= amd64
# These modules are separate, so that the driver's own module has few
# dependencies.
MODULES := hack/image hack/chart test/e2e

.DEFAULT_GOAL := build
.PHONY: all help build image image-root chart pictures demo points flushes cuts model test kernels fuzz lint generate bench scale deps cluster cluster-down e2e e2e-smoke clean

help: ## this list
	@awk 'BEGIN { FS = ":.*## " } /^##@ / { print "\n" substr($$0, 5) } /^[a-z0-9-]+:.*## / { printf "  %-14s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

##@ Build

all: build ## the same as build, which is the default

build: ## the binary, bin/csi-dmsnap
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/csi-dmsnap ./cmd/csi-dmsnap

out/image/csi-dmsnap-$(ARCH): FORCE
	CGO_ENABLED=0 GOOS=linux GOARCH=$(ARCH) $(GO) build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$(VERSION)" -o $@ ./cmd/csi-dmsnap
FORCE:

image: out/image/csi-dmsnap-$(ARCH) ## the container image, out/image/csi-dmsnap-ARCH.tar (ARCH=amd64)
	$(GO) -C hack/image run . -arch $(ARCH) -binary $(CURDIR)/$< -debs $(CURDIR)/out/debs -reference $(IMAGE) -archive $(CURDIR)/$<.tar

image-root: out/image/csi-dmsnap-$(ARCH) ## the files of the image in a directory, out/image/root, for the Dockerfile
	rm -rf out/image/root
	$(GO) -C hack/image run . -arch $(ARCH) -binary $(CURDIR)/$< -debs $(CURDIR)/out/debs -root $(CURDIR)/out/image/root

clean: ## delete bin and out
	rm -rf bin out

##@ Check a change

deps: ## install what the tests need (Debian, as root), or name what is missing
	@hack/deps.sh

FUZZTIME ?= 1m
FUZZ ?=
fuzz: ## run each fuzzer for FUZZTIME (1m), or those that match FUZZ; keep inputs that reach new code
	$(GO) run ./hack/fuzz -time $(FUZZTIME) -only '$(FUZZ)'

lint: ## golangci-lint of all modules with each build tag, go vet, the workflows
	$(GO) run $(GOLANGCI_LINT) config verify
	$(GO) run $(GOLANGCI_LINT) run --build-tags kernel
	$(GO) run $(GOLANGCI_LINT) run --build-tags powercut ./test/powercut/...
	$(GO) run $(GOLANGCI_LINT) run --build-tags kernel,points ./test/points ./internal/point
	$(GO) run $(GOLANGCI_LINT) run --build-tags cluster ./test/sanity
	for m in $(MODULES); do (cd $$m && $(GO) run $(GOLANGCI_LINT) run); done
	$(GO) vet ./...
	$(GO) vet -tags kernel,points ./...
	$(GO) run $(ACTIONLINT)

test: deps ## all tests but e2e; PARTS="unit kernel points powercut modules" selects, CUTS=20, DURATION=8h
	@hack/test -cuts $(CUTS) -duration $(DURATION) $(PARTS)

# KERNELS="uml-6.12 uml-smp", PARTS="kernel sanity powercut interop",
# PACKAGES=./internal/pool, RUN=TestCut and CUTS narrow the run. All kernels but
# the installed one are fetched once. uml-smp is built, which takes most of an
# hour. The whole run takes several hours.
kernels: ## kernel tests, csi-sanity, power cuts, interop with another lvm2 on several kernels, for hours; ends with a matrix
	@hack/deps.sh --kernels
	@KERNELS="$(KERNELS)" PARTS="$(PARTS)" PACKAGES="$(PACKAGES)" RUN='$(RUN)' CUTS=$(CUTS) hack/kernels

# FOR=8h runs longer. A power cut after which something is wrong is kept in
# out/flushes, and the failure says how to check it again.
flushes: deps ## cut the power of disks that lose their caches, for FOR=1h; then the same on dm-log-writes
	@mkdir -p out/flushes
	DMSNAP_SHARE=$(CURDIR)/out/flushes DMSNAP_TIMEOUT=0 $(GO) test -tags kernel -count=1 -timeout 0 -exec "$(KERNEL)" \
		-run 'TestFlushes' -v ./test/flush -args -for $(FOR) -seed $(SEED)

points: deps ## cut each operation at each of its points, for hours; POINTS="cut,expand" or cut-next:17 selects
	@hack/points $(POINTS)

# EACH=250 interruptions have one seed; RECORD names another file for the lines.
cuts: deps ## a campaign of power cuts with many seeds, recorded in docs/reliability; CUTS=10000 JOBS=2 KERNELS="uml uml-smp"
	@CUTS=$(if $(filter file,$(origin CUTS)),1000,$(CUTS)) EACH="$(EACH)" JOBS="$(JOBS)" KERNELS="$(KERNELS)" RECORD="$(RECORD)" hack/cuts

model: deps ## random operations against a model, for hours, recorded in docs/reliability; FOR=8h KERNELS="uml uml-smp"
	@FOR="$(FOR)" EACH="$(EACH)" KERNELS="$(KERNELS)" SEED="$(SEED)" hack/model

# DMSNAP_BENCH="-quick" does fewer repetitions, "-run 'write_.*64KiB'" measures
# only figures whose names match, "-list" prints the names. A full run takes
# about an hour and 30 GB.
bench: deps ## measure against lvm2 in the same kernel, out/bench.json; DMSNAP_BENCH="-quick -run freeze" selects
	@hack/bench $(DMSNAP_BENCH)

# SCALE="-short" takes a few minutes. A full run takes hours, most of them for
# vgchange. SCALE="-steps 4000 -activate 0" measures one size only.
scale: deps ## measure a node with up to 10,000 logical volumes, out/scale.json; SCALE=-short for a few minutes, SCALE=controller for 1,000 nodes
	@hack/scale $(SCALE)

##@ Try it

demo: deps build ## the life of a volume on a real kernel, step by step
	@hack/demo

cluster: image bin/e2e ## a real Kubernetes with two nodes and the driver; prints KUBECONFIG; needs root
	@hack/deps.sh --e2e
	@bin/e2e up --driver

cluster-down: bin/e2e ## stop and delete the cluster
	@bin/e2e down

e2e-smoke: image bin/e2e ## the user's story and five of Kubernetes' own tests, on a real Kubernetes
	@hack/deps.sh --e2e
	@bin/e2e test smoke

e2e: image bin/e2e ## all tests on a real Kubernetes, for hours; E2E="upstream --focus subPath" selects
	@hack/deps.sh --e2e
	@bin/e2e test $(E2E)

# The cluster's programs are compiled with -trimpath. With the same flag, this
# build shares their cache.
bin/e2e: FORCE
	@cd test/e2e && CGO_ENABLED=0 $(GO) build -buildvcs=false -trimpath -o ../../$@ .

##@ Generated files

generate: ## the code of internal/roleapi/*.proto; needs protoc (Debian: protobuf-compiler)
	GOBIN=$(CURDIR)/out/protoc $(GO) install $(PROTOC_GEN_GO)
	GOBIN=$(CURDIR)/out/protoc $(GO) install $(PROTOC_GEN_GO_GRPC)
	PATH=$(CURDIR)/out/protoc:$$PATH protoc --go_out=. --go_opt=paths=source_relative \
		--go-grpc_out=. --go-grpc_opt=paths=source_relative internal/roleapi/*.proto

chart: ## the chart's README, the plain manifests and the golden renders
	cd hack/chart && $(GO) run . && $(GO) test -update ./...

pictures: ## the pictures in docs/pictures from their texts
	$(GO) run ./hack/pictures
