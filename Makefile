# Steadfast. `make` alone lists the targets; each says what it does and
# installs what it needs (test/need), and prints a SKIP with the reason where
# it cannot.
SHELL   := /usr/bin/env bash
GO      ?= go
BIN     := bin
# The tools stand in modules of their own, so that the product's module graph
# holds the product's libraries only. Each is built once per version, by go.
GOFUMPT := $(GO) tool -modfile=tools/go.mod gofumpt
LINT    := $(GO) tool -modfile=tools/lint/go.mod golangci-lint
BUF     := $(GO) tool -modfile=tools/buf/go.mod buf
GOFILES  = $$(git ls-files -co --exclude-standard '*.go' | grep -vE '\.(pb|connect)\.go$$')
FUZZTIME ?= 30s
SEEDS    ?= 500

.DEFAULT_GOAL := help
.PHONY: help build up down demo test check format lint sim e2e e2e-guest conformance isa-check machine-check nightly bench scale fuzz deb walk generate clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z][a-z0-9-]*:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build bin/steadfast
	@mkdir -p $(BIN)
	$(GO) build -trimpath -o $(BIN)/ ./cmd/steadfast

up: build ## two storage nodes, a witness, three hosts and a fault-tolerant Debian machine with Redis on loopback, no root; Ctrl-C or make down ends them
	@test/need image || true
	@$(BIN)/steadfast up

down: build ## end what make up runs, and remove its data (bin/steadfast down --keep-data keeps them)
	@$(BIN)/steadfast down --yes

demo: build ## some minutes: what make up makes, in a temporary directory; hosts, nodes, witness and boxes killed under a checked load; removed. ROUNDS=n
	@test/need image || true
	@$(BIN)/steadfast demo --own --rounds $(or $(ROUNDS),1)

test: ## everything CI runs: vet, format, archtest, unit, race, short fuzz and sim, conformance, e2e with tools, a pair, a guest, machines
	@test/need test conformance e2e pair image || true
	@$(GO) run ./test/suite

check: format lint ## format and lint, then archtest, unit, race, short fuzz and short sim (first run compiles the linters: minutes)
	@test/need test || true
	@$(GO) run ./test/suite -only vet,gofmt,archtest,unit,race,fuzz,sim

format: ## rewrite the Go files as gofumpt wants them
	@$(GOFUMPT) -l -w $(GOFILES)

lint: ## golangci-lint with .golangci.yml
	@$(LINT) run ./...

sim: ## the simulated worlds: SEEDS histories of the store (default 500), 50 times as many of the pair, 5 times of its device servers on real pools
	$(GO) run ./test/suite -only sim -seeds $(SEEDS)

e2e: build ## our initiator, libiscsi tools, qemu-img and a QEMU guest against a node; then machines on three boxes, root, a quarter of an hour (MACHINES=kind: those alone). PEER=tgt tries the first on tgt. ROUNDS=n KIND=k hurts a pair, KIND=ft or ft-... a machine on two hosts, KIND=box or box-... a site of two boxes
	@test/need e2e guest pair image $(if $(PEER),peer) $(if $(filter multipath,$(CLIENT)),multipath) || true
	@$(if $(filter ft% box%,$(KIND)),$(GO) run ./test/machines -fio=false -rounds $(or $(ROUNDS),1) -kind $(KIND),$(if $(ROUNDS)$(KIND),$(GO) run ./test/pair -rounds $(or $(ROUNDS),1) -kind $(or $(KIND),all) $(if $(CLIENT),-client $(CLIENT)),$(if $(MACHINES),$(GO) run ./test/machines -kind $(MACHINES),$(GO) run ./test/initiator $(if $(PEER),-peer $(PEER)) && $(GO) run ./test/e2e $(if $(PEER),-peer $(PEER),&& $(GO) run ./test/machines))))

e2e-guest: build ## SLOW (minutes): the Linux kernel initiator in an emulated guest: CHAP, ext4, fio, node restarts; PEER=tgt
	@test/need guest $(if $(PEER),peer) || true
	@$(GO) run ./test/e2e -guest $(if $(PEER),-peer $(PEER))

conformance: build ## every suite of iscsi-test-cu, four ways and read-only, and on a pair's paths; PEER=tgt judges tgt instead
	@test/need conformance $(if $(PEER),peer) || true
	@$(GO) run ./test/conformance $(if $(PEER),-peer $(PEER)) $(if $(SUITES),-suites $(SUITES))

isa-check: ## the processor against QEMU: random programs, all registers after each instruction; N (a million), SEED
	@test/need isa || true
	@$(GO) run ./test/isa -n $(or $(N),1000000) -seed $(or $(SEED),1)

machine-check: ## SLOW (minutes): a Debian guest at work is recorded and lived again from its log, in several ways; SEED, STOPS, LEAK=clock|map
	@test/need image || true
	@$(GO) run ./test/machine -stops $(or $(STOPS),1000) $(if $(SEED),-seed $(SEED)) $(if $(LEAK),-leak $(LEAK))

nightly: build ## SLOW (half an hour): Debian guests under load, judged: nginx, PostgreSQL, stress-ng, fio, Redis; TIME of each load (60s), ONLY
	@test/need image || true
	@$(GO) run ./test/guestlife -time $(or $(TIME),60s) $(if $(ONLY),-only '$(ONLY)')

bench: build ## SLOW (25 minutes), root: speed against tgt, and of machines against QEMU, in the same run; BENCH_SECONDS, BENCH_ROUNDS, BENCH_ROWS
	@test/need bench image || true
	@$(GO) run ./test/bench

scale: build ## SLOW (half an hour), root for a part: 1,000 sessions and volumes, 2,000 snapshots, full pools overwritten, 64 TiB inside 256 MiB
	@$(GO) run ./test/scale

fuzz: ## every fuzz target for FUZZTIME (default 30s) each
	@$(GO) run ./test/suite -only fuzz -fuzztime $(FUZZTIME)

deb: ## the Debian package, dist/steadfast_VERSION_ARCH.deb; VERSION (the last tag, or the commit), GOARCH
	@GO="$(GO)" VERSION="$(VERSION)" packaging/deb dist

walk: build deb ## SLOW (half an hour), root: the package installed and purged, and every command of docs/walk.md; ONLY=deb,hand,machines
	@test/need walk image || true
	@$(GO) run ./test/walk $(if $(ONLY),-only $(ONLY))

generate: ## regenerate api/ from its .proto files
	@mkdir -p $(BIN)/tools
	@$(GO) build -modfile=tools/go.mod -o $(BIN)/tools/ google.golang.org/protobuf/cmd/protoc-gen-go connectrpc.com/connect/cmd/protoc-gen-connect-go
	@PATH="$(CURDIR)/$(BIN)/tools:$$PATH" $(BUF) generate

clean: ## remove what was built and fetched; volumes in ./steadfast-data stay
	rm -rf $(BIN) .cache dist
