# Everything from nothing: each target makes the virtual environment it needs first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# A process that writes no bytecode has the next one compile everything again, and tests start many.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test slow smoke check bench measure mini-model docs clean

demo: $(VENV)/.run
	$(BIN)/titer run demo

smoke: $(VENV)/.run
	$(BIN)/titer run smoke

test: $(VENV)/.test check
	$(BIN)/python -m pytest -q -m "not slow and not gpu" -n auto

slow: $(VENV)/.test
	$(BIN)/python -m pytest -q -m "slow" -n auto

check: $(VENV)/.test
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

# Ratios to what one would write without titer, each measured in one run; a quarter of an hour on two cores. Keeps build/bench.*
bench: $(VENV)/.test
	$(BIN)/python -m tests.bench

# The bar of the embedded model: the second opinion on 256 prompts with fresh seeds, and seconds for 64 images.
measure: $(VENV)/.run
	$(BIN)/titer doctor --mini --grid docs/mini.png
	$(BIN)/titer doctor --mini --model mini-flow --grid docs/mini-flow.png

# The documentation in site/, which needs no network: open site/index.html.
docs: $(VENV)/.run
	$(BIN)/pip install -q -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict -q

# Retrain the embedded model; needs npm for the art.
mini-model: $(VENV)/.test
	$(BIN)/pip install -q -c constraints.txt -e ".[recipe]"
	$(BIN)/python -m benchmark.mini.recipe.train

$(VENV)/.run: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "expected Python 3.11 or newer, got $$($(PYTHON) --version): set PYTHON=python3.11"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --progress-bar off -q -c constraints.txt -e .
	touch $@

$(VENV)/.test: $(VENV)/.run
	$(BIN)/pip install --progress-bar off -q -c constraints.txt -e ".[test]"
	touch $@

clean:
	rm -rf $(VENV) build dist
