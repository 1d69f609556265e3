# make setup    an environment in ./.venv from environment.yml (again: a second, if nothing changed)
# make run      the whole job with the demo preset: sharpen run demo (another: make run PRESET=...)
# make test     set-up, lint and every test
# make test-quick   the tests that need no notebook, browser, GPU, llama.cpp or patience
# make lint     ruff
# make audit    known vulnerabilities of the pinned packages, by pip-audit (asks pypi.org)
# make lab      JupyterLab in notebooks/
# make site     the demo's report and notebooks, executed, as web pages in site/
# make clean    removes the environment and caches; never outputs/ or data/
#
# PYTHON=python3.12 chooses the environment's Python. A machine without an NVIDIA GPU gets the small build of torch;
# TORCH_INDEX= (with nothing behind it) takes what the package index has.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help setup run test test-quick lint audit lab site clean

PRESET ?= demo
# Asked for venv and ensurepip too, because some systems ship Python without them.
USABLE := -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do $$p $(USABLE) && { echo $$p; break; }; done)
ifeq ($(shell uname; command -v nvidia-smi),Linux)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
endif
BIN := .venv/bin
STAMP := .venv/.sharpen-setup
UNFINISHED := .venv.unfinished
# Two test processes, a file at a time; tests/conftest.py puts the longest first.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

help:
	@sed -n '/^SHELL/q; s/^# \{0,1\}//p' Makefile

setup: $(STAMP)

# The stamp comes last; a set-up that was interrupted leaves $(UNFINISHED), and may have left half a package,
# so the next one starts afresh (a cache keeps that quick).
# uv takes seconds where pip takes minutes, but reads none of pip's settings: indexes and links are passed on to it, and
# as pip does it then takes the newest from any of them.
# torch comes alone from its own index, so that nothing else can. --no-warn-conflicts: pip would report on Unsloth's
# wishes, which environment.yml explains.
$(STAMP): environment.yml pyproject.toml
	@[ -x $(BIN)/pip ] || $(PYTHON) $(USABLE) || { [ -z "$(PYTHON)" ] && command -v uv >/dev/null; } || { \
	  echo "make setup needs Python 3.11, 3.12 or 3.13 with venv; $(or $(PYTHON),what is here) will not do." \
	  "Install one (Debian: apt install python3-venv; elsewhere: python.org), or uv, which fetches one, or name it:" \
	  "make setup PYTHON=/path/to/python3.12. With conda: conda env create -f environment.yml" >&2; exit 1; }
	@[ ! -e $(UNFINISHED) ] || { echo "the last set-up was interrupted: starting .venv afresh"; rm -rf .venv; }
	@touch $(UNFINISHED)
	@[ -x $(BIN)/pip ] || $(if $(PYTHON),$(PYTHON) -m venv,uv venv --quiet --seed --python 3.12) .venv
	@pinned() { grep == environment.yml | sed 's/^ *- //'; }; \
	setting() { $(BIN)/pip config list | sed -n "s/^[^=]*\.$$1='\(.*\)'$$/\1/p" | head -n 1; }; \
	given() { [ -z "$$2" ] || export "$$1=$$2"; }; \
	given UV_DEFAULT_INDEX "$$(setting index-url)"; given UV_FIND_LINKS "$$(setting find-links)"; \
	given UV_EXTRA_INDEX_URL "$$(setting extra-index-url)"; export UV_INDEX_STRATEGY=unsafe-best-match; \
	pip="$(BIN)/pip install --quiet --no-warn-conflicts"; install=$$pip; \
	uv=$$(command -v uv || echo $(BIN)/uv); \
	if command -v $$uv >/dev/null || $$pip "$$(pinned | grep ^uv==)"; \
	then install="$$uv pip install --quiet --python $(BIN)/python"; fi; \
	all() { pinned | grep -v -e --no-deps | $$install -r /dev/stdin && \
	  pinned | grep -e --no-deps | $$install --no-deps -r /dev/stdin && $$install --no-deps --no-build-isolation -e .; }; \
	echo "installing environment.yml into .venv by $$(basename $${install%% *}) (uv: under a minute; pip: some)"; \
	[ -z "$(TORCH_INDEX)" ] || $$install --no-deps --index-url $(TORCH_INDEX) "$$(pinned | grep ^torch==)" 2>/dev/null || \
	  echo "no torch from $(TORCH_INDEX): the package index's build comes, with 3 GB for GPUs" >&2; \
	all || { [ "$$install" != "$$pip" ] && echo "uv could not (see above): pip installs, in minutes" >&2 && install=$$pip && all; }
	@touch $(STAMP)
	@rm $(UNFINISHED)
	@echo "ready: $(BIN)/sharpen doctor"

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

# The demo's or another preset's run, for people who look before they install.
site: run
	rm -rf site && mkdir site && cp outputs/$(PRESET)/report.html site/
	$(BIN)/jupyter-nbconvert --to html --output-dir site outputs/$(PRESET)/notebooks/*.ipynb
	cd site && { echo '<!doctype html><meta charset="utf-8"><title>Sharpen</title><h1>Sharpen: $(PRESET)</h1><ul>'; \
	  for page in *.html; do echo "<li><a href=\"$$page\">$${page%.html}</a></li>"; done; echo '</ul>'; } >.index
	mv site/.index site/index.html

clean:
	rm -rf .venv .audit site *.unfinished *.egg-info build .pytest_cache .ruff_cache .hypothesis
	find . -name .git -prune -o -type d \( -name __pycache__ -o -name .ipynb_checkpoints \
	  -o -name unsloth_compiled_cache \) -prune -exec rm -rf {} +
	@echo "left as they are: data/ and outputs/ (delete a run with: rm -r outputs/<run>)"
