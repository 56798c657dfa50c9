# `make` lists the targets. Each sets up what it needs: .venv is made once, and again when the pinned versions change.

.DEFAULT_GOAL := help
.PHONY: help setup run test test-all quick lint check ui serve clean
SHELL := /bin/sh

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.thinner-installed

# The first of these that is Python 3.11 or newer; `make run PYTHON=/path/to/python` chooses another.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

# `make setup INSTALLER=uv` installs with uv, which has to be there; `make setup TORCH_INDEX=URL` takes torch and
# torchvision from that index, such as one with CPU-only wheels. docs/setup.md
INSTALLER ?= pip
TORCH_INDEX ?=
ifeq ($(INSTALLER),uv)
NEW_VENV = { rm -rf $(VENV); uv venv --quiet --seed --python "$(PYTHON)" $(VENV); }
# compiled once, as pip does by itself: else every program compiles torch, MLflow and Prefect as it starts
INSTALL  = uv pip install --quiet --compile-bytecode --python $(BIN)/python
FROM_INDEX = $(INSTALL) --index "$(TORCH_INDEX)"
else
NEW_VENV = "$(PYTHON)" -m venv --clear $(VENV)
INSTALL  = $(BIN)/python -m pip install --quiet --disable-pip-version-check
# also in place of further indexes that pip is set up for: of the same version it might take theirs
FROM_INDEX = PIP_EXTRA_INDEX_URL="$(TORCH_INDEX)" $(INSTALL) --index-url "$(TORCH_INDEX)"
endif
ifeq ($(TORCH_INDEX),)
SIZE = Downloads about 3.4 GB (2.5 of them for CUDA) and takes 7 GB of disk, as measured on Linux x86-64 with Python \
	3.11. Without a GPU: make setup TORCH_INDEX=URL, an index with CPU-only wheels of torch (docs/setup.md)
else
SIZE = torch comes from TORCH_INDEX; the rest downloads about 0.4 GB, as measured on Linux x86-64 with Python 3.11
endif

help: ## list the targets
	@echo "make run      set up once, then bring every stage up to date: data to small model to report"
	@echo "make test     set up once, then run the tests   (make quick: the fast ones, make test-all: the longest as well;"
	@echo "              ARGS='-k word' chooses)"
	@echo "make ui       MLflow and Prefect in the browser, on this machine only; Ctrl-C ends both"
	@echo "make serve    the nightly schedule: Prefect server and worker on this machine; Ctrl-C ends both"
	@echo "make check    before a commit: ruff, its format, mypy, the fast tests   (make lint: without the tests)"
	@echo "make setup    only the set-up   (INSTALLER=uv; TORCH_INDEX=URL for CPU-only torch: docs/setup.md)"
	@echo "make clean    remove .venv and caches; data, results and records stay"

setup: $(STAMP) ## make .venv with the pinned versions

run: $(STAMP) ## the whole pipeline
	@$(BIN)/python -m flows.pipeline $(ARGS)

# Three workers, since tests wait for servers and clocks, each with a file at a time: fixtures of a module are made once,
# and the longest file comes first (conftest).
WORKERS = -n 3 --dist=loadfile --no-loadscope-reorder

test: $(STAMP) ## all tests but the longest, and those that need a GPU
	@$(BIN)/python -m pytest -m "not long and not gpu" $(WORKERS) --durations=25 $(ARGS)

test-all: $(STAMP) ## with the longest: an hour's work played through, clusters, peers
	@$(BIN)/python -m pytest -m "not gpu" $(WORKERS) --durations=25 $(ARGS)

quick: $(STAMP) ## the fast, offline tests
	@$(BIN)/python -m pytest -m "not integration and not gpu" $(WORKERS) $(ARGS)

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

check: lint quick ## the gate: what a commit has to pass

ui: $(STAMP)
	@$(BIN)/python -m flows.serve ui

serve: $(STAMP)
	@$(BIN)/python -m flows.serve serve

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis htmlcov .coverage *.egg-info

# The stamp is written last, so a set-up that was interrupted is done again.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed and was not found. Install it, or name it:" \
		"make run PYTHON=/path/to/python3.11"; exit 1; }
	@case "$(INSTALLER)" in pip) ;; uv) command -v uv >/dev/null || { echo "INSTALLER=uv: uv was not found on PATH." \
		"Install it, or leave INSTALLER out"; exit 1; } ;; \
		*) echo "INSTALLER='$(INSTALLER)': unknown. Choose pip or uv"; exit 1 ;; esac
	@echo "Setting up $(VENV) with $(PYTHON) and $(INSTALLER). $(SIZE)."
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(NEW_VENV) || { echo "Could not make a virtual environment." \
		"On Debian and Ubuntu: apt install python3-venv"; rm -rf $(VENV); exit 1; }
ifneq ($(TORCH_INDEX),)
	@$(FROM_INDEX) --no-deps --constraint constraints.txt torch torchvision
endif
	@$(INSTALL) --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)
