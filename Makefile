# One virtual environment, made once; PYTHON picks the interpreter it is made with.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO := 4,seed=2 --free-for 2s
PYTEST := $(BIN)/python -m pytest

.PHONY: check test demo format man pictures lint types soak gpu bench bench-decisions help

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
	$(PYTEST) -n 4 --dist worksteal -m 'not gpu and not soak'

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

gpu: $(INSTALLED)  ## the tests that need a real NVIDIA GPU and torch
	$(PYTEST) -m gpu

bench: $(INSTALLED)  ## what performance claims are measured with
	$(BIN)/python tests/benchmarks/dispatch.py

bench-decisions: $(INSTALLED)  ## harm and speed of decisions, against a world without us
	$(BIN)/python -m tests.benchmarks.decisions $(ARGS)
