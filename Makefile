# Every target sets itself up: a fresh checkout needs Python 3.11+, make, Java 17+ and Maven, nothing else.
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= python3
PY := .venv/bin/python
# Processes that share the tests: most of a test is waiting. ARGS="-n 0 …" for one process, as a debugger needs it.
WORKERS ?= 4
PYTEST := $(PY) -m pytest -n $(WORKERS) --dist load --maxschedchunk 1
# The lock is complete, so nothing is resolved; and what is never imported is never compiled: half of the minutes.
PIP := $(PY) -m pip install -q --disable-pip-version-check --no-compile
KAFKA := .local/kafka-4.1.1
CODE := libs services deploy/local tests
export PYTHONUNBUFFERED := 1
# Tests start scores of processes: without kept bytecode each of them compiles everything it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

.PHONY: demo
demo: install ## traces in, a run, scores printed: everything started, used and stopped again
	@$(PY) -m steelyard_local.demo

.PHONY: dev
dev: install ## keep the system running with its logs here; Ctrl-C stops all of it (JUDGES=2 RESOLVERS=2 … for more processes)
	@exec $(PY) -m steelyard_local.dev

.PHONY: down
down: ## stop whatever dev, demo or tests of this checkout left running (make dev's data stays)
	@if [ -x $(PY) ]; then $(PY) -m steelyard_local.down; else echo "nothing is installed here, so nothing runs"; fi

.PHONY: test
test: install ## the tests, on a real Kafka and a real Postgres
	@$(PYTEST) -m "not faults and not soak" $(ARGS)

.PHONY: test-faults
test-faults: install ## the longer suites that kill processes in the middle of their work
	@$(PYTEST) -m "faults and not soak" $(ARGS)

.PHONY: test-all
test-all: install ## both in one session, as .ci/run has them
	@$(PYTEST) -m "not soak" $(ARGS)

.PHONY: soak
soak: install ## full-size checks that take many minutes; ARGS="-k judge" for one of them
	@$(PY) -m pytest -m soak $(ARGS)

.PHONY: bench
bench: bench-ingest bench-lists ## both benches; minutes, and nothing else should run (docs/performance.md)

.PHONY: bench-ingest
bench-ingest: install ## traces in: shared transactions against one for each request, side by side
	@$(PY) -m steelyard_local.bench.ingest $(ARGS)

.PHONY: bench-lists
bench-lists: install ## every list over 100,000 traces and a million spans; ARGS="--keep --explain"
	@$(PY) -m steelyard_local.bench.lists $(ARGS)

.PHONY: bench-judging
bench-judging: install ## calls and tokens of judging the demo's traces, isolated and grouped
	@$(PY) -m steelyard_local.bench.judging $(ARGS)

.PHONY: bench-folding
bench-folding: install ## signals folded into session scores: in batches against one by one, side by side
	@$(PY) -m steelyard_local.bench.folding $(ARGS)

.PHONY: bench-sessions
bench-sessions: install ## a run over 20,000 sessions through all services, and their memory; ARGS="--sessions 2000 --traces 5"
	@$(PY) -m steelyard_local.bench.whole $(ARGS)

.PHONY: bench-kills
bench-kills: install ## a run in peace and one under 20 kill -9 of judges, side by side; ARGS="--judges 3 --delay 2"
	@$(PY) -m steelyard_local.bench.kills $(ARGS)

.PHONY: bench-embeddings
bench-embeddings: install ## how well the local embedders tell answers from none, and loops from progress
	@$(PY) -m pytest -s tests/metrics/test_embedders_measured.py $(ARGS)

.PHONY: prices
prices: install ## the vendors' list prices, out of the pinned litellm, into the table that the API reads
	@$(PY) -m steelyard_local.prices

.PHONY: check
check: install ## ruff, mypy strict, import contracts, the map of the events against the README
	@.venv/bin/ruff check $(CODE)
	@.venv/bin/ruff format --check $(CODE)
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-cache
	@$(PY) -m steelyard_local.map --check

.PHONY: map
map: install ## draw the flow from the handlers' signatures and put it into the README
	@$(PY) -m steelyard_local.map

.PHONY: migrate
migrate: install ## bring the database at DATABASE_URL to this version's tables, roles and policies
	@$(PY) -m steelyard.store.migrate

.PHONY: format
format: install ## let ruff format and sort the code
	@.venv/bin/ruff check -q --fix $(CODE)
	@.venv/bin/ruff format -q $(CODE)

.PHONY: lock
lock: install ## pin every dependency anew, with hashes (needs uv)
	@command -v uv >/dev/null || { echo "uv is missing: install it (pip install uv)"; exit 1; }
	@uv pip compile pyproject.toml --all-extras --universal --generate-hashes --no-header --python-version 3.11 -q -o requirements.lock

.PHONY: clean
clean: ## down, and delete the environment, the broker's jars and make dev's data
	@if [ -x $(PY) ]; then $(PY) -m steelyard_local.down --forget; fi
	@rm -rf .venv .local

.PHONY: install
install: .venv/installed $(KAFKA)/installed ## what the other targets need, into this checkout

.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "Python 3.11 or newer is missing: install it, or name it: make PYTHON=/path/to/python3.12 …"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "Python's venv module is missing: install it (Debian: apt install python3-venv)"; exit 1; }
	@echo "installing the Python packages into .venv (a minute, once)"
	@[ -x $(PY) ] || $(PYTHON) -m venv .venv
	@$(PIP) --require-hashes --no-deps -r requirements.lock
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

$(KAFKA)/installed: deploy/local/kafka/pom.xml
	@command -v java >/dev/null || { echo "Java is missing: install a runtime, version 17 or newer (Debian: apt install openjdk-17-jre-headless)"; exit 1; }
	@java -XshowSettings:properties -version 2>&1 | awk '/java.specification.version/ { exit !($$3 >= 17) }' || { echo "Java is too old: install version 17 or newer (Debian: apt install openjdk-17-jre-headless)"; exit 1; }
	@command -v mvn >/dev/null || { echo "Maven is missing: install it (Debian: apt install maven)"; exit 1; }
	@echo "fetching Kafka's jars into .local (seconds, once)"
	@rm -rf $(KAFKA) && mvn -q -B -Dstyle.color=never -f $< dependency:copy-dependencies -DoutputDirectory=$(CURDIR)/$(KAFKA) -DincludeScope=runtime | sed -e 's/\x1b\[[0-9;]*m//g' -e '/^$$/d'
	@touch $@
