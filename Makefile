# Everything one does here. `make` alone lists it.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# pip's extra words. A machine without a GPU outside this workplace: PIP_WORDS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_WORDS ?=
# pytest's extra words, e.g. make test PYTEST_WORDS="-k launch -x"
PYTEST_WORDS ?=

.PHONY: help setup demo demo-video demo-forecast demo-robot test check bench docs clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## virtual environment in .venv with everything the package, its tests and its checks need

$(STAMP): pyproject.toml constraints.txt
	@tools/make_venv "$(PYTHON)" "$(VENV)"
	@tools/need_gl
	@tools/need_slurm
	@echo "installing the package and its tools into $(VENV): some minutes, 1.5 GB (more where PyTorch comes with CUDA)"
	@$(BIN)/python -m pip install -qq --progress-bar off -c constraints.txt $(PIP_WORDS) -e '.[planning,video,forecasting,robot,wandb,tensorboard,dev]'
	@$(BIN)/python -m pip install -qq --progress-bar off --no-deps -c constraints.txt $(PIP_WORDS) simbench  # its file is read, none of what it needs
	@touch $@
	@echo "installed into $(VENV); try: make demo, make demo-video, make demo-forecast, make demo-robot"

demo: setup  ## plan and run mazes of three sizes with the shipped checkpoints (under 3 minutes on 2 cores)
	@$(BIN)/python -m diffusion_forcing.launch.demo

demo-video: setup  ## roll 48 frames out of mazes never trained on with the shipped world model (under 3 minutes on 2 cores)
	@$(BIN)/python -m diffusion_forcing.launch.demo_video

demo-forecast: setup  ## forecast 96 real load profiles with the shipped forecaster (under 2 minutes on 2 cores)
	@$(BIN)/python -m diffusion_forcing.launch.demo_forecast

demo-robot: setup  ## four times, the shipped policy swaps two fruits in the simulator (under 4 minutes on 2 cores)
	@$(BIN)/python -m diffusion_forcing.launch.demo_robot

test: setup  ## all tests
	$(BIN)/python -m pytest $(PYTEST_WORDS)

check: setup  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup  ## every benchmark: a table, and one line of JSON
	@for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python "$$file"; done

docs: setup  ## pages of the public classes and functions, from their docstrings, in build/docs
	$(BIN)/python -m pip install --quiet --progress-bar off -c constraints.txt $(PIP_WORDS) -e '.[docs]'
	PDOC_ALLOW_EXEC=1 $(BIN)/python -m pdoc --output-directory build/docs $(patsubst %/__init__.py,%,$(wildcard diffusion_forcing/*/__init__.py))
	@echo "open build/docs/index.html; the guides are in docs/"

clean:  ## caches and build folders (not .venv, outputs, data)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
