# `make demo` and `make test` each set up everything from nothing; `make help` lists the rest.
# The first Python of at least 3.11 that runs; `make PYTHON=/path/to/python` takes another.
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$name" && break; done)
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
INSTALLED := $(VENV)/installed
# Two processes, each with an Airflow of its own; in the order of names, so that no long one is last.
AT_ONCE := --numprocesses 2 --dist loadfile --no-loadscope-reorder

# Pairs of Airflow and Python that are tested, each in an environment .venv-<pair>.
MATRIX := 2.11-3.11 3.3-3.11 3.3-3.12 3.3-3.13
# What meets Airflow itself, and so what another version of it can break.
AIRFLOW_TESTS := tests/test_package.py tests/lake/test_storage.py \
	$(addprefix tests/airflow/test_,connection_form.py hooks.py operators.py sensors.py transfers.py)

.PHONY: help install demo test test-quick test-airflow-2 test-matrix $(MATRIX:%=test-%) lint browser postgres docs pictures bench scale constraints clean

help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 16

install: $(INSTALLED)  ## make .venv with the package, its extras and the pinned constraints

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Installing into $(VENV) (some minutes the first time) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(UV) pip install --quiet --python $(BIN)/python --compile-bytecode --constraints constraints.txt --editable '.[dev]'
	@touch $@

demo: $(INSTALLED)  ## run the extract and price-list DAGs in real Airflow against a local mail server
	@$(BIN)/r7mail demo

lint: $(INSTALLED)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

browser:  ## install Debian's Chromium, for the tests of pages and the pictures (as root)
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit; done; \
	apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null || \
	{ echo "The tests of pages need Chromium, which could not be installed: install it, then try again." >&2; exit 1; }

postgres:  ## install Debian's PostgreSQL, for the tests of warehouses (as root)
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null || \
	{ apt-get update -qq && apt-get install -y -qq --no-install-recommends postgresql >/dev/null; } || \
	{ echo "The tests of warehouses need PostgreSQL, which could not be installed: install it, then try again." >&2; exit 1; }

# ClickHouse's engine is too large for the environment of those who only look at the demo.
$(VENV)/clickhouse: $(INSTALLED)
	@$(UV) pip install --quiet --python $(BIN)/python --compile-bytecode --constraints constraints.txt --editable '.[clickhouse]'
	@touch $@

test: lint browser postgres $(VENV)/clickhouse  ## everything: ruff, mypy (strict) and pytest
	$(BIN)/python -m pytest $(AT_ONCE)

test-quick: $(INSTALLED)  ## the tests that need no Airflow process, browser or database (under a minute)
	$(BIN)/python -m pytest $(AT_ONCE) -m "not slow"

docs: $(INSTALLED)  ## build the documentation, in English and Russian, into docs/_build
	@for language in en ru; do \
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --nitpicky --conf-dir docs --define language=$$language \
		docs/$$language docs/_build/$$language || exit 1; done
	@echo "Open docs/_build/en/index.html or docs/_build/ru/index.html"

test-airflow-2: .venv-2.11-3.11/installed  ## what meets Airflow, with Airflow 2.11
	.venv-2.11-3.11/bin/python -m pytest $(AT_ONCE) $(AIRFLOW_TESTS)

test-matrix: $(MATRIX:%=test-%)  ## all tests with each version of Airflow and Python (some 30 minutes)

$(MATRIX:%=test-%): test-%: .venv-%/installed browser postgres
	.venv-$*/bin/python -m pytest $(AT_ONCE)

# pyenv's commands of a version need the variable; others take no notice of it.
.venv-%/installed: pyproject.toml constraints.txt constraints-2.11.txt | $(INSTALLED)
	@echo "Installing into .venv-$* ..."
	@PYENV_VERSION=$(lastword $(subst -, ,$*)) python$(lastword $(subst -, ,$*)) -m venv .venv-$*
	@$(UV) pip install --quiet --python .venv-$*/bin/python --compile-bytecode --constraints $(if $(filter 2.11-%,$*),constraints-2.11.txt,constraints.txt) --editable '.[dev]'
	@touch $@

pictures: $(INSTALLED) browser  ## take the docs' pictures anew, into docs/images
	@for script in docs/pictures/*.py; do PYTHONPATH=. $(BIN)/python $$script || exit 1; done

bench: $(INSTALLED)  ## measure beside other tools (in .venv-bench, some 15 minutes); writes docs/performance.md
	@$(PYTHON) -m venv .venv-bench
	@$(UV) pip install --quiet --python .venv-bench/bin/python --compile-bytecode --constraints constraints.txt --requirements tests/benchmarks/requirements.txt --editable '.[dev]'
	@.venv-bench/bin/python tests/benchmarks/bench.py

# What `make scale` extracts, and in how many windows: `make scale MESSAGES=20000 DAYS=12` for a trial.
MESSAGES := 500000
DAYS := 60

scale: $(INSTALLED) postgres  ## extract 500,000 messages with Celery workers and kill one (in .venv-scale); writes docs/scale.md
	@command -v redis-server >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends redis-server >/dev/null; } || \
	{ echo "Redis is needed, and could not be installed: install it, then try again." >&2; exit 1; }
	@$(PYTHON) -m venv .venv-scale
	@$(UV) pip install --quiet --python .venv-scale/bin/python --compile-bytecode --constraints constraints.txt --requirements tests/scale/requirements.txt --editable '.[emulator]'
	@.venv-scale/bin/python tests/scale/scale.py --messages $(MESSAGES) --days $(DAYS)

COMPILE = $(UV) pip compile --quiet --upgrade --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url --extra dev --extra clickhouse

constraints: $(INSTALLED)  ## renew the pins: the newest versions of everything that work together
	$(COMPILE) --output-file constraints.txt pyproject.toml
	echo 'apache-airflow==2.11.2' | $(COMPILE) --output-file constraints-2.11.txt pyproject.toml -

clean:  ## remove the environments and what the demo, the tutorial and the docs wrote
	rm -rf .venv .venv-* .demo .tutorial docs/_build
