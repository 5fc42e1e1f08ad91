# Every target makes the environment it needs from nothing; the second time that is done already.
# Another interpreter: make demo PYTHON=python3.12. Another place: make demo VENV=/somewhere/else.

PYTHON ?= python3
VENV ?= .venv
# Test processes. With more, give each its memory: torch alone takes 0.3 GiB.
WORKERS ?= 2
# What to test, and how: make test ARGS="tests/eslkit -k resize -x"
ARGS ?=

BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help demo test test-slow test-models lint format types layers docs check bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo         train, shrink and compare a denoiser on photographs; ends in runs/demo/report.html"
	@echo "make test         the test suite"
	@echo "make test-slow    what takes long: processes that are killed and go on, for every trainer"
	@echo "make test-models  the same laws on strangers' networks (installs the extra 'models')"
	@echo "make lint         ruff: rules and format          make format  mends what can be mended"
	@echo "make types        pyright, strict for eslkit      make layers  imports run one way only"
	@echo "make docs         the documentation, into site/"
	@echo "make check        test, lint, types, layers and docs"
	@echo "make bench        every benchmark of benchmarks/"
	@echo "make clean        takes away what was built; neither $(VENV) nor runs/"

# A stamp is written when its installation has succeeded, so an interrupted one starts again.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "eslkit needs Python 3.11 or newer, '$(PYTHON)' is not: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/.made
	$(PIP_INSTALL) -e '.[tsdn]'
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP_INSTALL) -e '.[tsdn,dev]'
	@touch $@

$(VENV)/.docs: $(VENV)/.demo
	$(PIP_INSTALL) -e '.[docs]'
	@touch $@

$(VENV)/.models: $(VENV)/.dev
	$(PIP_INSTALL) -e '.[models]'
	@touch $@

$(VENV)/.benchmarks: $(VENV)/.demo
	$(PIP_INSTALL) -e '.[benchmarks,models]'
	@touch $@

demo: $(VENV)/.demo
	$(BIN)/eslkit-tsdn demo $(ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow $(ARGS)

test-models: $(VENV)/.models
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m models $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(VENV)/.dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: $(VENV)/.dev
	$(BIN)/pyright --pythonpath $(BIN)/python

layers: $(VENV)/.dev
	$(BIN)/lint-imports

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

check: test lint types layers docs

bench: $(VENV)/.benchmarks
	@set -e; for script in benchmarks/*.py; do \
	  [ -e "$$script" ] || { echo "benchmarks/ holds no benchmark yet" >&2; exit 2; }; \
	  echo "$$script"; $(BIN)/python "$$script"; \
	done

clean:
	rm -rf build dist site .pytest_cache .ruff_cache .import_linter_cache .hypothesis
