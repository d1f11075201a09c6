PYTHON ?= python3
BIN = .venv/bin
READY = .venv/ready

TSC = .venv/tsc/node_modules/.bin/tsc

.PHONY: demo demo-distributed demo-jax docs observatory test test-all lint types chromium

# Train a small GPT on the Python manual, print a sample and write the explorer's page of the run.
# About three minutes on two cores.
demo: $(READY)
	@name=demo$(if $(ENGINE),-$(ENGINE)); n=1; while [ -e runs/$$name ]; do n=$$((n + 1)); name=demo$(if $(ENGINE),-$(ENGINE))-$$n; done; \
	$(BIN)/headway train --name $$name $(if $(ENGINE),--engine $(ENGINE)) && \
	$(BIN)/headway explore $$name "If the list is empty, it returns None" \
		$(if $(ENGINE),--engine $(ENGINE)) --html runs/$$name/explorer.html

# The plan of a run, the same run with one and with two processes on this machine, and the second
# one continued by a single process in JAX. About two minutes on two cores.
demo-distributed: $(READY)
	@$(BIN)/python examples/distributed.py

# The same with JAX, after an example that trains attention step by step.
demo-jax: $(READY)
	$(BIN)/python examples/trainable_attention_jax.py
	@$(MAKE) --no-print-directory demo ENGINE=jax

# The linters, and all tests that are not marked slow.
test: $(READY) lint chromium
	$(BIN)/pytest -n 2 --dist loadgroup -m "not slow"

test-all: $(READY) lint chromium
	$(BIN)/pytest -n 2 --dist loadgroup

# Measure the tables of docs/conventions.md, docs/check.md, docs/learn/answers.md, docs/parity.md
# and docs/models.md again, grade the sample of docs/learn.md,
# take the explorer's pictures of runs/demo, follow one of its heads in docs/explorer.md, extract the
# lab's reports for the guide and take its pictures.
docs: $(READY) | runs/demo
	PYTHONPATH=tests $(BIN)/python -W ignore::UserWarning -m conventions
	PYTHONPATH=tests/check $(BIN)/python -m trial
	PYTHONPATH=tests/learn $(BIN)/python -W ignore -m answer_trial
	PYTHONPATH=tests/learn $(BIN)/python -m grade_sample
	PYTHONPATH=tests:tests/jax $(BIN)/python -m parity_table
	PYTHONPATH=tests/hf $(BIN)/python -m equal_table
	PYTHONPATH=tests/hf $(BIN)/python -m families_table
	PYTHONPATH=tests:tests/explore $(BIN)/python -m pictures runs/demo
	PYTHONPATH=tests/explore $(BIN)/python -m one_head runs/demo
	$(BIN)/python -m headway.learn.measured
	PYTHONPATH=tests:tests/learn $(BIN)/python -m learn_pictures

# Run every family of transformers in all situations and write docs/observatory.md (minutes).
observatory: $(READY)
	PYTHONPATH=tests/hf OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m observatory

lint: $(READY) types
	$(BIN)/ruff check src tests examples benchmarks
	$(BIN)/ruff format --check src tests examples benchmarks
	$(BIN)/mypy

# Check the types of the pages' scripts.
types:
	@command -v npm > /dev/null || (apt-get update -qq && apt-get install -y -qq nodejs npm) || true
	@if command -v npm > /dev/null; then $(MAKE) --no-print-directory $(TSC) && $(TSC); \
	else echo "npm IS MISSING: the types of the pages' scripts were NOT checked"; fi

$(TSC):
	npm install --silent --no-save --no-package-lock --prefix .venv/tsc typescript@5.9.3

runs/demo:
	$(MAKE) demo

# The tests of the pages need a Chromium. Without one they are skipped with a notice.
chromium:
	@command -v chromium-headless-shell > /dev/null || command -v chromium > /dev/null || \
	(apt-get update -qq && apt-get install -y -qq chromium-headless-shell) || \
	echo "CHROMIUM IS MISSING: the browser tests will NOT run"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(READY)
