# `make demo` and `make test` do all set-up themselves: Python >= 3.11, make and a package index are enough.
# An interpreter of your choice: make PYTHON=/path/to/python demo
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

EXTRAS := report,fit,zeus,train,test,check,docs
BIN := .venv/bin
# One thread per test worker: two workers then use two cores, and a result does not depend on the machine.
PYTEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
CANDIDATES := $(PYTHON) python3.11 python3.12 python3.13 python3

.PHONY: help setup demo test check families families-newest families-oldest clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: .venv/.stamp ## create .venv and install everything, once

demo: .venv/.stamp ## run the shipped model under several strategies and write a report
	$(BIN)/thermoe demo

test: .venv/.stamp ## the test suite
	$(PYTEST) $(BIN)/pytest -n 2

check: .venv/.stamp ## formatting, lint, types, layers, kernels compiled ahead of time, documentation
	@echo "== ruff format: formatting"
	$(BIN)/ruff format --check .
	@echo "== ruff check: lint"
	$(BIN)/ruff check .
	@echo "== mypy: types, strict"
	$(BIN)/mypy
	@echo "== lint-imports: layers"
	$(BIN)/lint-imports
	@echo "== kernels: compiled ahead of time, within bounds"
	OMP_NUM_THREADS=1 $(BIN)/python scripts/compile_kernels.py
	@echo "== mkdocs: documentation"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

families: families-newest families-oldest ## model families and kernels at both ends of the ranges of Transformers and Triton

families-newest: .venv/.stamp
	@$(BIN)/python -c 'import transformers; print("== families: transformers", transformers.__version__)'
	$(PYTEST) $(BIN)/python -m pytest -n 2 tests/integrations

families-oldest: .venv-oldest/.stamp
	@.venv-oldest/bin/python -c 'import transformers; print("== families: transformers", transformers.__version__)'
	$(PYTEST) .venv-oldest/bin/python -m pytest -n 2 tests/integrations tests/kernels
	OMP_NUM_THREADS=1 .venv-oldest/bin/python scripts/compile_kernels.py

# The stamp comes last, so that an interrupted installation is taken up again.
.venv/.stamp: pyproject.toml constraints.txt
	@python=; for candidate in $(CANDIDATES); do \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then echo "no Python >= 3.11 found: install one, or name it with make PYTHON=..." >&2; exit 1; fi; \
	echo "== set-up: .venv with $$("$$python" --version) (a few minutes, once)"; \
	[ -x $(BIN)/python ] || "$$python" -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

# Only Transformers and what it cannot share lie in this environment; the rest, torch above all, is seen through .venv.
.venv-oldest/.stamp: .venv/.stamp constraints-oldest.txt
	@echo "== set-up: .venv-oldest with the oldest supported Transformers"
	rm -rf .venv-oldest
	$(BIN)/python -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --no-deps --requirement constraints-oldest.txt
	@shared=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	own=$$(.venv-oldest/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	echo "import site; site.addsitedir('$$shared')" > "$$own/shared.pth"
	@touch $@

clean: ## remove environments, caches and built pages
	rm -rf .venv .venv-oldest site dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
