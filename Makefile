# calmlflow: `make run` shows the whole path on the synthetic sample, `make test` checks it.
# Needs Python 3.11, 3.12 or 3.13, make and a package index. Everything lives in this folder: .venv, .calmlflow, data.

SUPPORTED := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
# The first that runs: a name on the path may be a stub.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do $$python -c "$(SUPPORTED)" 2>/dev/null && echo $$python && break; done)
# make run PORT=5600 S3_PORT=8733 DATA=sample:5000; a folder keeps the ports of its server.
DATA ?= sample
OUTPUT ?= data
PORTS := $(if $(PORT),--port $(PORT)) $(if $(S3_PORT),--s3-port $(S3_PORT))

# Relative: make takes a blank in the name of a target for two.
VENV ?= .venv
export VIRTUAL_ENV := $(if $(filter /%,$(VENV)),$(VENV),$(CURDIR)/$(VENV))
export PATH := $(VIRTUAL_ENV)/bin:$(PATH)
UV := $(shell sed -n 's/.*"\(uv==[0-9.]*\)".*/\1/p' pyproject.toml)
export CALMLFLOW_HOME ?= $(CURDIR)/.calmlflow
# The commands here speak to the embedded server, whatever server the user has turned to.
unexport MLFLOW_TRACKING_URI MLFLOW_REGISTRY_URI MLFLOW_RUN_ID MLFLOW_EXPERIMENT_ID AWS_PROFILE AWS_ACCESS_KEY_ID
export MLFLOW_DISABLE_TELEMETRY ?= true
export TF_CPP_MIN_LOG_LEVEL ?= 3
# What libraries would keep in the home folder or in /tmp stays here too.
export MPLCONFIGDIR ?= $(CURDIR)/.calmlflow/matplotlib
export KERAS_HOME ?= $(CURDIR)/.calmlflow/keras

COMPILE := --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --custom-compile-command "make lock"

# Alembic alone imports its migrations.
define IMPORT_ALL
import calmlflow, importlib, pkgutil; \
names = [module.name for module in pkgutil.walk_packages(calmlflow.__path__, 'calmlflow.') if '.migrations' not in module.name]; \
print(len([importlib.import_module(name) for name in names]), 'modules imported')
endef

# Bytecode of all that may be run: with none, imports take three times as long.
define install
uv pip sync --quiet --require-hashes $(1)
uv pip install --quiet --no-deps --editable .
python -m compileall -q -j 0 -x '/(tests?|pip|databricks)/' $(VENV)/lib calmlflow entrypoints
endef

.PHONY: run test test-slow check-python lock bench bench-evidence bench-predict bench-jobs bench-scale lint format ui server stop clean

run: $(VENV)/installed server
	@mkdir -p "$$CALMLFLOW_HOME/tmp"
	@calmlflow server env > "$$CALMLFLOW_HOME/env"
	. "$$CALMLFLOW_HOME/env" && TMPDIR="$$CALMLFLOW_HOME/tmp" mlflow run . -e main --env-manager local -P data="$(DATA)" -P output="$(OUTPUT)"
	calmlflow promote --stage Staging
	calmlflow promote --stage Production
	calmlflow predict j8c601020 --control examples/j8c601020_MemModelFeatures.txt --stage Production
	@calmlflow stages
	@. "$$CALMLFLOW_HOME/env" && echo "Open $$MLFLOW_TRACKING_URI and choose 'Model training' for runs, artifacts and models; 'make stop' ends the server."

server: $(VENV)/installed
	calmlflow server --detach $(PORTS)

ui: server

stop: $(VENV)/installed
	calmlflow server stop

# Two workers, each with its own servers; files stay whole, so that their fixtures are made once.
PYTEST := python -m pytest -n 2 --dist loadfile

test: $(VENV)/installed-test
	$(PYTEST)

test-slow: $(VENV)/installed-test
	$(PYTEST) -m slow || [ $$? -eq 5 ]

# Install, import, train and predict with another Python, in a folder of its own: make check-python PYTHON=python3.13
check-python:
	@$(PYTHON) -c "$(SUPPORTED)" 2>/dev/null || { echo "SKIPPED: check-python: $(PYTHON) is no Python 3.11 to 3.13 here" >&2; exit 0; } && \
	scratch=$$(mktemp -d) && export CALMLFLOW_HOME=$$scratch/home && \
	trap "$$scratch/venv/bin/calmlflow server stop; rm -rf $$scratch" EXIT && \
	$(MAKE) run VENV=$$scratch/venv OUTPUT=$$scratch/data DATA=sample:2000 PORT=5051 S3_PORT=8351 && \
	$$scratch/venv/bin/python -c "$(IMPORT_ALL)"

bench: $(VENV)/installed
	python -m benchmarks.bench --data "$(DATA)" --output out/bench.json

# make bench-evidence DATA=jobs.csv RERUNS=reruns.csv
bench-evidence: $(VENV)/installed
	python -m benchmarks.evidence --data "$(DATA)" --reruns "$(RERUNS)"

bench-predict: $(VENV)/installed-test
	@# Edited since they were installed: a module without compiled bytecode takes three times as long.
	python -m compileall -q calmlflow
	python -m benchmarks.bench_predict

bench-jobs: $(VENV)/installed-test
	python -m compileall -q calmlflow
	python -m benchmarks.bench_jobs

bench-scale: $(VENV)/installed-test
	python -m compileall -q calmlflow
	python -m benchmarks.bench_scale

lint: $(VENV)/installed-test
	ruff check .
	ruff format --check .
	mypy

format: $(VENV)/installed-test
	ruff check --fix .
	ruff format .

clean:
	@if [ -x $(VENV)/bin/calmlflow ]; then $(VENV)/bin/calmlflow server stop; fi
	rm -rf .venv .calmlflow .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info data out mlruns mlflow.db ci-artifacts
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

lock: $(VENV)/bin/uv
	uv pip compile $(COMPILE) --extra local --output-file requirements.lock pyproject.toml
	uv pip compile $(COMPILE) --extra local --extra distributed --extra test --constraint requirements.lock --output-file requirements-test.lock pyproject.toml

$(VENV)/bin/uv:
	@$(PYTHON) -c "$(SUPPORTED)" || { echo "error: no Python 3.11, 3.12 or 3.13 with venv found ('$(PYTHON)'); name one with PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	python -m pip install --quiet --disable-pip-version-check "$(UV)"

$(VENV)/installed: $(VENV)/bin/uv requirements.lock pyproject.toml
	$(call install,requirements.lock)
	@touch $@

$(VENV)/installed-test: $(VENV)/bin/uv requirements-test.lock requirements.lock pyproject.toml
	$(call install,requirements-test.lock)
	@touch $@ $(VENV)/installed
