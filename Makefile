# `make run` and `make test` are all a newcomer needs; `make help` lists the rest.
# Every target may be repeated, says what it does, and asks the network only for what is missing.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help build run console check-console test test-kernels kernels lint unit assets bench fuzz stress soak soak-api sequences matrix cycles docker-py doc install clean packages-run packages-test packages-bench packages-docker-py packages-fuzz

CARGO ?= cargo
TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
STRATA := $(TARGET)/release/strata
PREFIX ?= /usr/local

# The store that whole-workload tests use: a real kernel and a real image, prepared once.
ASSETS := $(TARGET)/test-assets
# Kernels of other makers, and a store with some of them.
KERNELS := $(TARGET)/test-kernels
# A store with a compiler and a kernel's source, and what a soak leaves.
SOAK := $(TARGET)/soak
# Random instruction sequences that are compared with the host's own processor.
SEQUENCES ?= 200000
# Where the random sequences begin; each seed gives others.
SEEDS ?= 1
FUZZ_SECONDS ?= 60
# How often `make cycles` restores a machine.
CYCLES ?= 1000
# How long `make soak` begins new rounds, on which engine.
SOAK_MINUTES ?= 60
SOAK_ENGINE ?= auto
# How long clients of the API make and remove workloads.
SOAK_API_MINUTES ?= 30
BENCH_FLAGS ?=

PACKAGES_RUN := gcc libc6-dev mmdebstrap
# Not containerd and runc, which Docker's own packages would have to make room for: what is there is tested and measured.
PACKAGES_TEST := $(PACKAGES_RUN) g++ git buildah busybox-static chromium docker-compose docker-registry iproute2 nftables openssl podman python3-docker skopeo
# In the guest, from the host's package sources.
PACKAGES_SOAK := bc bison bzip2 flex gcc libc6-dev libelf-dev libssl-dev linux-source make xz-utils
# virtiofsd is a part of qemu-system-common, or a package of its own that the other replaces.
PACKAGES_BENCH := $(PACKAGES_TEST) aardvark-dns crun netavark qemu-system-x86 qemu-system-common
PACKAGES_FUZZ := $(PACKAGES_RUN) g++
PACKAGES_DOCKER_PY := $(PACKAGES_RUN) busybox-static iproute2 nftables python3-venv

say = @printf '\033[1m== %s\033[0m\n' "$(1)"
ifdef NO_COLOR
say = @printf '== %s\n' "$(1)"
endif

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

build: packages-run ## Build the program
	$(call say,build)
	$(CARGO) build --release --package strata

run: build ## Prepare a kernel and an image, and run `uname -a` in a microVM
	@if [ -z "$$($(STRATA) kernel ls --quiet)" ]; then \
	    echo "== no kernel in the store yet: strata kernel fetch"; $(call refresh); $(STRATA) kernel fetch; fi
	@if ! $(STRATA) image inspect debian >/dev/null 2>&1; then \
	    echo "== no image debian in the store yet: strata image bootstrap debian"; $(call refresh); \
	    $(STRATA) image bootstrap debian; fi
	$(call say,strata run debian -- uname -a)
	@$(STRATA) run debian -- uname -a

console: console/node_modules ## Build the web console anew from console/, into the program's files
	cd console && npm run --silent check && npm run --silent build

# Without node the files that are there are those that count.
check-console:
	@if ! command -v npm >/dev/null; then echo "== the console's sources are not compared with its files: npm is not installed"; exit 0; fi; \
	$(MAKE) --no-print-directory console/node_modules || { echo "== the console's sources are not compared with its files: npm ci failed"; exit 0; }; \
	built=$$(mktemp -d); trap 'rm -rf "$$built"' EXIT; \
	(cd console && npm run --silent check && node build.mjs "$$built"); \
	diff -rq "$$built" crates/api/assets/console || { echo "the console's files are not what its sources make: make console"; exit 1; }

