# Everything runs in .venv, which `make env` builds: with uv where it is installed, else with venv and pip.
.POSIX:
.PHONY: env demo test test-lowest check lint docs bench clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_ARGS ?=
DEMO_DIR ?= demo
TEST_ARGS ?=

env: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	@if command -v uv >/dev/null 2>&1; then \
	    uv venv --quiet --allow-existing --python ">=3.11" $(VENV) && \
	    uv pip install --quiet --python $(BIN)/python -e ".[demo,postgres,pandas]" --group test --group check; \
	else \
	    $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "everloop needs Python 3.11 or newer; set PYTHON=")' && \
	    $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet --upgrade "pip>=25.1" && \
	    $(BIN)/python -m pip install --quiet -e ".[demo,postgres,pandas]" --group test --group check; \
	fi
	@touch $@

# The whole life cycle on real flights; DEMO_ARGS="--exit" ends it after the final table.
demo: env
	$(BIN)/everloop demo $(DEMO_DIR) $(DEMO_ARGS)

test: env
	$(BIN)/python -m pytest -q -n 2 --dist worksteal $(TEST_ARGS)

# The same tests with the oldest versions that pyproject.toml allows; uv resolves them.
test-lowest:
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet uv
	.venv-lowest/bin/python -m uv pip install --quiet --resolution lowest-direct \
	    -e ".[demo,postgres,pandas]" --group test
	.venv-lowest/bin/python -m pytest -q -n 2 --dist worksteal $(TEST_ARGS)

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

check: lint test

# Rewrites the command reference from the commands themselves.
docs: env
	$(BIN)/python docs/generate.py

# Each beside its peers, which it installs into environments of their own; together they take hours.
bench: env
	$(BIN)/python benchmarks/pipeline.py
	$(BIN)/python benchmarks/tracking.py
	$(BIN)/python benchmarks/mlflow_server.py
	$(BIN)/python benchmarks/data.py
	$(BIN)/python benchmarks/packages.py
	$(BIN)/python benchmarks/serving.py

clean:
	rm -rf $(VENV) .venv-lowest build dist .mypy_cache .ruff_cache .pytest_cache
