# `make demo` and `make test` do everything on a fresh Debian or Ubuntu with Rust; `make help` lists the rest.

CARGO ?= cargo
PEERS := integration/peers/setup

.PHONY: help
help: ## What can be made
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

.PHONY: demo
demo: ## An authority, three services and their sidecars in this terminal
	$(CARGO) build --locked --release
	target/release/countersign demo

.PHONY: build
build: ## The binary, for development: target/debug/countersign
	$(CARGO) build --locked

.PHONY: peers
peers: ## Install or build the real peers that the tests run against, once
	$(PEERS)

.PHONY: test
test: peers build ## Every test: units, and the real binary with real peers
	$(CARGO) test --locked --workspace --no-fail-fast

COUNTERSIGN_SOAK ?= 600

.PHONY: soak
soak: peers build ## Everything at once for ten minutes, or for COUNTERSIGN_SOAK=N seconds
	COUNTERSIGN_SOAK=$(COUNTERSIGN_SOAK) $(CARGO) test --locked -p countersign-integration --test soak -- --nocapture

.PHONY: lint
lint: ## Format, clippy and documentation, as CI checks them
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps

SECONDS ?= 60

.PHONY: fuzz
fuzz: ## Every fuzz target for a minute, or for SECONDS=N; see fuzz/README.md
	CARGO="$(CARGO)" fuzz/run $(SECONDS)

.PHONY: abuse
abuse: peers ## Abuse of HTTP/2 against the release binary: honest p99 and memory under each attack
	$(CARGO) build --locked --release
	COUNTERSIGN_BINARY=$(CURDIR)/target/release/countersign COUNTERSIGN_ABUSE=1 \
		$(CARGO) test --locked -p countersign-integration --test http2_abuse -- --nocapture --test-threads=1

.PHONY: bench
bench: ## The data path beside its peers (an hour), into bench/results; the time of a policy decision
	bench/setup
	$(CARGO) build --locked --release --package countersign --package countersign-bench
	bench/run
	$(CARGO) bench --locked -p countersign-policy

.PHONY: image
image: ## The container image
	docker build -t countersign .
