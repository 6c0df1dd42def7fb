# One virtual environment, made once; PYTHON picks the interpreter it is made with.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO := 4,seed=2 --free-for 2s
PYTEST := $(BIN)/python -m pytest
PYTHONS ?= python3.11 python3.12 python3.13 python3.14
TIMES ?= 10
LOAD ?= 4
TESTS ?= tests
# What has to do with other packages than ours: all but the pure core, simulations and other hosts.
WITH_OTHERS ?= tests/edges tests/cli tests/stub_nvml tests/test_*.py \
  --ignore tests/test_lab.py --ignore tests/test_several_hosts.py --ignore tests/test_loop.py

# Else every command that a test starts would compile all of smartsched anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: check test demo format man pictures lint types soak torture test-lowest test-oldest-engine \
  test-pythons gpu bench bench-decisions bench-gpu help

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

$(INSTALLED): pyproject.toml
	@echo "setting up $(VENV); this takes a while the first time"
	@$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(INSTALLED)  ## set up and run a list of commands on four pretend GPUs
	-$(BIN)/smartsched --simulate $(DEMO) --dry-run < /dev/null
	printf 'echo "job $$SMARTSCHED_JOB sees GPU $$CUDA_VISIBLE_DEVICES"; sleep %s\n' 1 2 1 3 2 1 \
	  | $(BIN)/smartsched --simulate $(DEMO) --output tag

test: $(INSTALLED)  ## set up and run the tests
	$(PYTEST) -n 6 --dist worksteal -m 'not gpu and not soak'

check: $(INSTALLED) lint types test  ## what a change has to pass

format: $(INSTALLED)  ## bring the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

man: $(INSTALLED)  ## bring the manual up to date with the options
	$(BIN)/python docs/make_manual.py > docs/smartsched.1.new
	@mv docs/smartsched.1.new docs/smartsched.1

pictures: $(INSTALLED)  ## draw the README's pictures anew
	$(BIN)/python docs/make_pictures.py

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(INSTALLED)
	$(BIN)/mypy

soak: $(INSTALLED)  ## the long tests
	$(PYTEST) -m soak --timeout 1800

torture: $(INSTALLED)  ## the tests TIMES times (10), each in another order, beside LOAD busy processes (4)
	$(BIN)/python tests/torture.py --times $(TIMES) --load $(LOAD) -- $(PYTEST) -n 4 \
	  --dist worksteal -m 'not gpu and not soak' $(TESTS)

test-lowest:  ## the tests with every dependency as old as pyproject.toml allows
	$(PYTHON) -m venv $(VENV)-lowest
	$(PYTHON) tests/lowest.py > $(VENV)-lowest/constraints.txt
	$(VENV)-lowest/bin/python -m pip install --quiet --disable-pip-version-check \
	  --constraint $(VENV)-lowest/constraints.txt --editable '.[test,report,notify,cluster]'
	$(VENV)-lowest/bin/python -m pytest -n 4 --dist worksteal -m 'not gpu and not soak' $(WITH_OTHERS)

test-oldest-engine: $(INSTALLED)  ## agents and dispatcher with the oldest Dask, and with one of each
	$(PYTHON) -m venv $(VENV)-engine
	grep -o 'distributed>=[0-9.]*' pyproject.toml | sed 's/>=/==/' > $(VENV)-engine/oldest.txt
	$(VENV)-engine/bin/python -m pip install --quiet --disable-pip-version-check \
	  --constraint $(VENV)-engine/oldest.txt --editable '.[test,cluster]'
	OTHER_DISTRIBUTED_PYTHON=$(abspath $(BIN))/python \
	  $(VENV)-engine/bin/python -m pytest -n 4 --dist worksteal tests/edges/engine

test-pythons:  ## the tests with every PYTHONS that there is
	@for python in $(PYTHONS); do \
	  if $$python -c '' 2> /dev/null; \
	  then $(MAKE) --no-print-directory test PYTHON=$$python VENV=$(VENV)-$$(basename $$python) || exit; \
	  else echo "$$python is not installed: skipped"; fi; done

gpu: $(INSTALLED)  ## the tests that need a real NVIDIA GPU and torch
	$(PYTEST) -m gpu

bench: $(INSTALLED)  ## what performance claims are measured with
	$(BIN)/python -m tests.benchmarks.dispatch $(ARGS)

bench-decisions: $(INSTALLED)  ## harm and speed of decisions, against a world without us
	$(BIN)/python -m tests.benchmarks.decisions $(ARGS)

bench-gpu: $(INSTALLED)  ## what can be measured with a real NVIDIA GPU alone; most of it with torch
	$(BIN)/python -m tests.benchmarks.gpu $(ARGS)
