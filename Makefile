# make digits            train on MNIST for 10 minutes, draw new digits, compare the samplers, write the report (MINUTES=3 for
#                        another budget)
# make test              the checks and the fast tests;  make test-slow  the long ones
# make bench             training speed beside diffusers' UNet2DModel and the machine's own, into bench.json
# make torture           kill -9 two hundred times, go on each time, compare to the byte: some minutes
# make signals           Ctrl-C and SIGTERM at twenty moments of a training: how long until it has saved and is gone: a quarter of an hour
# make properties        the tests of properties with new examples, EXAMPLES=2000 each
# make speedrun          quality for the minutes spent: 3 and 10 minutes, 3 seeds (MINUTES=60), about 2 hours
# make docs              the documentation, into docs/_build/html; a dead link is an error
# make features          train the metrics' feature network anew (not needed: it is in the package)
# make setup             only set up .venv
# PYTHON=python3.12 chooses the interpreter; RUN=runs/other the run folder of make digits.

PYTHON  ?= python3
MINUTES ?= 10
RUN     ?= runs/digits
EXAMPLES ?= 2000
BIN     := .venv/bin
READY   := .venv/.ready

.PHONY: digits test test-slow check bench torture signals properties speedrun features docs setup clean
.DEFAULT_GOAL := digits

digits: setup
	@$(BIN)/undiffuse train --conditional --minutes $(MINUTES) --out $(RUN) || { status=$$?; \
	  if $(BIN)/python -c '$(OTHER_MINUTES)' $(RUN)/config.json $(MINUTES) 2>/dev/null; then \
	    echo "For a new run: make digits MINUTES=$(MINUTES) RUN=$(RUN)-$(MINUTES)min"; fi; exit $$status; }
	@test -f $(RUN)/samples.png || $(BIN)/undiffuse sample $(RUN) --n 100
	@test -f $(RUN)/report.html || { $(BIN)/undiffuse study samplers $(RUN) && $(BIN)/undiffuse report $(RUN); }

# Whether the run's config.json has another number of minutes; fails where there is none, or where MINUTES is no number.
OTHER_MINUTES := import json, sys; path, asked = sys.argv[1:]; \
  sys.exit(json.load(open(path))["config"]["minutes"] == float(asked))

test: check
	$(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 4

test-slow: setup
	$(BIN)/python -m pytest -m slow

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python benchmarks/bench.py

torture: setup
	$(BIN)/python scripts/torture.py

signals: setup
	$(BIN)/python scripts/signals.py

properties: setup
	EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest tests/test_properties.py tests/test_life.py -n auto --maxprocesses 4

speedrun: setup
	$(BIN)/python benchmarks/speedrun.py $(if $(filter command line,$(origin MINUTES)),--minutes $(MINUTES))

features: setup
	$(BIN)/python scripts/train_features.py

docs: setup
	$(BIN)/python -m sphinx -W --keep-going -n -q -E docs docs/_build/html
	@echo "docs/_build/html/index.html"

setup: $(READY)

INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps

# Nothing is installed but files whose hashes are in the locks. torch's own CPU wheel for Linux is taken where pip is told where to find it;
# the package index's wheel for Linux brings the libraries of a GPU.
# The marker is written last, so an interrupted set-up is begun again, and a changed lock is installed.
$(READY): $(wildcard requirements*.lock) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "undiffuse needs Python 3.11 or newer; say which with: make PYTHON=python3.12"; exit 2; }
	@echo "Setting up .venv: some minutes the first time, as torch is large"
	@test -x $(BIN)/python && $(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear .venv
	$(INSTALL) --require-hashes -r requirements.lock
	@found=$$($(INSTALL) --require-hashes -r requirements-torch-cpu.lock 2>&1) || case "$$found" in \
	  *"No matching distribution"*) \
	    echo "The package index's torch: 0.1 GB to download, 2.7 GB on Linux"; \
	    $(INSTALL) --require-hashes -r requirements-torch.lock;; \
	  *) echo "$$found" >&2; exit 1;; esac
	$(INSTALL) --no-build-isolation --editable .
	@touch $(READY)

clean:
	rm -rf .venv
