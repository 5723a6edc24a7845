# `make demo` and `make test` each set up everything from nothing; `make help` lists the rest.
# The first Python of at least 3.11 that runs; `make PYTHON=3.12` or PYTHON=/path/to/python takes another.
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$name" && break; done)
# pyenv's commands of a version need the variable; others take no notice of it.
OF_VERSION = PYENV_VERSION=$(1) python$(1)
ifneq ($(filter 3.%,$(PYTHON)),)
override PYTHON := $(call OF_VERSION,$(PYTHON))
endif
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
# Three processes, each with an Airflow of its own, since tests also wait; in the order of names, so
# that no long one is last.
AT_ONCE := --numprocesses 3 --dist loadfile --no-loadscope-reorder
# What Python compiles is kept: tests start many processes, and it takes each one seconds.
unexport PYTHONDONTWRITEBYTECODE

# What is tested, each in an environment .venv-<name>: pairs of Airflow and Python with the newest of
# all else that works; Airflow within its own constraints, as its images have it; the lowest of what
# pyproject.toml allows; the newest of all else that an older Airflow bears.
NEWEST := 2.11-3.11 3.3-3.11 3.3-3.12 3.3-3.13
OFFICIAL := $(patsubst tests/constraints/airflow-%.txt,%,$(wildcard tests/constraints/airflow-*.txt))
LOWEST := lowest-2.11.0 lowest-3.3.1
OLDER := newest-3.0.6 newest-3.1.8 newest-3.2.2
# What they don't bear of it. In 3.0, tasks send JSON without saying so, which FastAPI 0.132 refuses.
# In 3.2, the API for tasks doesn't start with FastAPI 0.137, which 3.3 itself refuses; `dag.test()`
# throws it away while it is used, and svcs 26.2 then empties it.
BEARS_newest-3.0.6 := 'universal-pathlib<0.3' 'fastapi<0.132' 'anyio<4.15'
BEARS_newest-3.1.8 := 'sqlalchemy<2.1'
BEARS_newest-3.2.2 := 'fastapi<0.137' 'pydantic<2.14' 'svcs<26.2'
# What meets Airflow itself, and so what another version of it can break.
AIRFLOW_TESTS := tests/test_package.py tests/lake/test_storage.py \
	$(addprefix tests/airflow/test_,connection_form.py connection.py hooks.py operators.py sensors.py transfers.py)
# They start Airflow's API server, which newer versions of its libraries break in 3.0.
DAGS := tests/airflow/test_dags.py tests/airflow/test_analytics.py
# It opens SQLite through SQLAlchemy: 2.1 is in the newest environments, 2.0 in that of 3.1.
ICEBERG := tests/lake/test_iceberg.py

.PHONY: help install demo test test-quick test-matrix $(NEWEST:%=test-%) $(OFFICIAL:%=test-%) $(LOWEST:%=test-%) $(OLDER:%=test-%) lint browser postgres docs wheelhouse pictures bench scale constraints clean

help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 16

install: $(INSTALLED)  ## make .venv with the package, its extras and the pinned constraints

