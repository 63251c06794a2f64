# Every target works from a bare machine with Python 3.11+, venv, make and the package registry.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: help setup demo test check bench bench-quick lock clean
help: ## show the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | column -t -s '|'

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-embedded: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[embedded]'
	@touch $@

$(VENV)/.installed-test: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@ $(VENV)/.installed-embedded

$(VENV)/.installed-check: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,check]'
	@touch $@ $(VENV)/.installed-test $(VENV)/.installed-embedded

setup: $(VENV)/.installed-embedded ## only .venv and the install; afterwards .venv/bin/broker works

demo: setup ## the whole story on the embedded default, with a real checkpoint
	@$(BIN)/broker demo

test: $(VENV)/.installed-test ## every test that this machine can run (BROKER_TEST_OUTSIDE=0: no outside tools)
	$(BIN)/python -m tests.outside
	$(BIN)/python -m pytest -n auto --dist loadfile

check: $(VENV)/.installed-check ## lint, types, architecture, documents
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile
	$(BIN)/broker policy test policies
	$(BIN)/python -m pytest tests/test_architecture.py tests/docs

bench: $(VENV)/.installed-test ## the benchmarks, side by side with their peers
	$(BIN)/python -m bench

bench-quick: $(VENV)/.installed-test ## the same with fewer rounds and smaller objects
	$(BIN)/python -m bench --quick

lock: $(BIN)/python ## exact versions with hashes for the server's image
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	echo "# What [server] resolves to, with hashes; made by: make lock" > requirements-server.lock
	$(BIN)/uv pip compile pyproject.toml --extra server --generate-hashes --universal --python-version 3.11 \
		--no-header --no-annotate --quiet >> requirements-server.lock

clean: ## remove what the targets made
	rm -rf $(VENV) .outside build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
