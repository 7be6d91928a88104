# One command each; the first one sets up .venv, later ones find it in place.
#   make localnet ARGS="--miners 4 --epochs 2"     options of the command behind the target
#   make localnet PYTHON=python3.12                another interpreter (3.11 or newer)
#   TORCH_INDEX_URL=URL make test                  where torch alone comes from

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup localnet soak test walk bench simulate lint clean

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
PY := $(VENV)/bin/python
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore $(PY) -m pip install --progress-bar off
TORCH := $(shell sed -n 's/^\(torch==[^ ;]*\).*/\1/p' requirements.txt)
# of pip's talk only what shows that it is alive, and its errors
PROGRESS := 2> >(grep -v '^WARNING' >&2) | awk '/Downloading .*[0-9.]+ MB/ {print "   " $$1 " " $$2 " " $$3 " " $$4; fflush()} \
	/^Installing collected/ {print "    installing " gsub(/,/, "") + 1 " packages"; fflush()}'
STAMP := $(VENV)/.installed

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

setup: $(STAMP) ## create .venv and install everything

localnet: $(STAMP) ## run the whole subnet on this machine on real text; ARGS="--help" explains the options
	@$(PY) -m subnet.localnet $(ARGS)

soak: $(STAMP) ## half an hour of the local net with random kills; fails when memory, files, sockets or tasks leak
	@$(PY) -m subnet.localnet --miners 8 --stages 2 --epochs 1000 --end-after 30m --kill-miner-every 15s \
		--kill-chain-every 3m --kill-orchestrator-every 5m --report soak-report.json $(ARGS)

test: $(STAMP) ## type check and all tests; ARGS="-k name" picks some
	@$(PY) -m mypy
	@$(PY) -m pytest $(ARGS)

walk: $(STAMP) ## type the README's walk with btcli, every command, as a newcomer would
	@$(PY) -m pytest tests/integration/test_walk.py $(ARGS)

bench: $(STAMP) ## print the benchmark table and write bench.json
	@$(PY) -m subnet.simulation.bench $(ARGS)

simulate: $(STAMP) ## a short simulation with mixed faults; ARGS="--miners 1000 --hours 24" changes its crowd
	@$(PY) -m subnet.simulation --seeds 60
	@$(PY) -m subnet.simulation --miners 200 --stages 4 --hours 4 \
		--faults mixed=80,orchestrator-crash=1,chain-outage=1,mass-departure=1,merge-departure=1 $(ARGS)

lint: $(STAMP) ## style and types
	@$(PY) -m ruff check .
	@$(PY) -m mypy

clean: ## remove .venv and caches; runs/ stays
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): requirements.txt setup.py pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not installed;" \
		"install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is" \
		"$$($(PYTHON) -V 2>&1); IOTA needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@if ! $(PY) -m pip --version >/dev/null 2>&1; then \
		echo "==> creating $(VENV) with $$($(PYTHON) -V)"; \
		$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); \
			echo "error: $(PYTHON) cannot create a venv; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }; \
	fi
	@echo "==> installing $(TORCH)$${TORCH_INDEX_URL:+ from $$TORCH_INDEX_URL} (the largest part, up to minutes)"
	@$(PIP) $${TORCH_INDEX_URL:+--index-url "$$TORCH_INDEX_URL"} "$(TORCH)" $(PROGRESS)
	@echo "==> installing the rest"
	@$(PIP) -r requirements.txt $(PROGRESS)
	@$(PIP) --quiet --no-deps --no-build-isolation --editable .
	@touch $@
	@echo "==> ready"
