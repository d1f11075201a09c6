PYTHON ?= python3
BIN = .venv/bin
READY = .venv/ready

.PHONY: demo docs test test-all lint

# Train a small GPT on the Python manual and read what it writes: about three minutes.
demo: $(READY)
	@name=demo; n=1; while [ -e runs/$$name ]; do n=$$((n + 1)); name=demo-$$n; done; \
	$(BIN)/headway train --name $$name

test: $(READY) lint
	$(BIN)/pytest -n 2 -m "not slow"

test-all: $(READY) lint
	$(BIN)/pytest -n 2

# Measure again: what the libraries do (docs/conventions.md), what the doctor catches (docs/check.md).
docs: $(READY)
	PYTHONPATH=tests $(BIN)/python -W ignore::UserWarning -m conventions
	PYTHONPATH=tests/check $(BIN)/python -m kill_table

lint: $(READY)
	$(BIN)/ruff check src tests examples benchmarks
	$(BIN)/ruff format --check src tests examples benchmarks
	$(BIN)/mypy

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(READY)
