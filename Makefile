PYTHON ?= python

.PHONY: test lint types docs

test:  ## every test, the real default model included
	$(PYTHON) -m pytest

lint:  ## style, and who may import whom
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	lint-imports

types:
	$(PYTHON) -m mypy

docs:  ## the generated parts of docs/; fails when they were stale
	$(PYTHON) docs/generate.py
	git diff --exit-code -- docs
