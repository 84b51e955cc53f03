# One command for each chore. PYTHON picks the interpreter: `make test PYTHON=python3.13`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Tests mostly wait, so more of them than the machine has cores run at once.
PARALLEL := -n 4

.DEFAULT_GOAL := help
.PHONY: help run lock audit settings dev env quick test smoke coverage lint types contracts check conformance matrix fleet wheel screenshots bench profile faults promises soak hostile clean

help: ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

# Installed is what the lock files name, with hashes. `make lock` writes them anew after a change of requirements*.txt.
$(BIN)/.run: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make run PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@touch $@

$(BIN)/.dev: requirements-dev.lock $(BIN)/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

run: $(BIN)/.run ## serve on 127.0.0.1:8000
	@$(BIN)/python manage.py serve --prepare

quick: $(BIN)/.dev ## the tests that start no process
	$(BIN)/python -m pytest $(PARALLEL) -m "not e2e"

test: $(BIN)/.dev ## run the whole test suite
	$(BIN)/python -m pytest $(PARALLEL)

smoke: $(BIN)/.dev ## a few tests of real hosts: do they start, serve, and end
	$(BIN)/python -m pytest $(PARALLEL) tests/e2e/test_official_client.py tests/e2e/test_pages.py tests/e2e/test_metrics.py tests/serving/test_shutdown.py

coverage: $(BIN)/.dev ## run the whole suite and show which lines it reaches, in host processes too
	$(BIN)/python -m pytest $(PARALLEL) --cov --cov-report=term --cov-report=html:htmlcov

dev env: $(BIN)/.dev
dev: ## make the developers' environment, with pytest and the linters

lint: $(BIN)/.dev ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(BIN)/.dev ## mypy
	$(BIN)/mypy
	$(BIN)/mypy --exclude '' servers/simple-tools-server/main.py

contracts: $(BIN)/.dev ## which package may import which (import-linter)
	$(BIN)/lint-imports

settings: $(BIN)/.run ## write .env.example and docs/settings.md from the declarations in gateway/conf
	$(BIN)/python -m gateway.conf.reference

LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --custom-compile-command "make lock"

lock: ## write the lock files anew from requirements*.txt
	@test -x $(BIN)/uv || $(MAKE) dev
	$(LOCK) requirements.txt --output-file requirements.lock
	$(LOCK) --constraint requirements.lock requirements-dev.txt --output-file requirements-dev.lock
	$(LOCK) --constraint requirements-dev.lock requirements-container.txt --output-file requirements-container.lock

audit: $(BIN)/.dev ## report known vulnerabilities of what is installed; passes where no database can be reached
	@$(BIN)/python .ci/audit.py

check: lint types contracts test ## all of the above

conformance: $(BIN)/.dev ## the MCP conformance tool, both revisions, against a real Daphne (needs npm)
	$(BIN)/python tests/conformance/run.py

matrix: $(BIN)/.dev ## official clients of every era, and servers from npm and PyPI, each in an environment of its own (needs npm)
	$(BIN)/python tests/matrix/run.py
	$(BIN)/python tests/matrix/served.py

wheel: $(BIN)/.dev ## build dist/gumcp-….whl, install it into an empty environment, and serve with it
	rm -rf build dist
	$(BIN)/uv build --quiet --wheel --out-dir dist
	rm -rf build *.egg-info
	$(BIN)/python .ci/check_wheel.py dist/*.whl

screenshots: $(BIN)/.dev ## pictures of every page in the folder screenshots (needs Chromium)
	$(BIN)/python -m tests.browser.screenshots

fleet: $(BIN)/.dev ## two nodes of two workers, nginx, PostgreSQL and Redis on this machine, until Ctrl-C
	@$(BIN)/python -m tests.fleet.topology

profile: $(BIN)/.dev ## where the CPU time of a call goes, by package and library (Linux and macOS)
	PATH=$(BIN):$$PATH $(BIN)/python -m tests.benchmarks.layers

bench: $(BIN)/.dev ## the host beside what one would use instead
	$(BIN)/python -m tests.benchmarks

faults: $(BIN)/.dev ## the fault tests in the sizes of docs/evidence.md (nine minutes)
	FAULT_TESTS=full TEST_DEADLINES=exact $(BIN)/python -m pytest tests/faults --timeout 600

promises: $(BIN)/.dev ## the whole suite, one test at a time, held to every promised time (needs a quiet machine)
	TEST_DEADLINES=exact $(BIN)/python -m pytest

hostile: $(BIN)/.dev ## attackers of every kind beside ten well-behaved clients, on both servers; MINUTES=60 for an hour each
	$(BIN)/python -m tests.faults.hostile --minutes $(or $(MINUTES),10)

soak: $(BIN)/.dev ## an hour of all kinds of clients at once, and what grows meanwhile; MINUTES=10 for less
	$(BIN)/python -m tests.faults.soak --minutes $(or $(MINUTES),60)

clean: ## remove environments and caches
	rm -rf .venv* tests/*/node_modules .mypy_cache .pytest_cache .ruff_cache .coverage* htmlcov screenshots
