# Everything runs in .venv, which the targets build as far as they need it: with uv where it is installed, else with venv
# and pip. An environment that uv made has no pip, so a later step without uv brings it.
.POSIX:
.PHONY: env demo page page-check check-page test test-all test-lowest check lint docs site bench clean

# uv compiles no bytecode at installation. Without this, each of the processes that the tests start would compile all that
# it imports once more where the variable is set.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_ARGS ?=
DEMO_DIR ?= demo
TEST_ARGS ?=

# Two stamps of one .venv: what the demo needs, and what the tests and checks need besides.
env: $(VENV)/.ready

$(VENV)/.demo: pyproject.toml
	@if command -v uv >/dev/null 2>&1; then \
	    uv venv --quiet --allow-existing --python ">=3.11" $(VENV) && \
	    uv pip install --quiet --python $(BIN)/python -e ".[demo]"; \
	else \
	    $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "everloop needs Python 3.11 or newer; set PYTHON=")' && \
	    $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet --upgrade "pip>=25.1" && \
	    $(BIN)/python -m pip install --quiet -e ".[demo]"; \
	fi
	@touch $@

$(VENV)/.ready: $(VENV)/.demo
	@if command -v uv >/dev/null 2>&1; then \
	    uv pip install --quiet --python $(BIN)/python -e ".[demo,postgres,pandas]" --group test --group check; \
	else \
	    { $(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null; } && \
	    $(BIN)/python -m pip install --quiet --upgrade "pip>=25.1" && \
	    $(BIN)/python -m pip install --quiet -e ".[demo,postgres,pandas]" --group test --group check; \
	fi
	@touch $@

# The web page, with Node 20 or newer. Without it everything else works, and the server says how to build the page.
page: src/everloop/server/page/index.html

src/everloop/server/page/index.html: ui/package-lock.json ui/index.html ui/vite.config.ts $(shell find ui/src -type f 2>/dev/null)
	@if command -v npm >/dev/null 2>&1; then cd ui && npm ci --silent && npm run build --silent; \
	else echo "Node was not found, so the web page is not built. The API and all commands work without it."; fi

# Types of the page against the server's own description of its API, and the page's unit tests.
page-check: env page
	$(BIN)/python ui/dump_openapi.py && cd ui && npm run types --silent && npm run check --silent && npm test --silent

# The whole life cycle on real flights; DEMO_ARGS="--exit" ends it after the final table.
demo: $(VENV)/.demo page
	$(BIN)/everloop demo $(DEMO_DIR) $(DEMO_ARGS)

# Everything but the tests that are marked as slow; `make check` runs these as well.
test: env
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow" $(TEST_ARGS)

test-all: env
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
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# The sources and the page first and side by side, so that the last line is the one of the tests.
check: env
	@$(MAKE) --no-print-directory -j 2 lint check-page
	@$(MAKE) --no-print-directory test-all

# The page is checked only where Node is installed.
check-page:
	@if command -v npm >/dev/null 2>&1; then $(MAKE) page-check; else echo "Node was not found: the web page is not checked."; fi

# Rewrites the command reference from the commands themselves.
docs: env
	$(BIN)/python docs/generate.py

# The documentation as a web site, in build/site.
site: env
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Each beside its peers, which it installs into environments of their own; together they take hours.
bench: env
	$(BIN)/python benchmarks/pipeline.py
	$(BIN)/python benchmarks/tracking.py
	$(BIN)/python benchmarks/mlflow_server.py
	$(BIN)/python benchmarks/data.py
	$(BIN)/python benchmarks/monitoring.py
	$(BIN)/python benchmarks/packages.py
	$(BIN)/python benchmarks/serving.py
	$(BIN)/python benchmarks/attacks.py

clean:
	rm -rf $(VENV) .venv-lowest build dist .mypy_cache .ruff_cache .pytest_cache
