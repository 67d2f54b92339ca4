# `make run` and `make test` are all that a fresh machine needs: Python 3.11 or newer, git and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The tests of a file share what they made; the files that come first take longest. Each worker needs about 2 GB.
SIDE_BY_SIDE := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
PROSE := README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md docs .github/pull_request_template.md

.DEFAULT_GOAL := help
.PHONY: help setup run params test coverage test-slow test-gpu faults check clean

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY) ## Make .venv with exactly the versions in requirements.lock and requirements-dev.lock

$(READY): requirements.lock requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is %d.%d. Try: make PYTHON=python3.11" % sys.version_info[:2])'
	@$(PYTHON) .ci/install.py $(VENV)

run: $(READY) ## Run everything that has changed and show the table
	@$(BIN)/dfkd run

params: $(READY) ## Write params.yaml anew from the defaults and their documentation
	$(BIN)/python -m dfkd_flows.settings.file_text

test: $(READY) ## Run the tests, a file at a time on each core
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

coverage: $(READY) ## Run the tests and show what they cover, in per cent; below the floor it fails
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) --cov --cov-report=term

test-slow: $(READY) ## Run the tests that take minutes
	$(BIN)/python -m pytest -m slow

test-gpu: $(READY) ## Run the tests that need a GPU
	$(BIN)/python -m pytest -m gpu

faults: $(READY) ## Inject faults into small copies of the project; options: FAULTS="--only kills --number 8 --seed 3"
	$(BIN)/python benchmarks/faults.py $(FAULTS)

check: $(READY) ## Lint, formats, types, layers and prose
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src/dfkd_core src/dfkd_tasks src/dfkd_flows tests benchmarks .ci/install.py
	$(BIN)/lint-imports --no-logo
	$(BIN)/ast-grep test -c styles/sgconfig.yml --skip-snapshot-tests
	$(BIN)/ast-grep scan -c styles/sgconfig.yml $(PROSE)

clean: ## Remove what runs have made, but not .venv, data and the DVC remote
	rm -rf .dfkd artifacts reports metrics mlflow.db* mlartifacts .dvc/tmp .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
