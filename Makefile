.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Tests wait four fifths of their time: three of them share a core.
WORKERS ?= $(shell expr 3 '*' $$(getconf _NPROCESSORS_ONLN))

.PHONY: help demo test check pythons servers chaos torture lint format bench docs pictures up build clean

help: ## what there is
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1	/' | expand -t 18

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $(READY)

demo: $(READY) ## the main job on an embedded PostgreSQL: emails and messages scheduled, cleared, delivered, retried
	$(BIN)/duepost demo $(FILE)

up: $(READY) ## everything on this machine, until Ctrl-C
	$(BIN)/duepost up

test: $(READY) ## the tests: unit, integration on a real PostgreSQL, end to end; ARGS=… goes to pytest
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal $(ARGS)

check: lint ## style, types and unit tests: in less than a minute
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal tests/unit

pythons: ## unit and integration tests on Python 3.12 to 3.14, where they can be had
	WORKERS=$(WORKERS) ARGS="$(ARGS)" .ci/pythons

servers: $(READY) ## real mail servers: installs them beside the machine's own, and runs their tests; as root, on Debian
	$(BIN)/python -m tests.servers.install
	REAL_SERVERS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile tests/servers $(ARGS)

chaos: $(READY) ## everything goes wrong, for MINUTES=n, by the plan of SEED=s
	$(BIN)/python -m tests.chaos --minutes $(or $(MINUTES),2) --seed $(or $(SEED),0)

torture: $(READY) ## clients, schedulers and workers fight for the same rows, for SECONDS=n: no deadlock, no long wait
	TORTURE_SECONDS=$(or $(SECONDS),60) $(BIN)/python -m pytest -q tests/chaos/test_deadlocks.py

lint: $(READY) ## style, types, direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## all benchmarks, half an hour: writes docs/measured.md
	$(BIN)/python benchmarks/all.py docs

docs: $(READY) ## the documentation as a site, in build/docs/site: a dead link, a page in no index, a warning fail it
	$(BIN)/python docs/build_site.py build/docs

pictures: $(READY) ## docs/demo.svg and docs/console*.png again: runs the demo, and the console in Chromium (`make servers` installs it)
	$(BIN)/python docs/picture.py
	REAL_SERVERS=1 PICTURES=docs $(BIN)/python -m pytest -q tests/servers/test_browser.py -k pictured

build: $(READY) ## the wheel
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

clean: ## remove what was made here
	rm -rf $(VENV) .venv-* .duepost dist build .mypy_cache .ruff_cache .pytest_cache
