# Two commands for a stranger: `make quickstart` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help setup quickstart demo test test-slow lint docs tensorboard clean

help:
	@echo "make setup        only sets up .venv"
	@echo "make quickstart   set up, then the whole study on phantoms, with its report, offline (minutes)"
	@echo "make demo         a page for one radiograph, in the browser, with the models of the quickstart"
	@echo "make test         set up, then run the tests"
	@echo "make test-slow    the other tests: benchmarks, other runtimes, several processes"
	@echo "make lint         formatting, lint, types and the layers of the package"
	@echo "make docs         the documentation as a site, in site/"
	@echo "make tensorboard  show everything under logs/ at http://localhost:6006"
	@echo "make clean        remove the virtual environment and caches (never logs/ or saved_models/)"

# The stamp appears only after a whole installation: an interrupted one is done again.
$(VENV)/.installed: $(wildcard requirements*.txt) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
		|| (echo "Python 3.10 to 3.13 is needed; name one with: make PYTHON=python3.12 ..." >&2; exit 2)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

setup: $(VENV)/.installed

quickstart: setup
	$(BIN)/python scripts/run_study.py --data phantom --preset quickstart --name quickstart
	@echo
	@echo "What you have now, all of it on synthetic phantoms:"
	@echo "  logs/study/quickstart/report.html                   open this first, in a browser"
	@echo "  logs/*/quickstart*/figures/                         its figures, and many more"
	@echo "  saved_models/quickstart-*/1/                        what TF Serving serves"
	@echo "What to do next:"
	@echo "  make demo                                           drop a radiograph, see what the models say"
	@echo "  make tensorboard                                    all runs, at http://localhost:6006"
	@echo "  $(BIN)/python scripts/predict.py --model saved_models/quickstart-binary-vgg16 --images data/phantom-v1/test"
	@echo "  $(BIN)/python scripts/run_study.py --data YOUR_FOLDER --name mine    (see README.md)"

# After a quickstart; with other models: make demo DEMO="--saved-models DIR --classifier NAME"
$(VENV)/.demo-installed: $(VENV)/.installed requirements-demo.txt requirements-dicom.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-demo.txt -r requirements-dicom.txt
	@touch $@

demo: $(VENV)/.demo-installed
	$(BIN)/python scripts/demo.py $(DEMO)

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder -m "not slow"

test-slow: setup
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder -m slow

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

docs: setup
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	$(BIN)/zensical build --strict
	@echo "open site/index.html"

tensorboard: setup
	$(BIN)/tensorboard --logdir logs

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info
