# `make demo` and `make test` need Python >= 3.11 and make, nothing else. Everything lands in .venv.
.DEFAULT_GOAL := help
.PHONY: help setup demo test slow mutants check format ci release-check clean
SHELL := /bin/sh
BIN := .venv/bin

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

setup: .venv/.ready ## make .venv and install the locked dependencies (6.2 GB on Linux; TORCH=cpu: 1.3 GB, no CUDA)

# uv of the machine if there is one, else one inside .venv. Again only when the dependencies change, or TORCH.
ifneq ($(TORCH),)
ifneq ($(TORCH),$(shell cat .venv/.torch 2>/dev/null))
.PHONY: .venv/.ready
endif
endif
.venv/.ready: pyproject.toml uv.lock
	@sh tools/setup.sh && touch $@

demo: setup ## pre-train and evaluate a small network on drawn shapes, and write a report (4 minutes, no GPU)
	$(BIN)/swav demo

test: setup ## the fast tests (about 7 minutes on 2 cores)
	$(BIN)/pytest -n auto --maxprocesses 8 --dist worksteal

slow: setup ## the second tier of tests (at most 25 minutes on 2 cores)
	$(BIN)/pytest -m slow

mutants: setup ## wrong variants of the source, each against the test that must fail under it (10 minutes)
	$(BIN)/python -m tests.mutant_runs

check: setup ## style, types, import floors
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## put the code into shape
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

ci: ## everything that CI runs
	.ci/run

release-check: setup ## before a release: the wheel in a fresh environment runs the demo; the fast tests on the lowest versions (30 minutes)
	tools/release_check.sh

clean: ## remove what make made (not your runs)
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache swav-demo
