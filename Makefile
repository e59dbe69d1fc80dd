# calmlflow: `make run` shows the whole path on the synthetic sample, `make test` checks it.
# Needs Python 3.11, make and a package index. Everything lives in this folder: .venv, .calmlflow, data.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
# make run PORT=5600 S3_PORT=8733 DATA=sample:5000; a server that runs keeps its ports.
DATA ?= sample
PORTS := $(if $(PORT),--port $(PORT)) $(if $(S3_PORT),--s3-port $(S3_PORT))

BIN := $(CURDIR)/.venv/bin
export PATH := $(BIN):$(PATH)
export CALMLFLOW_HOME ?= $(CURDIR)/.calmlflow
# The commands here speak to the embedded server, whatever server the user has turned to.
unexport MLFLOW_TRACKING_URI MLFLOW_REGISTRY_URI MLFLOW_RUN_ID MLFLOW_EXPERIMENT_ID AWS_PROFILE AWS_ACCESS_KEY_ID
export MLFLOW_DISABLE_TELEMETRY ?= true
export TF_CPP_MIN_LOG_LEVEL ?= 3
# What libraries would keep in the home folder or in /tmp stays here too.
export MPLCONFIGDIR ?= $(CURDIR)/.calmlflow/matplotlib
export KERAS_HOME ?= $(CURDIR)/.calmlflow/keras

.PHONY: run test test-slow bench bench-predict bench-jobs lint format ui server stop clean

run: .venv/installed server
	@mkdir -p $(CALMLFLOW_HOME)/tmp
	eval "$$(calmlflow server env)" && TMPDIR=$(CALMLFLOW_HOME)/tmp mlflow run . -e main --env-manager local -P data=$(DATA)
	calmlflow promote --stage Staging
	calmlflow promote --stage Production
	calmlflow predict j8c601020 --control examples/j8c601020_MemModelFeatures.txt --stage Production
	@calmlflow stages
	@eval "$$(calmlflow server env)" && echo "Open $$MLFLOW_TRACKING_URI for runs, artifacts and registered models; 'make stop' ends the server."

server: .venv/installed
	calmlflow server --detach $(PORTS)

ui: server

stop: .venv/installed
	calmlflow server stop

test: .venv/installed-test
	python -m pytest

test-slow: .venv/installed-test
	python -m pytest -m slow || [ $$? -eq 5 ]

bench: .venv/installed
	python -m benchmarks.bench --data "$(DATA)" --output out/bench.json

bench-predict: .venv/installed-test
	@# Edited since they were installed: a module without compiled bytecode takes three times as long.
	python -m compileall -q calmlflow
	python -m benchmarks.bench_predict

bench-jobs: .venv/installed-test
	python -m compileall -q calmlflow
	python -m benchmarks.bench_jobs

lint: .venv/installed-test
	ruff check .
	ruff format --check .
	mypy

format: .venv/installed-test
	ruff check --fix .
	ruff format .

clean:
	@if [ -x $(BIN)/calmlflow ]; then $(BIN)/calmlflow server stop; fi
	rm -rf .venv .calmlflow .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info data out mlruns mlflow.db ci-artifacts
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info[:2] != (3, 11))" || { echo "error: Python 3.11 is needed and $(PYTHON) is none; name one with PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml
	python -m pip install --quiet --disable-pip-version-check -e ".[local]"
	python -m compileall -q calmlflow entrypoints
	@touch $@

.venv/installed-test: .venv/bin/python pyproject.toml
	python -m pip install --quiet --disable-pip-version-check -e ".[local,test]"
	python -m compileall -q calmlflow entrypoints
	@touch $@ .venv/installed
