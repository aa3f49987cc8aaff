# `make demo` and `make test` set up everything on a machine that has only Python 3.11+ and make.
PYTHON ?= python3
TOOLS := .tools
UV := $(shell command -v uv 2>/dev/null || echo $(TOOLS)/bin/uv)
RUN := .venv/bin
BENCHMARKS := objective accumulate input step locked memory resume inference fine_grained localisation staged findings unpaired label_efficiency objectives_compared

.PHONY: setup check test test-slow demo bench docs clean

setup: .venv/.done

.venv/.done: pyproject.toml uv.lock
	@command -v uv >/dev/null 2>&1 || test -x $(TOOLS)/bin/uv || { $(PYTHON) -m venv $(TOOLS) && $(TOOLS)/bin/pip install --quiet uv; }
	$(UV) sync --quiet --locked --all-extras
	@touch $@

check: setup
	$(RUN)/ruff format --check src tests benchmarks
	$(RUN)/ruff check src tests benchmarks
	$(RUN)/mypy

test: export OMP_NUM_THREADS = 1
test: setup
	$(RUN)/pytest -m "not slow and not gpu" -n logical --dist loadfile

test-slow: setup
	$(RUN)/pytest -m slow

demo: setup
	$(RUN)/unicl demo

bench: export OMP_WAIT_POLICY = PASSIVE
bench: setup
	$(UV) sync --quiet --locked --all-extras --group bench
	for script in $(BENCHMARKS); do $(RUN)/python benchmarks/$$script.py || exit 1; done
	$(RUN)/unicl demo --out demo && cp demo/results.json benchmarks/results/demo.json
	$(RUN)/python benchmarks/table.py

docs: setup
	$(UV) run --quiet --locked --group docs mkdocs build --strict

clean:
	rm -rf .venv $(TOOLS) site
