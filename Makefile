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

.PHONY: help demo test quick quick-tests env target patches lint browser browser-or-say clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo      serve the small target with and without drafters and compare'
	@echo 'make quick     lint, types and the pure tests: about four minutes on two cores'
	@echo 'make test      lint, types, import contracts and the whole test suite'
	@echo 'make env       build the pinned environment in .venv'
	@echo 'make lint      ruff, mypy and the import contracts alone'
	@echo 'make browser   install chromium (apt-get, as root) for the one test that needs a browser'
	@echo 'make clean     remove .venv and all caches (the converted target stays in its cache)'

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

# One test opens a report in a real browser. Only a machine of a CI may install one unasked.
BROWSER := $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)

browser:
	@test -n '$(BROWSER)' || { echo 'installing chromium' && apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; }

browser-or-say:
	@test -n '$(BROWSER)' || { test '$(CI)' = true && \
	  timeout 150 $(MAKE) --no-print-directory browser >/dev/null 2>&1; } || \
	  echo 'no browser: the test that opens a report in one is skipped (make browser installs one)'

# The tests run even where a linter complains, so that one run tells everything.
test: target patches browser-or-say
	@failed=''; \
	$(MAKE) --no-print-directory lint || failed=1; \
	$(BIN)/python -m tests.side_by_side $(ARGS) || failed=1; \
	if [ -n "$$failed" ]; then echo 'make test: FAILED'; exit 1; fi

# What needs neither a server of SGLang nor patience; the linters run beside the tests.
quick: target patches
	@$(MAKE) --no-print-directory --keep-going --jobs=2 --output-sync=target lint quick-tests || \
	  { echo 'make quick: FAILED'; exit 1; }

quick-tests:
	@$(BIN)/python -m pytest -m 'not engine and not slow' -q -n auto --maxprocesses=8 \
	  --dist=loadfile $(ARGS)

clean:
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf *.egg-info
