# Everything runs in .venv, which the first target that needs it makes. The tests' versions are
# pinned by constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
PEER ?= $(BIN)/python

.PHONY: install sweep test lint bench clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

sweep: install
	$(BIN)/python -m experiments.sweep $(ARGS)

test: install
	$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Those that have a PyTorch beside them take its interpreter: make bench PEER=PATH
bench: install
	for name in latent_interventions patching mediation attribution train_step; do \
	  $(BIN)/python -m benchmarks.$$name --peer-python $(PEER) || exit; done
	for name in circuits layers metrics precision render streaming sweep_scaling; do $(BIN)/python -m benchmarks.$$name || exit; done
	$(BIN)/python -m benchmarks.summary

clean:
	rm -rf .venv
