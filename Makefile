PYTHON ?= python
# Processes that share the tests: one for each core, at most 8. Each has one thread (tests/conftest.py).
WORKERS ?= logical
# The tag that a release is made from, e.g. v0.2.0. `make dist` refuses a tag that is not the version.
TAG ?=

.DEFAULT_GOAL := help
.PHONY: help test fuzz golden format lint types docs man results gpu-wheels size check dist publish

help:  ## print this list
	@$(PYTHON) -c 'import re; [print(f"make {n:<12}{t}") for n, t in re.findall(r"^([\w-]+):.*?## (.+)$$", open("Makefile").read(), re.M)]'

test:  ## run every test, the real default model included
	$(PYTHON) -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal

fuzz:  ## run the tests of properties on new random examples
	KVCLI_FUZZ=1 $(PYTHON) -m pytest -n $(WORKERS) --maxprocesses 8 $$(grep -rl "^from hypothesis" tests --include="test_*.py")

golden:  ## write the wording of errors and notes anew; read the diff
	KVCLI_UPDATE_GOLDEN=1 $(PYTHON) -m pytest -q tests/e2e -k "wording or bad_input or one_line"

format:  ## format the code and fix what ruff can fix
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

lint:  ## check the style and the import rule
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	lint-imports

types:  ## check the types (mypy, strict)
	$(PYTHON) -m mypy

docs:  ## write the generated parts of docs/ and README.md; fail if they were stale
	$(PYTHON) docs/generate.py
	git diff --exit-code -- docs README.md

man:  ## write the manual page build/kvcli.1 from the help
	$(PYTHON) docs/man.py build/kvcli.1

results:  ## write the tables and plots of docs/results/ from its data; fail if they were stale
	$(PYTHON) -m benchmarks.results
	git diff --exit-code -- docs/results

gpu-wheels:  ## collect what a machine with a GPU and no network lacks, into build/gpu (benchmarks/gpu.sh)
	$(PYTHON) -m benchmarks.gpu.wheels

size:  ## print the lines of code of each package; fail if one exceeds its limit in docs/size.md
	$(PYTHON) -m benchmarks.size

check: lint types docs results size  ## everything except the tests

dist:  ## build the wheel and the source archive into dist/
	$(PYTHON) -m benchmarks.size --tag "$(TAG)"
	$(PYTHON) -m build

publish:  ## upload dist/ to the package index that twine is configured for
	$(PYTHON) -m twine upload dist/*
