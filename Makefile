# make study   install what is needed and run the whole argument at the pocket preset
# make test    install what is needed and run linter, layer check, tests and notebooks
# make quick   linter, layer check and the tests that take no time: for whoever changes a line
# make lab     install what is needed and open the notebooks in JupyterLab
# make site    build the static pages of notebooks, library and benchmarks in build/site
# make refresh execute the committed notebooks in place, so that they show their pictures
# make gpu     on a machine with a GPU: what only that can show, in one report (benchmarks/gpu.md)
#
# PIP_ARGS goes to the installer, uv where it is there and else pip: PyTorch without CUDA by
# PIP_ARGS="--index-url https://download.pytorch.org/whl/cpu --extra-index-url https://pypi.org/simple"

PYTHON ?= python3
PIP_ARGS ?=
UV ?= $(shell command -v uv 2>/dev/null)
PRESET ?= pocket
BIN := .venv/bin
INSTALL = $(if $(UV),$(UV) pip install --python $(BIN)/python,$(BIN)/pip install \
	--disable-pip-version-check) --quiet $(PIP_ARGS) -c constraints.txt
# Two processes, a file in one, in the order that tests/conftest.py gives.
IN_TWO := -n 2 --dist loadfile --no-loadscope-reorder
# What tests take of the studies that notebooks show: fewer pairs and images, and shorter runs.
LIGHTER := seeds=3 data.train_limit=2000 data.test_limit=1000 imp.epochs=1 sparse.epochs=3 \
	paths.samples=300 paths.statistics_samples=300 signs.warm_up=2 signs.round_epochs=1 signs.epochs=3
LIGHTER_IMAGENET := seeds=1 dense.epochs=3 sparse.epochs=2
# One thread a process: the study runs one process per core.
export OMP_NUM_THREADS := 1
export PYTHONWARNINGS := ignore::DeprecationWarning

.PHONY: study test quick lab site lint refresh gpu clean

study: .venv/installed
	$(BIN)/rebasin study --preset $(PRESET)

test: .venv/installed-test lint
	$(BIN)/python -m pytest $(IN_TWO)
	$(BIN)/python tests/lighter_notebooks.py build/notebooks \
		--pocket $(LIGHTER) --pocket-imagenet $(LIGHTER_IMAGENET)
	$(BIN)/rebasin run --preset pocket $(LIGHTER:%=--set %) --quiet
	$(BIN)/rebasin run --preset pocket-imagenet $(LIGHTER_IMAGENET:%=--set %) --quiet
	REBASIN_WORKERS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -p no:cacheprovider \
		--nbval-lax --nbval-cell-timeout=900 build/notebooks

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

quick: lint
	$(BIN)/python -m pytest $(IN_TWO) -m "not slow"

site: .venv/installed
	$(INSTALL) -e ".[site]"
	$(BIN)/python docs/build.py

lab: .venv/installed
	$(BIN)/jupyter lab notebooks

refresh: .venv/installed
	$(BIN)/rebasin notebooks refresh

gpu: .venv/installed-test
	$(BIN)/python benchmarks/gpu.py

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "rebasin needs Python 3.11 or newer; call make PYTHON=python3.11 …"; exit 2; }
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(INSTALL) -e .
	@touch $@

.venv/installed-test: .venv/installed
	$(INSTALL) -e ".[test]"
	@touch $@

clean:
	rm -rf .venv runs
