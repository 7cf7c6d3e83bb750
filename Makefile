# Each command sets up the environment it needs; nothing else is needed by hand.
# PYTHON=python3.12 chooses another interpreter, ARGS="-k placement" goes to the command.

PYTHON ?= python3
ARGS ?=
SEED ?= 1

VENV := .venv
OLDEST := .venv-oldest
NEWEST := .venv-newest
BROWSER := .venv-browser
BARE := .venv-bare
CHROMIUM ?= chromium

# The versions that are tested. Every environment gets these, but for what it is to try instead.
PINS := tests/constraints.txt

# Most tests wait more than they compute. ARGS="-n 0 --pdb" runs them in one process again.
PARALLEL := -n logical --maxprocesses 4 --dist worksteal

# The oldest of all we promise to work with: the floors in pyproject.toml, on Python 3.10
# where there is one that runs.
OLDEST_PYTHON ?= $(shell python3.10 -c '' 2>/dev/null && echo python3.10 || echo $(PYTHON))
FLOORS = $(shell sed -n '/^dependencies/,/^]/ s/.*"\(.*\)>=\(.*\)".*/\1==\2/p' pyproject.toml)

# The newest Python here that can make environments.
NEWEST_PYTHON ?= $(shell for python in python3.14 python3.13 python3.12; do \
    $$python -c 'import ensurepip, venv' 2>/dev/null && exec echo $$python; done; echo $(PYTHON))

