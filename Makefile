# Everything a person or a machine does here. `make help` lists it.
# PYTHON is the interpreter that makes .venv: `make demo PYTHON=python3.12`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet -c constraints.txt
INPUTS := pyproject.toml constraints.txt
# One process a core; tests of one file share what was made once for all of them.
WORKERS := -n auto --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test quick reference lint types layers docs check format lowest newest bill
.PHONY: wheel clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-9s %s\n", $$1, $$2 }' Makefile

# One stamp per layer of the environment: each is made again when its inputs change, and a
# half-finished install leaves no stamp.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "datafree needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade 'pip>=25.1'
	@touch $@

# torch comes first and alone, so that nothing else can choose another build of it.
$(VENV)/.runtime: $(VENV)/.created $(INPUTS)
	$(INSTALL) torch
	$(INSTALL) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(INSTALL) --group dev
	@touch $@

$(VENV)/.docs: $(VENV)/.runtime
	$(INSTALL) --group docs
	@touch $@

install: $(VENV)/.runtime ## make .venv with the package and what it needs to run

demo: $(VENV)/.runtime ## quantize the built-in network without data and show the result
	$(BIN)/datafree demo --force

test: $(VENV)/.dev ## run every test that needs no GPU
	$(BIN)/python -m pytest -m "not gpu" $(WORKERS) $(PYTEST_ARGS)

quick: $(VENV)/.dev ## run the tests that take under two minutes in all
	$(BIN)/python -m pytest -m "not gpu and not integration and not e2e" $(WORKERS) $(PYTEST_ARGS)

reference: $(VENV)/.dev ## write docs/reference/ from fields, methods and modules
	$(BIN)/python scripts/reference.py

lint: $(VENV)/.dev ## check format, style and spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/typos

types: $(VENV)/.dev ## check types
	$(BIN)/basedpyright --pythonpath $(BIN)/python

layers: $(VENV)/.dev ## check that imports point down
	$(BIN)/lint-imports

docs: $(VENV)/.docs ## build the documentation; a warning is an error
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

check: lint types layers test docs ## everything a change must pass

format: $(VENV)/.dev ## put the code into its format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The lowest and the newest versions of everything that pyproject.toml names, but for torch, each in
# an environment of its own: a network through every stage, the readers and the command line.
lowest: RESOLUTION := lowest-direct
lowest: ## test the lowest versions that are allowed
newest: RESOLUTION := highest
newest: ## test the newest versions that there are
lowest newest: $(VENV)/.created
	rm -rf .venv-$@
	$(PYTHON) -m venv .venv-$@
	$(PIP) install --quiet 'uv>=0.8'
	.venv-$@/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt torch
	$(BIN)/uv pip compile --quiet --resolution $(RESOLUTION) --no-header --no-annotate pyproject.toml \
		| grep -vE '^(torch|triton|nvidia|cuda)' > .venv-$@/versions.txt
	.venv-$@/bin/python -m pip --disable-pip-version-check install --quiet \
		-r .venv-$@/versions.txt 'pytest>=8.4' 'hypothesis>=6.130'
	.venv-$@/bin/python -m pip --disable-pip-version-check install --quiet --no-deps -e .
	.venv-$@/bin/python -m pytest -q -m "not gpu" $(ANY_VERSION) $(PYTEST_ARGS)

ANY_VERSION := tests/test_images.py tests/config tests/quant tests/calibrators tests/models/test_models.py \
	tests/export/test_onnx.py tests/export/test_pt2.py tests/runs/test_pipeline.py tests/cli/test_app.py

bill: $(VENV)/.runtime ## write what an installation brings, with licences, as dist/sbom.json
	$(PIP) install --quiet 'cyclonedx-bom>=7'
	mkdir -p dist
	$(BIN)/cyclonedx-py environment --output-reproducible --of JSON -o dist/sbom.json $(BIN)/python

wheel: $(VENV)/.created ## build the wheel into dist/
	rm -rf dist
	$(PIP) wheel --quiet --no-deps --wheel-dir dist .

clean: ## remove .venv, caches and build results (never runs/)
	rm -rf $(VENV) .venv-lowest .venv-newest dist docs/_build .coverage htmlcov
	rm -rf .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
