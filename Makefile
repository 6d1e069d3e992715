# make reproduce   the main job; make reproduce ARGS="--scale smoke" for its form of a few minutes
# make test        the tests, without the slow ones, a process a core (8 at most)
# make test-ray    the tests on a real Ray cluster of two nodes on this machine, some minutes
# make setup       only .venv with everything installed, as constraints.txt pins it
# make clean       remove .venv and caches; results/ and runs/ stay
#
# PYTHON=python3.12             picks the interpreter (3.11 or newer; otherwise the first that serves)
# TORCH_INDEX=URL               takes torch from another package index, such as PyTorch's CPU one

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
INSTALLED_RAY := $(VENV)/.installed-ray
PYTHON ?=
TORCH_INDEX ?=
ARGS ?=

.PHONY: help setup reproduce test test-ray clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# \{0,1\}//p' Makefile

setup: $(INSTALLED)

reproduce: $(INSTALLED)
	@$(BIN)/rankprobe reproduce-paper $(ARGS)

test: $(INSTALLED_DEV)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist loadfile -m "not slow and not ray" $(ARGS)

test-ray: $(INSTALLED_RAY)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m ray tests/ray $(ARGS)

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
	find rankprobe tests studies -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are written last, so that an interrupted installation is taken up again.
$(INSTALLED): pyproject.toml constraints.txt
	@$(make_venv)
	@if [ -n "$(TORCH_INDEX)" ]; then \
	    $(PIP) install --no-deps --index-url "$(TORCH_INDEX)" --constraint constraints.txt torch; \
	fi
	@$(PIP) install --constraint constraints.txt --editable ".[offline]"
	@touch $@

$(INSTALLED_DEV): $(INSTALLED)
	@$(PIP) install --constraint constraints.txt --editable ".[offline,dev]"
	@touch $@

$(INSTALLED_RAY): $(INSTALLED_DEV)
	@$(PIP) install --constraint constraints.txt --editable ".[offline,dev,ray]"
	@touch $@

# Of the interpreters on PATH the first that is new enough and can make a virtual environment. Debian and Ubuntu ship
# venv without ensurepip until python3-venv is installed, so both are asked for.
define make_venv
if $(BIN)/python -m pip --version >/dev/null 2>&1; then exit 0; fi; \
old= lacking= found=; \
for python in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11 python); do \
    version=$$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
    if ! $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
        old="$${old:-$$python ($$version)}"; \
    elif ! $$python -c 'import venv, ensurepip' 2>/dev/null; then \
        lacking="$${lacking:-$$version}"; \
    else found=$$python; break; fi; \
done; \
if [ -n "$$found" ]; then \
    $$found -m venv --clear $(VENV); \
elif [ -n "$$lacking" ]; then \
    echo "Python $$lacking must have its venv module. Install it (Debian, Ubuntu: apt install" \
        "python$$lacking-venv, or python3-venv) and run make again." >&2; exit 1; \
else \
    echo "rankprobe must have Python 3.11 or newer. Got $${old:-no $(or $(PYTHON),python3 on PATH)}. Install one," \
        "or name it with make PYTHON=/path/to/python3." >&2; exit 1; \
fi
endef
