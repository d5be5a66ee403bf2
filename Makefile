# `make demo` and `make test` need nothing but Python 3.11 or later: see `make help`.

PYTHON ?= python3
LOCK_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# Tests start hundreds of processes, and without bytecode each would compile what it imports.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -q
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test campaign lint format bench lock wheel wheel-check clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile
	@echo "The first of them makes .venv with $(PYTHON); for another: make PYTHON=python3.12 ..."

demo: $(INSTALLED) ## screen real cells that come with the package, results in demo-results/
	$(BIN)/cvm-batch demo --out demo-results

test: $(INSTALLED) ## all tests but the long campaigns, two at a time
	$(PYTEST) -n 2 -m "not campaign"

campaign: $(INSTALLED) ## the long simulations, kills and fuzzing
	$(PYTEST) -m campaign

lint: $(INSTALLED) ## style, formatting, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(INSTALLED) ## rewrite the sources in the project's style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(INSTALLED) ## measure tiles per second on this machine
	$(BIN)/python jobs/benchmark.py

lock: $(INSTALLED) ## renew requirements.lock; LOCK_ARGS=--upgrade for newer versions
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --group dev --all-extras \
		--universal --python-version 3.11 --generate-hashes \
		--no-header --no-annotate --no-emit-index-url --quiet $(LOCK_ARGS) -o requirements.lock

wheel: $(INSTALLED) ## build the wheel into dist/
	$(BIN)/python -m build --no-isolation --wheel

wheel-check: $(INSTALLED) ## build the wheel and try it in an environment of its own
	.ci/wheel-check

clean: ## remove what was built, except .venv
	rm -rf build dist demo-results .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find cvm_batch jobs tests -name __pycache__ -prune -exec rm -rf {} +

# The stamp comes last: an interrupted installation is taken up again.
$(INSTALLED): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || \
		{ echo "No $(PYTHON) here. Name a Python 3.11 or later: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$$($(PYTHON) --version 2>&1) is too old: 3.11 or later is needed." \
			"Name one: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Installing into $(VENV): the first time, a download of some GB (PyTorch) that takes minutes."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--no-deps --no-build-isolation -e .
	@touch $@