NOTEBOOKS = $(patsubst notebooks/%,docs/notebooks/%,$(wildcard notebooks/*.ipynb))
CODE = $(shell find handoff_dask -name "*.py") $(wildcard notebooks/*.py)

.DEFAULT_GOAL := help
.PHONY: help demo test chaos soak lint test-oldest test-newest test-browser chromium notebooks docs
.PHONY: dist test-dist constraints newest clean
# A recipe that fails leaves no half-made target behind.
.DELETE_ON_ERROR:

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed-demo  ## Run the image pipeline on real photographs
	$(VENV)/bin/python notebooks/image_pipeline.py $(ARGS)

test: $(VENV)/.installed-test  ## Run the tests
	$(VENV)/bin/python -m pytest $(PARALLEL) $(ARGS)

chaos: $(VENV)/.installed-test  ## Kill workers under 240 random DAGs; SEED=7 for another seed
	CHAOS_SEED=$(SEED) CHAOS_ROUNDS=12 $(VENV)/bin/python -m pytest tests/chaos $(ARGS)

soak: $(VENV)/.installed-test  ## Play 20,000 random lives of functions against the engine
	SOAK=20000 $(VENV)/bin/python -m pytest tests/attempts --timeout 7200 $(ARGS)

lint: $(VENV)/.installed-test  ## Check style and types
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

test-oldest: $(OLDEST)/.installed-test  ## Run the tests with the oldest Dask we support
	$(OLDEST)/bin/python -m pytest $(PARALLEL) $(ARGS)

test-newest: newest $(VENV)/.installed-test  ## Run the tests with the newest of everything
	@$(NEWEST)/bin/python -m pip freeze --all >$(NEWEST)/versions.txt
	@if $(VENV)/bin/python -m pip freeze --all | grep -vxFf $(NEWEST)/versions.txt || \
	    [ "$$($(VENV)/bin/python -V)" != "$$($(NEWEST)/bin/python -V)" ]; then \
	    set -x; $(NEWEST)/bin/python -m pytest $(PARALLEL) $(ARGS); \
	else \
	    echo 'The newest of everything is what $(VENV) has: `make test` is this test.'; \
	fi

test-browser: $(BROWSER)/.installed-browser chromium  ## Look at the panels in JupyterLab
	CHROMIUM="$$(command -v $(CHROMIUM))" \
	    $(BROWSER)/bin/python -m pytest -m browser tests/browser $(ARGS)

# The wheel is the same, byte for byte, whenever it is built from a commit.
dist: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || date +%s)
dist: $(VENV)/.installed-dist  ## Build the sdist and the wheel, in dist/
	rm -rf dist
	$(VENV)/bin/python -m build --no-isolation >/dev/null

test-dist: dist $(VENV)/.installed-test  ## Try the wheel where nothing but it is installed
	rm -rf $(BARE)
	$(call make-venv,$(PYTHON),$(BARE))
	$(BARE)/bin/python -m pip install --quiet --constraint $(PINS) dist/*.whl
	BARE=$(BARE)/bin/python $(VENV)/bin/python -m pytest -m dist tests/dist $(ARGS)

chromium:
	@command -v $(CHROMIUM) >/dev/null || { \
	    [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get -qq update && \
	    apt-get -qq -o DPkg::Lock::Timeout=300 install --no-install-recommends chromium \
	        >/dev/null; } || { \
	    echo 'The browser test needs Chromium (Debian and Ubuntu: apt install chromium).' \
	         'If it has another name: make test-browser CHROMIUM=/path/to/chrome'; exit 1; } >&2

notebooks: $(NOTEBOOKS)  ## Run every notebook top to bottom, with a real kernel

# With its outputs, for the documentation; run again when it or the code has changed.
docs/notebooks/%.ipynb: notebooks/%.ipynb docs/run_notebook.py $(CODE) | $(VENV)/.installed-docs
	@$(VENV)/bin/python docs/run_notebook.py $< $@

docs: $(NOTEBOOKS) $(VENV)/.installed-docs  ## Build the documentation, docs/_build/index.html
	$(VENV)/bin/python -m sphinx -W --keep-going --quiet $(ARGS) docs docs/_build

constraints: NEWEST_PYTHON = $(PYTHON)
constraints: newest  ## Renew the tested versions, tests/constraints.txt, from the newest there are
	$(NEWEST)/bin/python tests/pins.py $(PINS)

clean:  ## Remove environments, builds, caches and what the demo made
	rm -rf $(VENV) $(OLDEST) $(NEWEST) $(BROWSER) $(BARE) build dist *.egg-info image_pipeline_output
	rm -rf docs/_build docs/jupyter_execute docs/notebooks
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# $(call make-venv,python,folder)
define make-venv
	@$(1) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo 'handoff_dask needs Python 3.10 or newer, and "$(1)" is not one.' \
	         'Say which to use: make PYTHON=/path/to/python3.12'; exit 1; } >&2
	@$(1) -m venv $(2) || { rm -rf $(2); \
	    echo '"$(1) -m venv" failed: is the venv module installed?' \
	         '(Debian and Ubuntu: apt install python3-venv)'; exit 1; } >&2
endef

$(VENV)/bin/pip:
	$(call make-venv,$(PYTHON),$(VENV))

$(OLDEST)/bin/pip:
	$(call make-venv,$(OLDEST_PYTHON),$(OLDEST))

$(BROWSER)/bin/pip:
	$(call make-venv,$(PYTHON),$(BROWSER))

# Anew each time: what was the newest yesterday may not be today.
newest:
	rm -rf $(NEWEST)
	$(call make-venv,$(NEWEST_PYTHON),$(NEWEST))
	$(NEWEST)/bin/python -m pip install --quiet --upgrade setuptools --editable '.[browser,dist,docs]'

# $(call install,folder,constraints,more)
# What builds the package comes from the constraints, too, which an isolated build would not see.
define install
	$(1)/bin/python -m pip install --quiet --constraint $(2) --upgrade setuptools
	$(1)/bin/python -m pip install --quiet --constraint $(2) --no-build-isolation \
	    --editable '.[$*]' $(3)
	@touch $@
endef

# One stamp per extra; installed again only when the metadata or the pins changed.
$(VENV)/.installed-%: pyproject.toml setup.cfg $(PINS) | $(VENV)/bin/pip
	$(call install,$(VENV),$(PINS))

$(OLDEST)/.installed-%: pyproject.toml setup.cfg $(PINS) | $(OLDEST)/bin/pip
	grep -v $(foreach floor,$(FLOORS),-e '^$(firstword $(subst ==, ,$(floor)))==') $(PINS) \
	    >$(OLDEST)/constraints.txt
	$(call install,$(OLDEST),$(OLDEST)/constraints.txt,$(FLOORS))

$(BROWSER)/.installed-%: pyproject.toml setup.cfg $(PINS) | $(BROWSER)/bin/pip
	$(call install,$(BROWSER),$(PINS))
