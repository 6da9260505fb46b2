# make study   install what is needed and run the whole argument at the pocket preset
# make test    install what is needed and run linter, layer check, tests and notebooks
# make refresh execute the committed notebooks in place, so that they show their pictures

PYTHON ?= python3
PRESET ?= pocket
BIN := .venv/bin
# One thread a process: the study runs one process per core.
export OMP_NUM_THREADS := 1
export PYTHONWARNINGS := ignore::DeprecationWarning

.PHONY: study test lint refresh clean

study: .venv/installed
	$(BIN)/rebasin study --preset $(PRESET)

test: .venv/installed-test lint
	$(BIN)/python -m pytest
	$(BIN)/python -m pytest --nbval-lax --nbval-cell-timeout=900 notebooks -p no:cacheprovider

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

refresh: .venv/installed
	$(BIN)/rebasin notebooks refresh

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "rebasin needs Python 3.11 or newer; call make PYTHON=python3.11 …"; exit 2; }
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/installed-test: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	@touch $@

clean:
	rm -rf .venv runs
