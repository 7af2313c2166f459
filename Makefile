# Everything works from a fresh clone with Python >= 3.10 and nothing else.
PYTHON ?= python3
EXAMPLES ?= 1000
SAMPLE ?= 60
SEED ?= 0
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEV := $(VENV)/.ready-dev
PIP := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install quickstart docs test coverage fuzz mutants real-size lint format clean

help:  ## List the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

install: $(DEV)  ## Make .venv/ and install composir with all its extras and the tools of development.

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "composir needs Python 3.10 or newer; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@echo "Installing composir, the mini backbone and the page into $(VENV)/. On Linux torch alone is up to 3 GB, unless"
	@echo "$(VENV)/ has a build for CPUs (README, Install); the rest is some 250 MB. Once."
	$(PIP) --editable '.[mini,web]'
	@touch $@

$(DEV): $(READY)
	@echo "Installing the other search engines, Ray and the tools of development into $(VENV)/: some 800 MB. Once."
	$(PIP) --editable '.[mini,dev]'
	@touch $@

quickstart: $(READY)  ## Generate data, train the mini model, measure it, search by it, and search photographs.
	$(BIN)/composir quickstart

docs: $(DEV)  ## Build the documentation as a site into site/; a broken link is an error.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	@echo "site/index.html"

test: $(DEV)  ## Run the tests, on all cores.
	$(BIN)/python -m pytest -n auto --dist loadfile

coverage: $(DEV)  ## Run the tests and show which lines none of them runs; slower.
	$(BIN)/python -m pytest -n auto --dist loadfile --cov=composir --cov-report=term-missing:skip-covered

fuzz: $(DEV)  ## Run the property tests on new examples, EXAMPLES (1000) each, ten times those of make test.
	FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest -m hypothesis --hypothesis-profile=fuzz

mutants: $(DEV)  ## Plant SAMPLE (60) small bugs in the core and show which the tests let live; SAMPLE=all: hours.
	$(BIN)/python scripts/mutants.py $(if $(filter all,$(SAMPLE)),,--sample $(SAMPLE)) --seed $(SEED)

real-size: $(READY)  ## Convert, load and train a step of BLIP-2 at its full size, with random weights.
	$(BIN)/python scripts/real_size.py

lint: $(DEV)  ## Check format, lint, spelling, types, dead code and the direction of imports.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/lint-imports
	$(BIN)/vulture
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(DEV)  ## Format the code and mend what ruff can mend.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## Remove .venv/ and caches (not models/ or quickstart/).
	rm -rf $(VENV) .pytest_cache .ruff_cache .coverage
