# Every target sets itself up in .venv. PYTHON names the interpreter, at least 3.11.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
SOURCES := pyproject.toml README.md LICENSE $(shell find helixnb kernels -name '*.py')

.PHONY: demo test lint docs bench-check bench-table peers dev clean

demo: .venv/demo.done
	$(BIN)/python -P -m helixnb $(ARGS)

test: .venv/test.done
	HELIXNB_TEST_WHEEL=1 $(BIN)/pytest $(ARGS)

lint: .venv/test.done .venv/lint.done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

docs: .venv/docs.done
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

# That the benchmarks run, not how fast: asv's own file about the machine goes below .asv.
bench-check: .venv/bench.done
	mkdir -p .asv
	cd asv_bench && export HOME=$(CURDIR)/.asv && ../$(BIN)/asv machine --yes > /dev/null \
	    && ../$(BIN)/asv check -E existing:$(CURDIR)/$(BIN)/python \
	    && ../$(BIN)/asv run --quick --dry-run --show-stderr --bench 'Solo|UserKernel' \
	        -E existing:$(CURDIR)/$(BIN)/python

bench-table: .venv/bench.done
	cd asv_bench && ../$(BIN)/python kernel_table.py

# Writes docs/peers.md and its plot; takes some minutes, so leave the machine to it.
peers: .venv/peers.done
	cd asv_bench && ../$(BIN)/python peers.py --write ../docs $(ARGS)

# The checkout itself, editable, with everything that development needs.
dev: .venv/test.done .venv/lint.done .venv/docs.done
	$(PIP) install --no-deps --no-build-isolation --editable .

clean:
	rm -rf .venv dist build docs/_build

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv .venv

.venv/base.done: .venv/bin/python pyproject.toml
	$(PIP) install 'hatchling>=1.26' 'pip>=23.1'
	touch $@

# The wheel, built from the sources as they are, and installed as a user would.
.venv/wheel.done: .venv/base.done $(SOURCES)
	rm -rf dist
	$(PIP) wheel --no-deps --no-build-isolation --wheel-dir dist .
	$(PIP) install --force-reinstall --no-deps dist/helixnb-*.whl
	touch $@

.venv/%.done: .venv/wheel.done
	$(PIP) install "$$(ls dist/helixnb-*.whl)[$*]"
	touch $@
