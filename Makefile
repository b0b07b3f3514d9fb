# Two commands do everything on a fresh machine: `make demo` and `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
DEMO   ?= demo
READY  := $(VENV)/.ready

.PHONY: help demo test check gpu clean
.DEFAULT_GOAL := help

help:  ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

# The exact versions of constraints.txt are what was tested, so they are what is installed.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "Python 3.11, 3.12 or 3.13 is needed; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)."; \
	    echo "Name another one: make PYTHON=python3.12 ..."; exit 2; }
	@echo "Installing into $(VENV): about 2 GB with torch for CPUs, several more with CUDA. It takes some minutes."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

demo: $(READY)  ## the main job on demonstration data: search, export, retrain, predict, report
	@DEMO=$(DEMO) BIN=$(BIN) bash studies/demo.sh

check: $(READY)  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check  ## everything that is checked: lint, types, tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

# Needs torch, numpy, pillow, pydantic and pytest only, so that it runs where nothing can be installed:
# make gpu GPU_PYTHON=python3 GPU_DATA=demo/data
GPU_PYTHON ?= $(BIN)/python
GPU_DATA   ?= $(DEMO)/data
gpu:  ## every GPU test and benchmark, in under 8 minutes, on a machine with a CUDA device
	@test -d $(GPU_DATA)/train || PYTHONPATH=. $(GPU_PYTHON) -c "import pathlib; from cvaeopt.demo_data import writer; writer.write(pathlib.Path('$(GPU_DATA)'))"
	PYTHONPATH=. $(GPU_PYTHON) -m pytest --noconftest -m cuda tests/vae/test_cuda.py
	PYTHONPATH=. $(GPU_PYTHON) -m bench.engine --data $(GPU_DATA) --device cuda:0 --widths default --parts speed trials --repeats 2 --warm-up
	PYTHONPATH=. $(GPU_PYTHON) -m bench.engine --data $(GPU_DATA) --device cuda:0 --widths default --parts speed trials --repeats 2 --warm-up --precision bf16 --name engine-cuda-default-bf16

clean:  ## remove the demonstration and the caches (not the virtual environment)
	rm -rf $(DEMO) .pytest_cache .mypy_cache .ruff_cache .hypothesis
