# Every target sets itself up in .venv. PYTHON names the interpreter, at least 3.11.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
SOURCES := pyproject.toml README.md LICENSE $(shell find helixnb kernels -name '*.py')

.PHONY: demo test lint numba-variables docs bench-check bench-history bench-planted bench-table bench-stages bench-telemetry \
    bench-watchers bench-soak bench-overload bench-learning bench-service \
    screenshots plots peers dev clean

demo: .venv/demo.done $(if $(findstring --web,$(ARGS)),.venv/web.done)
	$(BIN)/python -P -m helixnb $(ARGS)

# By two processes, which share a cache of kernels. ARGS="-n 0" is for one, and for a debugger.
test: .venv/test.done
	HELIXNB_TEST_WHEEL=1 $(BIN)/pytest -n 2 --dist worksteal $(ARGS)

lint: .venv/test.done .venv/lint.done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# The kernel cache under every NUMBA_* variable that Numba knows: a table, in some minutes.
# ARGS="OPT CPU" takes those with one of these in their names.
numba-variables: .venv/test.done
	$(BIN)/python -P tests/programs/numba_variables.py $(ARGS)

# The site: warnings are errors, notebooks run, and then its links and pages are looked at.
docs: .venv/docs.done .venv/test.done
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html
	HELIXNB_TEST_SITE=docs/_build/html $(BIN)/pytest -q tests/test_site.py

# asv's own file about the machine goes below .asv, with its environments.
ASV := HOME=$(CURDIR)/.asv ../$(BIN)/asv
MACHINE := HOME=$(CURDIR)/.asv ../$(BIN)/python machine.py reference
HERE := -E existing:$(CURDIR)/$(BIN)/python

# That the benchmarks run, not how fast.
bench-check: .venv/bench.done
	mkdir -p .asv
	cd asv_bench && $(MACHINE) && $(ASV) check $(HERE) \
	    && $(ASV) run --machine reference --quick --dry-run --show-stderr $(HERE) \
	        --bench "Solo|UserKernel|Decide|time_p99\('(inline|cpu_pool)"

# What of the benchmarks is kept for each commit: about two minutes' worth of figures that hardly
# depend on the machine. ARGS are git's range of commits, and options of `asv run`.
HISTORY := --bench "Solo.time|BatchKernel.track|Decide.track|^imports|Tail.track" \
    --bench "SlotUtilisation.track_slot_time.*asyncio" \
    --bench "Submit.track_over_bare_task.*asyncio.* 1000[)]"
bench-history: .venv/bench.done
	mkdir -p .asv
	cd asv_bench && $(MACHINE) && $(ASV) run --machine reference --no-interleave-rounds \
	    --durations all $(HISTORY) $(or $(ARGS),HEAD^!)
	cd asv_bench && $(ASV) publish

# That asv flags a kernel and a p99 that were made 1.5 times as slow, and no unchanged commit.
bench-planted: .venv/bench.done
	cd asv_bench && ../$(BIN)/python planted.py

bench-table: .venv/bench.done
	cd asv_bench && ../$(BIN)/python kernel_table.py

bench-stages: .venv/bench.done
	cd asv_bench && ../$(BIN)/python stage_table.py

bench-telemetry: .venv/bench.done
	cd asv_bench && ../$(BIN)/python telemetry_table.py

bench-soak: .venv/bench.done
	cd asv_bench && ../$(BIN)/python soak.py $(ARGS)

# Writes the pictures of the live page; Debian's Chromium takes them.
screenshots: .venv/bench.done
	cd asv_bench && ../$(BIN)/python screenshots.py $(ARGS)

# What becomes of each mix under up to four times the load that the machine takes, by policy and
# naive dispatcher: about eight minutes. ARGS="--mix heavy --rounds 3".
bench-overload: .venv/bench.done
	cd asv_bench && ../$(BIN)/python overload.py $(ARGS)

# Draws docs/images/history.svg from what asv has kept; with OVERLOAD=FILE, which bench-overload has
# written, its pictures too.
plots: .venv/docs.done
	$(BIN)/python asv_bench/plots.py history
	$(if $(OVERLOAD),$(BIN)/python asv_bench/plots.py overload $(OVERLOAD))

# How well AdaptivePolicy predicts, and how it follows what changes: costs, a disturbance, another
# process, gains from batches. About three minutes. ARGS="--only predictions change".
bench-learning: .venv/bench.done
	cd asv_bench && ../$(BIN)/python learning.py $(ARGS)

# What watching costs a router: a page, fifty, one that never reads, a thousand idle connections.
# About a minute and a half. ARGS="--rounds 3 --jobs 50000".
bench-watchers: .venv/bench.done
	cd asv_bench && ../$(BIN)/python watchers.py $(ARGS)

# What becomes of HTTP requests to the example of a service, with a router and without one: about two
# minutes and a half. ARGS="--factors 1 4 --seconds 10".
bench-service: .venv/bench.done
	cd asv_bench && ../$(BIN)/python service_load.py $(ARGS)

# Writes docs/performance/peers.md and its plot; takes some minutes, so leave the machine to it.
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
