# The front door. Needs only Python 3.11 or newer, make and a package index.
PYTHON ?= python3
BIN := .venv/bin
# Options for what is run: make run ARGS="--port 9000", make test ARGS="-k sse"
ARGS ?=
JS := clients/js
# Where this is set, as in images of Python, each process compiles anew all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install demo run unit test packages faults hostile conformance check check-deploy deploy-tools docs format bench soak clean

help:  ## Show what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12
	@echo; echo 'run, demo, unit, test, faults and bench take options: make run ARGS="--port 9000"; make run ARGS=--help lists them.'

install: .venv/installed  ## Make .venv with everything that running, tests and benchmarks need

.venv/installed: pyproject.toml uv.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Routecast needs Python 3.11 or newer; $$($(PYTHON) --version) was found. Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "This Python has no venv module. On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'
	@$(BIN)/uv sync --quiet --frozen --inexact --extra server --python $(BIN)/python
	@touch $@

demo: install  ## Serve with simulated traffic; prints the address to open
	@$(BIN)/routecast demo $(ARGS)

run: install  ## Serve on http://127.0.0.1:8000, with no demo traffic
	@$(BIN)/routecast serve $(ARGS)

# These do not run beside all others: whole clusters are broken and judged by the clock, two at a
# time, and then a node is attacked with all that two cores carry.
FAULTS := $(addprefix tests/acceptance/, \
  test_cluster_faults.py test_cluster_database_faults.py test_random_faults.py)
HOSTILE := tests/acceptance/test_hostile_soak.py
# Files in the order of their names, those of servers before those of units: sorted by the number of
# their tests, as pytest-xdist has them, long files with few tests come last, and one core waits.
PARALLEL := -n 6 --dist loadscope --no-loadscope-reorder

unit: install packages  ## Run the unit tests alone, on all cores
	@$(BIN)/pytest -n auto --dist worksteal tests/unit $(ARGS)

test: install packages  ## Run all tests
ifneq ($(ARGS),)
	@$(BIN)/pytest $(PARALLEL) $(ARGS)
else
	@$(BIN)/pytest $(PARALLEL) $(FAULTS:%=--ignore=%) --ignore=$(HOSTILE)
	@$(BIN)/pytest -n 2 --dist loadfile --go-on-skipped $(FAULTS)
	@$(BIN)/pytest --go-on-skipped $(HOSTILE)
endif

faults: install  ## Break Redis, PostgreSQL, disks, clocks and nodes for long, with 1,000 kills; takes 35 minutes
	@ROUTECAST_TEST_LONG_FAULTS=1 $(BIN)/pytest -v -s --timeout 3600 $(ARGS) $(FAULTS)

hostile: install  ## Attack a full node for ten minutes, on SQLite and on PostgreSQL; fails where a target is missed
	@$(BIN)/python -m tests.hostile $(ARGS)

conformance: install  ## Run the Autobahn WebSocket test suite; needs Python 2.7
	@$(BIN)/python -m tests.conformance

# What checks and tests the scripts, where there is Node.js: TypeScript, React, a WebSocket server.
$(JS)/node_modules/.package-lock.json: $(JS)/package-lock.json
	@npm ci --prefix $(JS) --silent --no-audit --no-fund
	@touch $@

# Tests say themselves what they skip without them.
packages:
	@if command -v npm >/dev/null; then $(MAKE) --silent $(JS)/node_modules/.package-lock.json || \
	  echo "npm could not install the packages of $(JS) from its registry: their tests are skipped."; fi

check: install  ## Lint, format, types, layers, documents; the scripts' types too, where there is Node.js
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/pytest -q tests/unit/test_docs.py
	@$(BIN)/lint-imports --no-logo >.venv/layers.log 2>&1 || { cat .venv/layers.log; exit 1; }
	@if $(MAKE) --silent $(JS)/node_modules/.package-lock.json >/dev/null 2>&1; \
	  then $(JS)/node_modules/.bin/tsc --project jsconfig.json; \
	  else echo "The scripts are not checked: that needs Node.js, and the packages of $(JS) from its registry."; fi

check-deploy: deploy-tools  ## Check deploy/: image, compose, Kubernetes, systemd, and nginx for real
	@$(BIN)/pytest -n 4 tests/deploy $(ARGS)

deploy-tools: install
	@$(BIN)/uv sync --quiet --frozen --inexact --extra server --group deploy --python $(BIN)/python

docs: install  ## Build the documentation into site/; fails on any warning
	@$(BIN)/uv sync --quiet --frozen --inexact --extra server --group docs --python $(BIN)/python
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: install  ## Format the code
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

bench: install  ## Run the benchmarks; the results go to benchmarks/results
	@$(BIN)/python -m benchmarks $(ARGS)

soak: install  ## A day's worth of clients in some minutes: does memory stay flat?
	@$(BIN)/python -m benchmarks soak

clean:  ## Remove what was made
	rm -rf .venv dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
