# Everything runs in .venv, which the first target that needs it makes. The tests' versions are
# pinned by constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

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

bench: install
	$(BIN)/python -m benchmarks.train_step $(ARGS)
	$(BIN)/python -m benchmarks.patching
	$(BIN)/python -m benchmarks.metrics
	$(BIN)/python -m benchmarks.render
	$(BIN)/python -m benchmarks.streaming

clean:
	rm -rf .venv
