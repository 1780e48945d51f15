# Every target does the set-up it needs; what is already done is skipped.
#
#   PYTHON      the Python to build .venv with (3.11 or 3.12)
#   TORCH_SPEC  another build of torch, e.g. TORCH_SPEC='torch==2.13.0+cpu'
#   PIP_ARGS    passed to every pip install. Where the package index offers only CUDA builds of
#               torch, name an index with CPU builds here (--extra-index-url ...): smaller by
#               gigabytes. A CUDA build works as well.
#   ARGS        passed on to `sgl-entropy demo` or to pytest

# Run, not only found: a version manager's shim may stand for nothing.
PYTHON ?= $(or $(shell for p in python3.11 python3.12; do \
	$$p -c '' 2>/dev/null && echo $$p && break; done),python3)
TORCH_SPEC ?=
PIP_ARGS ?=
ARGS ?=

BIN := .venv/bin
# One compute thread unless told otherwise: two on two busy cores can be 20 times slower.
export OMP_NUM_THREADS ?= 1
export TORCHDYNAMO_DISABLE ?= 1

.PHONY: help demo test env target patches lint browser clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo    serve the small target with and without drafters and compare'
	@echo 'make test    lint, types, import contracts and the whole test suite'
	@echo 'make env     build the pinned environment in .venv'
	@echo 'make lint    ruff, mypy and the import contracts alone'
	@echo 'make clean   remove .venv and all caches (the converted target stays in its cache)'

env:
	@$(PYTHON) requirements/build_env.py .venv --torch='$(TORCH_SPEC)' --pip-args='$(PIP_ARGS)'

target: env
	@$(BIN)/sgl-entropy target >/dev/null

patches: env
	@$(BIN)/sgl-entropy patch apply --quiet >/dev/null
	@$(BIN)/sgl-entropy patch verify --quiet

demo: target patches
	@$(BIN)/sgl-entropy demo $(ARGS)

lint: env
	@failed=''; \
	for check in 'ruff check .' 'ruff format --check .' mypy lint-imports; do \
		echo "$$check"; $(BIN)/$$check || failed=1; \
	done; \
	test -z "$$failed"

# One test opens a report in a real browser; it is skipped where there is none.
browser:
	@for b in chromium chromium-browser google-chrome; do \
		command -v $$b >/dev/null 2>&1 && exit 0; \
	done; \
	{ test "$$(id -u)" = 0 && command -v apt-get >/dev/null 2>&1 && echo 'installing chromium' && \
	  timeout 150 sh -c 'apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	    apt-get install -y -qq --no-install-recommends chromium' >/dev/null 2>&1; } || \
	echo 'no browser: the test that opens a report in one will be skipped'

# The tests run even where a linter complains, so that one run tells everything.
test: target patches browser
	@failed=''; \
	$(MAKE) --no-print-directory lint || failed=1; \
	$(BIN)/python -m tests.side_by_side $(ARGS) || failed=1; \
	if [ -n "$$failed" ]; then echo 'make test: FAILED'; exit 1; fi

clean:
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf *.egg-info
