# Everything one can do here. `.ci/run` calls only these.

CARGO ?= cargo

.PHONY: help run test ci fmt clippy build bench load glommio sim fuzz corpus deny clean

# Targets of dataplane/fuzz, in the order in which `make fuzz` without a name takes them.
FUZZ := framer decode_client decode_server topics document session
fuzz_names = $(or $(NAME),$(FUZZ))
committed = $(CURDIR)/dataplane/fuzz/tests/__fuzz__
found = $(CURDIR)/target/fuzz/found

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

fuzz: ## Fuzz for a minute each: make fuzz, make fuzz NAME=framer TIME=20m
	@.ci/needs cargo-bolero
	@for name in $(fuzz_names); do \
	    echo "fuzzing $$name for $(or $(TIME),60s)"; mkdir -p $(found)/$$name || exit 1; \
	    $(CARGO) bolero test $$name -p sluice-fuzz --sanitizer NONE -T $(or $(TIME),60s) \
	        --corpus-dir $(found)/$$name --crashes-dir $(committed)/$$name/crashes \
	        --engine-args=$(committed)/$$name/corpus --engine-args=-verbosity=0 --engine-args=-print_final_stats=1 || exit 1; \
	done

corpus: ## Take the smallest set of what `make fuzz` found that reaches all it reached into the committed corpus
	@.ci/needs cargo-bolero
	@for name in $(fuzz_names); do \
	    mkdir -p $(found)/$$name || exit 1; \
	    $(CARGO) bolero test $$name -p sluice-fuzz --sanitizer NONE \
	        --corpus-dir $(committed)/$$name/corpus --crashes-dir $(found)/$$name \
	        --engine-args=-set_cover_merge=1 --engine-args=-use_counters=0 || exit 1; \
	done

deny: ## Licences, duplicates, sources, then advisories (needs cargo-deny; advisories need github.com)
	$(CARGO) deny check licenses bans sources
	$(CARGO) deny check advisories

clean: ## Remove build output
	$(CARGO) clean
