PYTHON ?= python
# Processes that share the tests: one for each core, at most 8. Each has one thread (tests/conftest.py).
WORKERS ?= logical

.PHONY: test lint types docs

test:  ## every test, the real default model included
	$(PYTHON) -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal

lint:  ## style, and who may import whom
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	lint-imports

types:
	$(PYTHON) -m mypy

docs:  ## the generated parts of docs/; fails when they were stale
	$(PYTHON) docs/generate.py
	git diff --exit-code -- docs