console/node_modules: console/package-lock.json
	$(call say,the console\'s packages)
	cd console && npm ci --silent
	@touch $@

test: packages-test lint unit ## Everything needed to trust a change

lint: packages-test
	$(call say,format)
	$(CARGO) fmt --all --check
	$(call say,clippy)
	$(CARGO) clippy --release --workspace --all-targets -- --deny warnings
	cd fuzz && $(CARGO) clippy --release --bins --target-dir $(TARGET)/fuzz -- --deny warnings
	$(call say,tidy)
	$(CARGO) xtask tidy
	$(call say,console)
	$(MAKE) --no-print-directory check-console
	$(call say,documentation)
	$(MAKE) --no-print-directory doc

unit: packages-test assets
	$(call say,documentation tests)
	$(CARGO) test --release --workspace --doc --quiet
	$(call say,tests)
	@export STRATA_TEST_ASSETS=$(ASSETS) STRATA_SEQUENCES=$(SEQUENCES); \
	if $(CARGO) nextest --version >/dev/null 2>&1; then \
	    $(CARGO) nextest run --release --workspace; \
	else \
	    $(CARGO) test --release --workspace --lib --bins --tests; \
	fi

assets: build packages-test
	@mkdir -p $(ASSETS)
	@export STRATA_ROOT=$(ASSETS)/store; \
	if [ -z "$$($(STRATA) kernel ls --quiet)" ]; then \
	    echo "== test assets: kernel"; $(call refresh); $(STRATA) kernel fetch; fi; \
	if ! $(STRATA) image inspect debian >/dev/null 2>&1; then \
	    echo "== test assets: image"; $(call refresh); $(STRATA) image bootstrap debian; fi

kernels: assets
	@tests/fetch-kernels.sh $(STRATA) $(KERNELS) $(ASSETS)/store

test-kernels: kernels ## Boot kernels nobody made for Strata: Debian's generic, newer and i386, libkrunfw's, Alpine's
	STRATA_TEST_KERNELS=$(KERNELS) $(CARGO) test --release --package strata --test workload kernels::

bench: packages-bench assets ## Measure Strata beside the host and QEMU (BENCH_FLAGS="--engine jit --rounds 5")
	$(CARGO) xtask bench --store $(ASSETS)/store --strata $(STRATA) $(BENCH_FLAGS)
	$(CARGO) xtask copies --store $(ASSETS)/store --strata $(STRATA)
	$(CARGO) test --release --package engine_kvm --test figures -- --ignored --nocapture | grep -e FIGURE -e skipped
	$(CARGO) xtask containers --store $(ASSETS)/store --strata $(STRATA)
	$(CARGO) xtask pulls --strata $(STRATA)
	$(CARGO) xtask folders --store $(ASSETS)/store --strata $(STRATA)
	$(CARGO) xtask nets --store $(ASSETS)/store --strata $(STRATA)
	$(CARGO) xtask docker --store $(ASSETS)/store --strata $(STRATA)

# Every target runs, whatever the others find. What was found before is run first, until it is mended.
fuzz: packages-fuzz ## Run every fuzz target for FUZZ_SECONDS each; what is found stays below target/fuzz
	$(call say,fuzz targets)
	cd fuzz && $(CARGO) build --release --bins --target-dir $(TARGET)/fuzz
	@TMPDIR=$$(mktemp -d -p /dev/shm 2>/dev/null || mktemp -d); export TMPDIR; trap 'rm -rf "$$TMPDIR"' EXIT; failed=""; \
	for seeds in fuzz/seeds/*; do \
	    name=$$(basename $$seeds); found=$(TARGET)/fuzz/found/$$name; mkdir -p $$found $(TARGET)/fuzz/corpus/$$name; \
	    echo "== fuzz $$name for $(FUZZ_SECONDS) s"; \
	    $(TARGET)/fuzz/x86_64-unknown-linux-gnu/release/$$name $(TARGET)/fuzz/corpus/$$name $$seeds $$found \
	        -max_total_time=$(FUZZ_SECONDS) -timeout=20 -rss_limit_mb=4096 -artifact_prefix=$$found/ -print_final_stats=1 \
	        || failed="$$failed $$name"; \
	done; \
	[ -z "$$failed" ] || { echo "== found something:$$failed; the inputs are below $(TARGET)/fuzz/found"; exit 1; }

stress: assets ## Whole boots under each way to provoke the translator, and each block compared with the interpreter
	STRATA_STRESS=all STRATA_TEST_ASSETS=$(ASSETS) $(CARGO) test --release --package strata --test workload stress:: -- --test-threads 2
	STRATA_STRESS=all $(CARGO) test --release --package engine_soft --test guests

# `make test` runs each test once, with guests that go on from a template where it does not say otherwise. Those of templates
# themselves say what they need. `make test` has some commands in all four ways (tests/starts.rs).
matrix: assets ## Every whole-workload test with guests that booted, go on from a template, were restored, and are copies
	@for start in booted template snapshot copy; do \
	    printf '== guests start %s\n' $$start; \
	    STRATA_TEST_START=$$start STRATA_TEST_ASSETS=$(ASSETS) \
	        $(CARGO) test --release --package strata --test workload -- --skip templates:: || exit 1; done

cycles: packages-run ## Restore and stop a machine CYCLES times: no file, thread or mapping may be left
	STRATA_CYCLES=$(CYCLES) $(CARGO) test --release --package machine --lib restored_and_stopped_again

sequences: SEQUENCES = 1000000
sequences: packages-run ## Millions of random instruction sequences three ways (SEQUENCES=5000000 SEEDS="1 2 3")
	@for seed in $(SEEDS); do \
	    STRATA_SEQUENCES=$(SEQUENCES) STRATA_SEED=$$seed \
	        $(CARGO) test --release --package engine_soft --test differential -- --nocapture --test-threads 1 || exit 1; done

soak: build packages-test ## An hour of kernel builds, compression and forks in a guest (SOAK_MINUTES=60 SOAK_ENGINE=jit)
	@mkdir -p $(SOAK)
	@export STRATA_ROOT=$(SOAK)/store; \
	if [ -z "$$($(STRATA) kernel ls --quiet)" ]; then \
	    echo "== soak: kernel"; $(call refresh); $(STRATA) kernel fetch; fi; \
	if ! $(STRATA) image inspect soak >/dev/null 2>&1; then \
	    echo "== soak: image"; $(call refresh); $(STRATA) image bootstrap soak $(PACKAGES_SOAK:%=--package %); fi
	$(call say,soak: $(SOAK_MINUTES) minutes)
	$(CARGO) xtask soak --store $(SOAK)/store --strata $(STRATA) --engine $(SOAK_ENGINE) --minutes $(SOAK_MINUTES) --out $(SOAK)

soak-api: assets ## Clients that make, use and remove workloads for SOAK_API_MINUTES: nothing may be left
	STRATA_SOAK_SECONDS=$$(( $(SOAK_API_MINUTES) * 60 )) STRATA_TEST_ASSETS=$(ASSETS) \
	    $(CARGO) test --release --package strata --test workload soak_api:: -- --nocapture

docker-py: build packages-docker-py ## The integration tests of docker's SDK for Python, from the Python registry, against `strata serve`
	tests/sdk/docker-py.sh $(STRATA) $(TARGET)/docker-py

doc: ## Build the documentation of every crate
	RUSTDOCFLAGS="--deny warnings --allow rustdoc::private-intra-doc-links" $(CARGO) doc --quiet --release --no-deps --workspace --document-private-items

install: build ## Install program, manual pages and completions below PREFIX
	install -D -m 755 $(STRATA) $(DESTDIR)$(PREFIX)/bin/strata
	$(STRATA) man $(DESTDIR)$(PREFIX)/share/man/man1
	install -d $(DESTDIR)$(PREFIX)/share/bash-completion/completions $(DESTDIR)$(PREFIX)/share/zsh/site-functions \
	    $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d
	$(STRATA) completions bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/strata
	$(STRATA) completions zsh > $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_strata
	$(STRATA) completions fish > $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/strata.fish

clean: ## Remove what was built, test assets included
	$(CARGO) clean

# Package lists may be empty on a new machine; without the right to refresh them the next step says what is missing.
refresh = if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! ls /var/lib/apt/lists/*_Packages* >/dev/null 2>&1; \
    then echo "== apt-get update"; apt-get update -qq; fi

# $(1): packages. Asks apt only for those that are missing.
define install_packages
@command -v $(CARGO) >/dev/null || { echo "cargo is not installed: see rustup.rs"; exit 1; }
@command -v dpkg-query >/dev/null || { echo "not a Debian system: make sure you have the like of: $(1)"; exit 0; }; \
missing=""; for package in $(1); do \
    [ "$$(dpkg-query -W -f '$${db:Status-Status}' $$package 2>/dev/null)" = installed ] || missing="$$missing $$package"; done; \
[ -z "$$missing" ] && exit 0; \
if [ "$$(id -u)" != 0 ]; then echo "missing packages, install them as root: apt-get install$$missing"; exit 1; fi; \
echo "== installing packages:$$missing"; \
apt-get update -qq; DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends$$missing >/dev/null
endef

packages-run:
	$(call install_packages,$(PACKAGES_RUN))
packages-test:
	$(call install_packages,$(PACKAGES_TEST))
packages-bench:
	$(call install_packages,$(PACKAGES_BENCH))
packages-fuzz:
	$(call install_packages,$(PACKAGES_FUZZ))
packages-docker-py:
	$(call install_packages,$(PACKAGES_DOCKER_PY))
