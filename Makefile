# make setup    an environment from environment.yml, in ./.conda or ./.venv (again: a second, if nothing changed)
# make run      the whole job with the demo preset: sharpen run demo (another: make run PRESET=...)
# make test     set-up, lint and every test
# make test-quick   the tests that need no notebook, browser, GPU, llama.cpp or patience
# make lint     ruff
# make audit    known vulnerabilities of the pinned packages, by pip-audit (asks pypi.org)
# make lab      JupyterLab in notebooks/
# make clean    removes the environment and caches; never outputs/ or data/
#
# ENV_TOOL=venv chooses a .venv where conda exists; PYTHON=python3.12 chooses its Python.
# A CPU-only machine gets the small torch with: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make setup

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help setup colab run test test-quick lint audit lab clean

PRESET ?= demo
ENV_TOOL ?= $(notdir $(firstword $(shell command -v micromamba mamba conda)))
ifeq ($(filter-out venv,$(ENV_TOOL)),)
ENV_DIR := .venv
else
ENV_DIR := .conda
endif
# Asked for venv and ensurepip too, because some systems ship Python without them.
USABLE := -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] not in [(3, 11), (3, 12)])' 2>/dev/null
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do $$p $(USABLE) && { echo $$p; break; }; done)
BIN := $(ENV_DIR)/bin
STAMP := $(ENV_DIR)/.sharpen-setup
UNFINISHED := $(ENV_DIR).unfinished
# --no-warn-conflicts: pip would report on Unsloth's wishes, which environment.yml explains.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --no-warn-conflicts
# Two test processes, a file at a time; tests/conftest.py puts the longest first.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

help:
	@sed -n '/^SHELL/q; s/^# \{0,1\}//p' Makefile

setup: $(STAMP)

# The stamp comes last; a set-up that was interrupted leaves $(UNFINISHED), and may have left half a package,
# so the next one starts afresh (pip's cache keeps that quick).
$(STAMP): environment.yml pyproject.toml
ifeq ($(ENV_DIR),.venv)
	@[ -x $(BIN)/pip ] || $(PYTHON) $(USABLE) || { \
	  echo "make setup needs conda, or Python 3.11 or 3.12 with venv; $(or $(PYTHON),what is here) will not do." \
	  "Install one (Debian, Ubuntu: apt install python3.11-venv; elsewhere: python.org, conda-forge.org)" \
	  "or name it: make setup PYTHON=/path/to/python3.12" >&2; exit 1; }
endif
	@[ ! -e $(UNFINISHED) ] || { echo "the last set-up was interrupted: starting $(ENV_DIR) afresh"; rm -rf $(ENV_DIR); }
	@touch $(UNFINISHED)
ifeq ($(ENV_DIR),.venv)
	@[ -x $(BIN)/pip ] || $(PYTHON) -m venv $(ENV_DIR)
else
	@[ -x $(BIN)/pip ] || $(ENV_TOOL) create --yes --quiet --prefix ./$(ENV_DIR) --override-channels \
	  --channel conda-forge "$$(sed -n 's/^ *- \(python=.*\)/\1/p' environment.yml)" pip
endif
	@if [ "$$(uname)" = Linux ] && ! command -v nvidia-smi >/dev/null \
	  && [ -z "$${PIP_EXTRA_INDEX_URL:-}$${PIP_INDEX_URL:-}$${PIP_FIND_LINKS:-}" ]; then \
	  echo "no NVIDIA GPU here; for a small torch: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make setup"; fi
	@echo "installing the packages of environment.yml into $(ENV_DIR) (a few minutes)"
	@grep == environment.yml | grep -v -e --no-deps | sed 's/^ *- //' | $(PIP_INSTALL) -r /dev/stdin
	@grep -e '==.*--no-deps' environment.yml | sed 's/^ *- //' | $(PIP_INSTALL) --no-deps -r /dev/stdin
	@$(PIP_INSTALL) --no-deps --no-build-isolation -e .
	@touch $(STAMP)
	@rm $(UNFINISHED)
	@echo "ready: $(BIN)/sharpen doctor"

# Colab runs notebooks in its own Python, so the packages go there.
colab:
	@grep == environment.yml | grep -v -e --no-deps | sed 's/^ *- //' | pip install --quiet -r /dev/stdin
	@grep -e '==.*--no-deps' environment.yml | sed 's/^ *- //' | pip install --quiet --no-deps -r /dev/stdin

run: setup
	$(BIN)/sharpen run $(PRESET)

test: lint
	$(PYTEST) -m "not real"

test-quick: setup
	$(PYTEST) -m "not real and not notebooks and not browser and not gpu and not export and not slow"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache --no-logo

# In an environment of its own, so that its packages do not mix with ours; what it cannot look up is a failure too.
audit: setup
	@[ -x .audit/bin/pip-audit ] || { $(BIN)/python -m venv .audit && .audit/bin/pip install --quiet pip-audit==2.10.1; }
	@grep == environment.yml | sed 's/^ *- //' | .audit/bin/pip-audit --strict --no-deps --disable-pip -r /dev/stdin

lab: setup
	$(BIN)/jupyter-lab notebooks

clean:
	rm -rf .venv .conda .audit *.unfinished *.egg-info build .pytest_cache .ruff_cache .hypothesis
	find . -name .git -prune -o -type d \( -name __pycache__ -o -name .ipynb_checkpoints \
	  -o -name unsloth_compiled_cache \) -prune -exec rm -rf {} +
	@echo "left as they are: data/ and outputs/ (delete a run with: rm -r outputs/<run>)"
