# `make run` and `make test` are all that a newcomer needs; `make help` lists the rest.
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
JOBS ?= 2
CARGO := cargo --config net.retry=5
ENGINE := vswitchd/_engine.abi3.so
RUST := $(shell find engine \( -name target -o -name fuzz \) -prune -o \( -name '*.rs' -o -name 'Cargo.*' \) -print)
DATA ?= run

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

run: deps engine ## start a controller and three SPs on loopback, with a mirrored volume to try
	@exec $(PY) -m vswitchd quickstart --dir $(DATA)

test: lint engine deps-test ## everything that guards this repository
	cd engine && $(CARGO) test --locked -j$(JOBS) --workspace --exclude vs-py
	$(PY) -m pytest -n $(JOBS) --dist=worksteal --ignore=tests/e2e
	$(PY) -m pytest tests/e2e

lint: deps proto-check ## style, types, lints, drift of generated code
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	cd engine && $(CARGO) fmt --check
	$(CARGO) metadata --locked --format-version 1 --manifest-path engine/fuzz/Cargo.toml > /dev/null
	cd engine && $(CARGO) clippy --locked -j$(JOBS) --workspace --all-targets -- -D warnings

format: deps ## put every file into the project's style
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	cd engine && $(CARGO) fmt

engine: deps $(ENGINE) ## build the engine in release and install the package, editable, into the venv

proto: deps ## generate the gRPC stubs from proto/
	$(PY) proto/generate.py

proto-check: deps
	$(PY) proto/generate.py --check

bench: engine deps-test ## measure beside nbdkit, qemu-nbd and nbd-server, and over iSCSI beside tgt
	scripts/need.sh nbd-server:nbd-server tgtd:tgt
	$(PY) -m tests.bench $(BENCH)

ROUNDS ?= 500
SECONDS ?= 3600
FIRST ?= 2000
FAULTS ?= 500
CUTS ?= 100
soak: engine deps-test ## the large state-space searches, the simulation for SECONDS seconds, all pairs of interruptions, the kill test for ROUNDS rounds, FAULTS faults, CUTS partitions (SEED=n replays)
	cd engine && $(CARGO) test --locked -j$(JOBS) -p vs-space -- --ignored
	PYTHONHASHSEED=0 $(PY) -W ignore -m tests.sim --first $(FIRST) --count 100000000 --seconds $(SECONDS)
	VSWITCHD_SOAK=1 $(PY) -m pytest tests/controller/test_interruption.py --timeout 0
	VSWITCHD_KILL_ROUNDS=$(ROUNDS) $(if $(SEED),VSWITCHD_SEED=$(SEED)) $(PY) -m pytest tests/e2e/test_kill.py --timeout 0
	VSWITCHD_FAULTS=$(FAULTS) VSWITCHD_CUTS=$(CUTS) $(if $(SEED),VSWITCHD_SEED=$(SEED)) $(PY) -m pytest tests/e2e/test_faults.py --timeout 0

fuzz: deps ## what reads hosts' bytes, by coverage: each target for SECONDS seconds, JOBS at once (TARGETS="login cdb": these)
	scripts/need.sh c++:g++
	scripts/fuzz.sh $(SECONDS) $(JOBS) $(TARGETS)

lock: deps ## resolve pyproject.toml anew into requirements.lock
	$(PY) -m uv pip compile pyproject.toml --extra dev --generate-hashes --upgrade --quiet --universal \
	    --python-version 3.11 --no-emit-index-url --no-annotate --no-header --output-file requirements.lock

deps: $(VENV)/.locked
	@command -v cargo >/dev/null || { echo "cargo is missing: install Rust 1.85 or later (rustup brings it), then run make again." >&2; exit 1; }

$(VENV)/.locked: requirements.lock
	@PYTHON=$(PYTHON) scripts/need.sh $(PYTHON):python3 venv:python3-venv cc:gcc
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than 3.11: name a newer one with make PYTHON=..." >&2; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	touch $@

deps-test:
	@scripts/need.sh ip:iproute2 nbdkit:nbdkit nbdinfo:libnbd-bin py/nbd:python3-libnbd fio:fio qemu-img:qemu-utils \
	    nbdkit/python:nbdkit-plugin-python qemu-system-x86_64:qemu-system-x86 debootstrap:debootstrap cpio:cpio mke2fs:e2fsprogs \
	    iscsi-test-cu:libiscsi-bin qemu/iscsi:qemu-block-extra

$(ENGINE): $(RUST) $(VENV)/.locked pyproject.toml
	$(VENV)/bin/maturin develop --release --locked --quiet -j $(JOBS)
	touch $@

clean: ## remove what was built; data in DATA stays
	rm -rf engine/target engine/fuzz/target engine/fuzz/work $(ENGINE) .mypy_cache .ruff_cache .pytest_cache .hypothesis

.PHONY: help run test lint format engine proto proto-check bench soak fuzz lock deps deps-test clean
