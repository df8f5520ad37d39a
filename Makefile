# Everything one can do here. `.ci/run` calls only these.

CARGO ?= cargo

.PHONY: help run test ci fmt clippy build bench load glommio sim fuzz deny clean

help: ## List the targets
	@awk -F':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## Start broker, control plane and data plane, release policies, show what devices see, stay up until Ctrl-C
	$(CARGO) build --locked --bins
	@exec $(or $(CARGO_TARGET_DIR),target)/debug/sluice-quickstart

test: ## Install what the tests need, build, and run every test
	@.ci/needs
	$(CARGO) build --locked --workspace --bins
	$(CARGO) test --locked --workspace --no-fail-fast

ci: ## What CI runs: format, lints, tests
	@.ci/run

fmt: ## Check the format
	$(CARGO) fmt --all --check

clippy: ## Lints, warnings denied
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

build: ## Optimised binaries in target/release
	$(CARGO) build --locked --release --bins

bench: ## Criterion benches, short form; NAME=mqtt_decode runs one
	$(CARGO) bench --locked -p sluice-bench $(if $(NAME),--bench $(NAME),--bench '*') -- --warm-up-time 0.5 --measurement-time 1 --sample-size 20

load: ## Compare the data plane with bare forwarders, nginx and HAProxy (where installed), short form
	$(CARGO) build --locked --release -p sluice-dataplane -p sluice-bench -p sluice-loadtest --bins
	target/release/sluice-loadtest compare --rounds 3 --duration 2 --json target/load.json

glommio: ## Build the forwarder on glommio beside the others, for `compare --targets glommio`: a workspace of its own
	$(CARGO) build --locked --release --manifest-path bench/glommio/Cargo.toml --target-dir target/glommio
	@mkdir -p target/release && cp target/glommio/release/forward_glommio target/release/

sim: ## Simulate the shard; SEED=n replays one seed
	$(if $(SEED),SLUICE_SIM_SEED=$(SEED)) $(CARGO) test --locked -p sluice-dataplane --test simulation -- --nocapture

fuzz: ## Fuzz one decoder for a minute: make fuzz NAME=framer (needs cargo-bolero)
	$(CARGO) bolero test -p sluice-fuzz --sanitizer NONE $(NAME) -T 60s

deny: ## Licences, advisories, sources (needs cargo-deny)
	$(CARGO) deny check

clean: ## Remove build output
	$(CARGO) clean
