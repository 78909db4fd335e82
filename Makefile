# Everything a newcomer needs: `make demo` and `make test`. Both make their own environment in .venv.

PYTHON ?= python3
VENV ?= .venv
# one worker a core; a test file stays on one worker
PYTEST_ARGS ?= -n auto --dist loadfile
BIN := $(VENV)/bin
# pip resolves torch once; set PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu for the CPU build
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test bench lint exhaustive venv dev clean

demo: $(VENV)/installed  ## train, simulate and report on real data in about a minute
	$(BIN)/hwsim demo

test: $(VENV)/installed-dev  ## the tests that run in minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

bench: $(VENV)/installed-dev  ## speed tables, each with its ratio to the limit of this machine
	@for script in tests/benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

lint: $(VENV)/installed-dev  ## style and types
	$(BIN)/ruff check .
	$(BIN)/mypy

exhaustive: $(VENV)/installed-dev  ## every code of every small format, and all pairs of 8-bit codes
	$(BIN)/python tests/kernels/exhaustive.py
	$(BIN)/python tests/kernels/exhaustive_pairs.py

venv: $(VENV)/installed
dev: $(VENV)/installed-dev

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "hwsim needs Python 3.11 or newer: found $$($(PYTHON) --version 2>&1). Set PYTHON=/path/to/python3." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "Python's venv module is missing. On Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "Making an environment in $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)

# Both installs are editable: a copy in site-packages would leave compiled kernels behind when it is replaced, and
# Python would take that remainder for hwsim.
$(VENV)/installed: pyproject.toml | $(BIN)/python
	@echo "Installing hwsim and what it needs (torch is the large part) ..."
	@rm -rf $(VENV)/lib/python*/site-packages/hwsim
	@$(PIP) --editable .
	@touch $@

$(VENV)/installed-dev: pyproject.toml | $(BIN)/python
	@echo "Installing hwsim for development ..."
	@rm -rf $(VENV)/lib/python*/site-packages/hwsim
	@$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/installed

clean:  ## remove what make made
	rm -rf $(VENV) build dist *.egg-info
