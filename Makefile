# make demo   the whole pipeline on a real corpus, from nothing
# make test   the tests: 7 to 20 minutes on two cores
# make test-slow  the slow tests: growing clusters, submitted jobs, object stores, kills, notebooks
# make check  the linter, the type checker and the tests
# make docs   docs/settings.md, generated from the docstrings of the config
# make browser  installs a headless Chromium for the tests of the report
# make notebooks  execute the notebooks and keep their outputs; after make demo
# make fuzz   the property tests on thousands of random inputs, for several minutes

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0+cpu
# The index of torch's CPU builds, used if the configured index lacks them.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
CONFIG ?= jobs/configs/bbc.yaml

BIN := $(VENV)/bin
# Bytecode is compiled at the first import: compiling packages that are never imported costs a minute.
# It must be kept: a run starts dozens of processes, and each would compile torch and Ray again.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := $(BIN)/python -m pip install -qq --no-deps --no-compile --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow check lint docs notebooks browser fuzz format clean

help:
	@sed -n 's/^# make/make/p' Makefile

demo: $(VENV)/.installed
	$(BIN)/python jobs/prepare_demo.py
	$(BIN)/python jobs/run.py $(CONFIG)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow

check: lint test

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed
	$(BIN)/python -m llkd.config.reference > docs/settings.md

browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || { \
	    test "$$(id -u)" = 0 && command -v apt-get >/dev/null || \
	        { echo "Install the package chromium: without it the tests of the report are skipped"; exit 0; }; \
	    apt-get update -qq && apt-get install -qq --no-install-recommends chromium >/dev/null; }

notebooks: $(VENV)/.installed-dev
	$(BIN)/python notebooks/execute.py

fuzz: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --hypothesis-profile=fuzz --timeout=3600 $(shell find tests -name '*_properties.py')

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) demo runs

$(VENV)/.installed: requirements/cpu.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "LLKD needs Python 3.11 or newer: make PYTHON=python3.11")'
	@echo "Installing into $(VENV), two to three minutes"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(INSTALL) $(TORCH) || $(INSTALL) --index-url $(TORCH_INDEX) $(TORCH)
	@$(INSTALL) -r requirements/cpu.txt
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements/dev.txt
	@$(INSTALL) -r requirements/dev.txt
	@touch $@
