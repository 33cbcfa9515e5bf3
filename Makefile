# `make` lists the targets. Everything is built under CARGO_TARGET_DIR, or under target/.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup build demo test bench evidence monitoring dist fmt clean-data

comma := ,
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
# Release without link-time optimisation: what tests and the demo build and run.
CI := --locked --workspace --profile ci
# The agent with named crash points, and the tests that start it. Whole workspace, so that dependencies stay as they
# were built: only the agent is compiled once more.
CRASHES := edgefleet-agent/failpoints,edgefleet-tests/failpoints
# The linker that comes with Rust on x86-64 folds functions with equal code: part of 21.3 MB.
FOLD := $(if $(filter x86_64,$(shell uname -m)),RUSTFLAGS="$(RUSTFLAGS) -Clink-arg=-Wl$(comma)--icf=all")
# Long-lived things that are no build products; outside the checkout where EDGEFLEET_CACHE names a place.
CACHE := $(or $(EDGEFLEET_CACHE),$(TARGET_DIR))
VENV := $(CACHE)/venv-tests
# More models for the engine bench: files, bundles or folders of them.
BENCH_MODELS ?=
# cargo-install's default, where `tests/setup.sh` puts tools, may not be on PATH.
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: ## Install what the tests need (Debian packages, Python environment, cargo tools)
	@tests/setup.sh "$(VENV)" "$(CACHE)/target-tools"

build: ## Build both programs (profile `ci`: real speed, quick to link)
	cargo build $(CI) --bins

demo: build ## Run the demo: a controller, eight agents, real images (DEMO_ARGS="--devices 4 --keep")
	"$(TARGET_DIR)/ci/edgefleet" demo $(DEMO_ARGS)

test: setup ## Run every check and test
	@.ci/step format cargo fmt --all --check
	@.ci/step pages .ci/check-docs
	@.ci/step dependencies cargo deny --locked check licenses bans sources
	@.ci/step clippy cargo clippy $(CI) --all-targets --features $(CRASHES) -- -D warnings
	@RUSTDOCFLAGS="-D warnings" .ci/step docs cargo doc $(CI) --no-deps --document-private-items
	@.ci/step build cargo build $(CI) --bins
	@.ci/step "build with crash points" cargo build $(CI) --features edgefleet-agent/failpoints --bin edgefleet-agent-failpoints
	@.ci/step doctests cargo test $(CI) --doc
	@EDGEFLEET_TEST_PYTHON="$$(cd "$(VENV)" && pwd)/bin/python" \
		.ci/step tests cargo nextest run --locked --workspace --features edgefleet-tests/failpoints --cargo-profile ci
	@.ci/step "tests with crash points" cargo nextest run --locked --workspace --lib --features edgefleet-agent/failpoints \
		--cargo-profile ci by_failpoint

bench: setup build ## Measure engines, serving beside its peers, memory, millions of requests, telemetry; writes docs/performance.md (long, wants an idle machine)
	$(FOLD) cargo build --locked --profile dist -p edgefleet-agent
	cargo build --locked --profile ci -p edgefleet-agent --example serve_digits --example engine_floor --example profile_cost
	@mkdir -p target/bench
	agent/peers/install "$(CACHE)/peers"
	"$(TARGET_DIR)/ci/examples/engine_floor" --ort-lib "$$(echo "$(VENV)"/lib/python*/site-packages/onnxruntime/capi/libonnxruntime.so.*)" \
		--openvino "$(CACHE)/peers/openvino/bin/python" \
		--out target/bench/engine.json models/*/v*/model.onnx $(BENCH_MODELS)
	"$(TARGET_DIR)/ci/examples/serve_digits" models/digits/v2 127.0.0.1:0 --measure | tee target/bench/serving.txt
	"$(TARGET_DIR)/ci/examples/profile_cost" | tee target/bench/profile.json
	"$(TARGET_DIR)/ci/measure" footprint --agent-bin "$(TARGET_DIR)/dist/edgefleet-agent" | tee target/bench/footprint.json
	"$(TARGET_DIR)/ci/measure" connections --devices 1000 | tee target/bench/connections.json
	"$(TARGET_DIR)/ci/measure" soak --agent-bin "$(TARGET_DIR)/dist/edgefleet-agent" --requests 3000000 | tee target/bench/soak.json
	"$(TARGET_DIR)/ci/measure" ingest --devices 200 | tee target/bench/ingest.json
	EDGEFLEET_CACHE="$(CACHE)" agent/peers/run
	python3 tests/python/performance.py target/bench docs/performance.md

evidence: build ## Measure false aborts and detection over 10,000 simulated rollouts; writes docs/evidence.md (long)
	"$(TARGET_DIR)/ci/edgefleet" simulate --report docs/evidence.md --rollouts 10000 --threads "$$(nproc)"

monitoring: build ## Replay real data, clean and shifted, through drift and advice; writes docs/monitoring.md
	"$(TARGET_DIR)/ci/edgefleet" simulate --monitoring docs/monitoring.md --seed 11 --threads "$$(nproc)"

dist: ## Build the agent as devices get it (profile `dist`: small) and print its size
	$(FOLD) cargo build --locked --profile dist -p edgefleet-agent
	@stat -c '%n: %s bytes' "$(TARGET_DIR)/dist/edgefleet-agent"

fmt: ## Format the code
	cargo fmt --all

clean-data: ## Remove what the demo and the quick start left behind; builds stay
	rm -rf target/demo "$(TARGET_DIR)/demo" target/try
