# make digits       train on MNIST for 10 minutes, sample digits, measure them, compare samplers and
#                   noise schedules, and write the report
# make test         the checks and the fast tests
# make test-slow    the slow tests, about 20 minutes
# make bench        the training speed beside that of diffusers' UNet2DModel and the rate of the
#                   machine's convolutions, into bench.json
# make torture      kill a training 200 times with SIGKILL and resume it each time; the run must end
#                   in the same bytes; about 10 minutes
# make signals      send Ctrl-C or SIGTERM at 20 moments of a training and time its exit, about 15
#                   minutes
# make properties   the tests of properties with new examples, EXAMPLES=2000 each
# make speedrun     the quality that a budget of minutes gives: 3 and 10 minutes (or MINUTES=60), 3
#                   seeds; about 2 hours
# make generality   the quality of the defaults on five image sets that are not MNIST's, 3 minutes
#                   of training each; BEFORE=FOLDER compares with another checkout
# make docs         the documentation, into docs/_build/html; a dead link is an error
# make features     train the metrics' feature network again (not needed: the package has it)
# make setup        only set up .venv
#
# PYTHON=python3.12 chooses the interpreter. MINUTES=3 gives make digits another budget, and
# RUN=runs/other another run folder.

PYTHON  ?= python3
MINUTES ?= 10
RUN     ?= runs/digits
EXAMPLES ?= 2000
BIN     := .venv/bin
READY   := .venv/.ready

.PHONY: digits test test-slow check bench torture signals properties speedrun generality features \
  docs setup clean
.DEFAULT_GOAL := digits

digits: setup
	@$(BIN)/undiffuse train --conditional --minutes $(MINUTES) --quality-share 0 --out "$(RUN)" || { status=$$?; \
	  if $(BIN)/python -c '$(OTHER_MINUTES)' "$(RUN)/config.json" $(MINUTES) 2>/dev/null; then \
	    echo "For a new run: make digits MINUTES=$(MINUTES) RUN=$(RUN)-$(MINUTES)min"; fi; \
	  exit $$status; }
	@test -f "$(RUN)/samples.png" || $(BIN)/undiffuse sample "$(RUN)" --n 100
	@test -f "$(RUN)/metrics.json" || $(BIN)/undiffuse evaluate "$(RUN)" --quick
	@test -f "$(RUN)/report.html" || { \
	  $(BIN)/undiffuse study samplers "$(RUN)" --minutes 1.3 && \
	  $(BIN)/undiffuse study progress "$(RUN)" --minutes 0.6 && \
	  $(BIN)/undiffuse study schedules "$(RUN)" --values linear cosine --minutes 2.3 && \
	  $(BIN)/undiffuse report "$(RUN)"; }

# Succeeds where the run's config.json has another number of minutes. Fails where there is no such
# file or where MINUTES is not a number.
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

generality: setup
	$(BIN)/python benchmarks/generality.py $(if $(BEFORE),--before "$(BEFORE)")

torture: setup
	$(BIN)/python scripts/torture.py

signals: setup
	$(BIN)/python scripts/signals.py

properties: setup
	EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest tests/test_properties.py tests/test_life.py \
	  -n auto --maxprocesses 4

speedrun: setup
	$(BIN)/python benchmarks/speedrun.py \
	  $(if $(filter command line,$(origin MINUTES)),--minutes $(MINUTES))

features: setup
	$(BIN)/python scripts/train_features.py

docs: setup
	$(BIN)/python -m sphinx -W --keep-going -n -q -E docs docs/_build/html
	@echo "docs/_build/html/index.html"

setup: $(READY)

INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps

# Only files whose hashes are in the locks are installed. torch's CPU wheel for Linux is taken where
# pip finds it. Otherwise the package index's wheel is taken. On Linux it needs a GPU's libraries.
# The marker is written last: an interrupted set-up starts again, and a changed lock is installed.
$(READY): $(wildcard requirements*.lock) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "undiffuse needs Python 3.11 or newer; choose one with: make PYTHON=python3.12"; exit 2; }
	@echo "Setting up .venv. It takes some minutes the first time, because torch is large."
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
