# Everything sets itself up: a virtual environment in .venv, made once and renewed when the dependencies change.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

# Packages come uncompiled: whoever imports a file first keeps what it compiled, also where the machine says otherwise.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test check format lint types docs bench bench-long clinic fixes cures browser lowest extras

demo: $(VENV)/.demo  ## train the reference system with all three losses, measure it, write pictures and a summary
	$(BIN)/lossdoctor demo $(ARGS)

test: $(VENV)/.dev browser  ## the whole test suite, one full demo included
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

# Not every change is run with these: the CUDA build of torch, the only one of its age, brings 5 GB.
LOWEST := .venv-lowest
CORE := $(addprefix tests/,curves doctor flow losses metrics preflight probe reference rules store treat \
	test_config.py test_diagnose.py test_keys.py test_layers.py test_linalg.py test_neutrality.py)

lowest: $(LOWEST)/.made  ## the core of the suite with the lowest versions that are declared, in .venv-lowest
	$(LOWEST)/bin/python -m pytest -n auto $(CORE) --ignore tests/doctor/test_accelerate.py $(ARGS)

extras: $(VENV)/.dev  ## the wheel, the sdist and every extra, by pip, each in an environment made from nothing
	LOSSDOCTOR_INSTALL=1 $(BIN)/python -m pytest tests/test_distribution.py --timeout 1800 $(ARGS)

check: format lint types docs test  ## everything that must be green before a change lands

format: $(VENV)/.dev
	$(BIN)/ruff format --check .

lint: $(VENV)/.dev
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/mypy

docs: $(VENV)/.dev
	$(BIN)/sphinx-build --fail-on-warning --keep-going -q -b html docs docs/_build

bench: $(VENV)/.dev  ## overhead, as ratios in one interleaved run; writes docs/overhead.md
	$(BIN)/python benchmarks/overhead.py --write docs/overhead.md

bench-long: $(VENV)/.dev  ## a million steps of 200 metrics, and 200 kills; writes docs/long-runs.md (about half an hour)
	$(BIN)/python benchmarks/long_run.py --write docs/long-runs.md
	$(BIN)/python benchmarks/kills.py --write docs/long-runs.md

clinic: $(VENV)/.dev  ## programs x faults, five seeds: how often the rules are right; writes docs/clinic.md (about an hour)
	$(BIN)/lossdoctor clinic --lang en --out runs/clinic $(ARGS)
	cp runs/clinic/clinic.md docs/clinic.md

cures: $(VENV)/.dev  ## balancing and every remedy, with and without, five seeds; writes docs/balancing.md, docs/cures.md
	$(BIN)/python benchmarks/balance.py --work runs/balance --write docs/balancing.md $(ARGS)
	$(BIN)/python benchmarks/cures.py --work runs/cures --write docs/cures.md $(ARGS)

fixes: $(VENV)/.dev  ## programs x faults: how often the fix ranked first helps; writes docs/fixes.md (about an hour)
	$(BIN)/lossdoctor clinic --fixes --lang en --out runs/clinic $(ARGS)
	cp runs/clinic/fixes.md docs/fixes.md

# The report is opened by tests in a real browser.
browser:
	@{ command -v chromium && command -v chromedriver; } >/dev/null || \
		{ echo "installing chromium for the tests of the report"; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium chromium-driver >/dev/null; } || \
		{ echo "The tests open pages in Chromium: install chromium and chromedriver, then run make test again."; exit 1; }

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "lossdoctor needs Python 3.11 or newer; say which with: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(LOWEST)/.made: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --no-compile -r constraints-lowest.txt -e .
	@touch $@

# The development environment contains everything the demo needs. Of two hundred packages few files are ever imported:
# compiling them all takes longer than installing them.
$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	@test $(VENV)/.dev -nt pyproject.toml || $(BIN)/pip install --no-compile -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --no-compile -c constraints.txt -e '.[dev]'
	@touch $@
