# Everything runs in a virtual environment of its own, .venv, made on first use and made again when what it was made from
# changes. PYTHON=... chooses the interpreter (3.10 or newer), TORCH_VERSION=... another torch than requirements/torch.txt.
# Python with venv, make and coreutils are all that `make demo` and `make test` need; `make fresh` shows it.
PYTHON ?= python3
TORCH_VERSION ?=
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check -q install --no-input
TORCH := $(if $(TORCH_VERSION),torch==$(TORCH_VERSION) triton,-r requirements/torch.txt)

# The stamps are named after what they stand for, so a change of content, not of date, makes them again.
checksum = $(shell { cat $(1); echo '$(2)'; } | cksum | tr ' ' '-')
ENVIRONMENT := $(VENV)/environment-$(call checksum,requirements/*.txt,$(PYTHON) $(TORCH))
INSTALLED := $(VENV)/installed-$(call checksum,pyproject.toml setup.py,$(ENVIRONMENT))
NATIVE := $(VENV)/native
NATIVE_SOURCES := CMakeLists.txt $(foreach depth,* */* */*/* */*/*/*,$(filter %.h %.cpp %.cu %.py,$(wildcard csrc/$(depth))))

define say_what_is_there
	@$(VENV)/bin/python -c 'import torch; from metatasnet_fast import native; print("== torch %s; compiled module: %s" % (torch.__version__, native.reason() or "yes"))'
endef

.PHONY: help env demo test test-all fresh matrix lint types bench report docs clean distclean

help:  ## list the targets
	@$(PYTHON) -c 'import re; [print(f"  make {name:<12} {text}") for name, text in re.findall(r"^([a-z-]+):.*## (.*)", open("Makefile").read(), re.M)]'

$(ENVIRONMENT):
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or newer is needed, %s is %s: set PYTHON=..." % (sys.executable, sys.version.split()[0]))'
	@echo "== making $(VENV) with $$($(PYTHON) --version), $(if $(TORCH_VERSION),torch $(TORCH_VERSION),torch as in requirements/torch.txt)"
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) $(TORCH) -c requirements/constraints.txt
	@$(VENV)/bin/python -c 'from importlib.metadata import distributions; [print(d.metadata["Name"], d.version, sep="==") for d in distributions() if d.metadata["Name"] in ("torch", "triton")]' > $(VENV)/torch.txt
	@$(PIP) -r requirements/base.txt -r requirements/test.txt -r requirements/dev.txt -c requirements/constraints.txt -c $(VENV)/torch.txt
	@touch $@

$(INSTALLED): $(ENVIRONMENT)
	@echo "== installing metatasnet-fast into $(VENV) (editable)"
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PIP) --no-build-isolation --no-deps -e .
	$(say_what_is_there)
	@touch $(NATIVE) $@

$(NATIVE): $(NATIVE_SOURCES) | $(INSTALLED)
	@echo "== compiling metatasnet_fast._native"
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(VENV)/bin/python setup.py -q build_ext --inplace
	$(say_what_is_there)
	@touch $@

env: $(INSTALLED) $(NATIVE)  ## the virtual environment, with this package in it
	@:

demo: env  ## separate the excerpt that comes with the package
	@echo "== metatasnet-fast demo"
	@$(VENV)/bin/metatasnet-fast demo

# A process for each core, four at most: each may take more than a gigabyte.
test: env  ## the quick tests, on the CPU
	@echo "== pytest tests (without slow and gpu)"
	@$(VENV)/bin/python -m pytest tests -q -m "not slow and not gpu" -n logical --maxprocesses 4 --dist worksteal

test-all: env  ## all tests; those that need a GPU skip where there is none
	@echo "== pytest tests (all)"
	@$(VENV)/bin/python -m pytest tests -q

fresh:  ## demo and test in a copy of this tree, with nothing on the PATH but Python, make and coreutils
	@sh tests/fresh/fresh.sh $(PYTHON)

matrix:  ## install the newest and the oldest dependencies on several Pythons, and use them; ARGS=--help tells more
	@$(PYTHON) tests/fresh/matrix.py $(ARGS)

lint: env  ## ruff: mistakes and format; import-linter: the direction of imports
	@echo "== ruff check, ruff format --check, lint-imports"
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/lint-imports --no-logo --no-cache

types: env  ## mypy, strict
	@echo "== mypy"
	@$(VENV)/bin/mypy

bench: env  ## the micro-benchmarks
	@echo "== pytest bench"
	@$(VENV)/bin/python -m pytest bench -q --benchmark-only

report: env  ## the README's speed table and picture, from bench/results
	@echo "== python -m bench.report"
	@$(VENV)/bin/python -c 'import matplotlib' 2> /dev/null || $(PIP) matplotlib -c requirements/constraints.txt
	@$(VENV)/bin/python -m bench.report

docs: env  ## the documentation as a site, in build/site
	@echo "== mkdocs build"
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build -q

clean:  ## remove what was built, keep .venv
	@echo "== removing build products and caches"
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	@rm -f metatasnet_fast/_native*.so metatasnet_fast/_native_absent.txt $(NATIVE)

distclean: clean  ## remove .venv too
	@rm -rf $(VENV)