$(INSTALLED): pyproject.toml constraints.txt
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	{ echo "Python 3.11 or newer is needed. Install it, or name it: make $(or $(firstword $(MAKECMDGOALS)),install) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Installing into $(VENV) (some minutes the first time) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@.ci/install $(VENV) -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(INSTALLED)  ## run four example DAGs in a real Airflow against the emulator
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
	@.ci/install $(VENV) -c constraints.txt -e '.[clickhouse]'
	@touch $@

test: lint $(VENV)/clickhouse  ## everything: ruff, mypy (strict) and pytest
	@# Without root they can't be installed: pytest says at its end what it has skipped, and why.
	@$(MAKE) --silent --keep-going browser postgres 2>/dev/null || true
	$(BIN)/python -m pytest $(AT_ONCE)

test-quick: $(INSTALLED)  ## the tests that need no Airflow process, browser or database (under a minute)
	$(BIN)/python -m pytest $(AT_ONCE) -m "not slow"

docs: $(INSTALLED)  ## build the documentation, in English and Russian, into docs/_build
	@for language in en ru; do \
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --nitpicky --conf-dir docs --define language=$$language \
		docs/$$language docs/_build/$$language || exit 1; done
	@echo "Open docs/_build/en/index.html or docs/_build/ru/index.html"

test-matrix: $(NEWEST:%=test-%) $(OFFICIAL:%=test-%) $(LOWEST:%=test-%) $(OLDER:%=test-%)  ## all versions of Airflow and Python (some 2 hours)

$(NEWEST:%=test-%): test-%: .venv-%/installed browser postgres
	.venv-$*/bin/python -m pytest $(AT_ONCE)

$(OFFICIAL:%=test-%) $(LOWEST:%=test-%) $(OLDER:%=test-%): test-%: .venv-%/installed  ## such as test-3.0.6
	.venv-$*/bin/python -m pytest $(AT_ONCE) $(AIRFLOW_TESTS) $(if $(filter 3.% newest-3.1.% newest-3.2.%,$*),$(DAGS)) $(if $(filter newest-3.1.%,$*),$(ICEBERG))

NEW_VENV = @echo "Installing into .venv-$* ..." && $(call OF_VERSION,$(1)) -m venv .venv-$*

$(NEWEST:%=.venv-%/installed): .venv-%/installed: pyproject.toml constraints.txt constraints-2.11.txt | $(INSTALLED)
	$(call NEW_VENV,$(lastword $(subst -, ,$*)))
	@.ci/install .venv-$* -c $(if $(filter 2.11-%,$*),constraints-2.11.txt,constraints.txt) -e '.[dev]'
	@touch $@

# The tools of the tests are no part of what is tested, and some pins are too old for them.
$(OFFICIAL:%=.venv-%/installed): .venv-%/installed: pyproject.toml tests/constraints/airflow-%.txt | $(INSTALLED)
	$(call NEW_VENV,3.12)
	@grep -vE '^(moto|py-partiql-parser|pytest)' tests/constraints/airflow-$*.txt > .venv-$*/constraints.txt
	@.ci/install .venv-$* -c .venv-$*/constraints.txt apache-airflow==$* -e '.[analytics,tests]'
	@touch $@

$(LOWEST:%=.venv-%/installed): .venv-%/installed: pyproject.toml | $(INSTALLED)
	$(call NEW_VENV,3.12)
	@.ci/install .venv-$* --resolution lowest-direct apache-airflow==$(lastword $(subst -, ,$*)) -e '.[tests]'
	@touch $@

$(OLDER:%=.venv-%/installed): .venv-%/installed: pyproject.toml | $(INSTALLED)
	$(call NEW_VENV,3.12)
	@.ci/install .venv-$* apache-airflow==$(lastword $(subst -, ,$*)) $(BEARS_$*) -e '.[analytics,iceberg,tests]'
	@touch $@

# What `make wheelhouse` collects: `make wheelhouse AIRFLOW=3.3.1 PYTHON=3.12 EXTRAS=google,iceberg`.
AIRFLOW := 3.3.1
EXTRAS := amazon

wheelhouse:  ## collect the wheels for an Airflow and a Python without a network, into dist/
	@$(PYTHON) .ci/wheelhouse.py $(AIRFLOW) $(EXTRAS)

pictures: $(INSTALLED) browser  ## take the docs' pictures anew, into docs/images
	@for script in docs/pictures/*.py; do PYTHONPATH=. $(BIN)/python $$script || exit 1; done

bench: $(INSTALLED)  ## measure beside other tools (in .venv-bench, some 25 minutes); writes docs/performance.md; ONLY=shapes for a part
	@$(PYTHON) -m venv .venv-bench
	@.ci/install .venv-bench -c constraints.txt -r tests/benchmarks/requirements.txt -e '.[dev]'
	@.venv-bench/bin/python -m tests.benchmarks.bench $(ONLY)

# What `make scale` extracts, and in how many windows: `make scale MESSAGES=20000 DAYS=12` for a trial.
MESSAGES := 500000
DAYS := 60

scale: $(INSTALLED) postgres  ## extract 500,000 messages with Celery workers and kill one (in .venv-scale); writes docs/scale.md
	@command -v redis-server >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends redis-server >/dev/null; } || \
	{ echo "Redis is needed, and could not be installed: install it, then try again." >&2; exit 1; }
	@$(PYTHON) -m venv .venv-scale
	@.ci/install .venv-scale -c constraints.txt -r tests/scale/requirements.txt -e '.[emulator]'
	@.venv-scale/bin/python tests/scale/scale.py --messages $(MESSAGES) --days $(DAYS)

COMPILE = $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url --extra dev --extra clickhouse

constraints: $(INSTALLED)  ## renew the pins: the newest versions of everything that work together
	$(COMPILE) --output-file constraints.txt pyproject.toml
	echo 'apache-airflow==2.11.2' | $(COMPILE) --output-file constraints-2.11.txt pyproject.toml -

clean:  ## remove the environments and what the demo, the tutorial and the docs wrote
	rm -rf .venv .venv-* .demo .tutorial docs/_build
