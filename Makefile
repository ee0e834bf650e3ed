# Every target does its own set-up: a virtual environment with the versions that constraints.txt pins.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ZOO := .venv-zoo
RAY := .venv-ray
INTEGRATIONS := .venv-integrations
OLDEST := .venv-oldest

.PHONY: demo test test-fast test-heavy test-slow test-attack test-zoo test-ray test-integrations test-oldest benchmark lint format clean

demo: $(VENV)/.installed
	$(BIN)/initopt demo

# One thread each: the tests are many small operations, for which threads cost more than they bring. A file stays in one
# process, since many keep what is expensive for the next test; files are taken in the order of tests/conftest.py, where
# pytest-xdist by itself would leave those with few tests for last, however long these take.
PROCESSES := --numprocesses 2 --dist loadfile --no-loadscope-reorder
test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PROCESSES)

# The rest of what continuous integration runs: what takes seconds each, and the other two thirds of the gallery.
test-heavy: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PROCESSES) -m "heavy and not slow"

# What a contributor runs all the time: no processes, not the whole gallery, and no trainings.
test-fast: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PROCESSES) -m "not slow and not heavy and not processes and not gallery and not training"

test-slow: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

# Kills, interrupts and fuzzed files by the hundred (docs/reliability.md).
test-attack: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -s tests/system/test_attack_*.py

# In an environment of its own, of 5.5 GB: torchvision, which timm needs, goes with the CUDA builds of torch.
test-zoo: $(ZOO)/.installed
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(ZOO)/bin/python -m pytest -m "not slow" tests/zoo/test_library_models.py -k TestReal
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(ZOO)/bin/python -m pytest -m "not slow" tests/schemes/test_libraries.py
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(ZOO)/bin/python -m sweeps.zoo

# In an environment of its own: Ray on this machine alone, with one node and with two, which opens ports to do so. Ten kills
# take minutes. A node that does not start within 30 seconds, as on a machine that has much else to do, would be an error.
RAY_LIMITS := RAY_USAGE_STATS_ENABLED=0 RAY_raylet_start_wait_time_s=180
test-ray: $(RAY)/.installed
	$(RAY_LIMITS) OMP_NUM_THREADS=1 $(RAY)/bin/python -m pytest -m "not slow" tests/integrations/test_ray.py tests/integrations/test_ray_nodes.py
	$(RAY_LIMITS) OMP_NUM_THREADS=1 $(RAY)/bin/python -m pytest -m slow tests/system/test_survival.py -k ray

# In an environment of its own: the real Lightning, transformers, Accelerate, PEFT, skorch and Keras, in one process and, where
# they know several, in two; and the examples.
test-integrations: $(INTEGRATIONS)/.installed
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(INTEGRATIONS)/bin/python -m pytest -m "not slow" tests/integrations

# All that works with PyTorch itself, on the oldest one that pyproject.toml promises. In an environment of its own, of 5.5 GB,
# since that one comes with CUDA, with a Python that it has wheels for: make OLDEST_PYTHON=python3.11 test-oldest
OLDEST_PYTHON ?= $(PYTHON)
test-oldest: $(OLDEST)/.installed
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -m "not slow" tests/support/test_torch_private.py tests/support/test_torch_messages.py \
	  tests/batches tests/engines tests/gram tests/methods tests/model tests/schemes

# Goes on where it was stopped.
benchmark: $(VENV)/.installed
	$(BIN)/python benchmarks/engines.py
	$(BIN)/python benchmarks/measuring.py
	$(BIN)/python benchmarks/diagnosing.py
	$(BIN)/python benchmarks/profile_step.py
	$(BIN)/python benchmarks/methods.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/accuracy.py
	$(BIN)/python benchmarks/plot.py
	$(BIN)/python benchmarks/report.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "initopt needs Python 3.11 or newer; run: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/.installed

$(ZOO)/.installed: pyproject.toml constraints-zoo.txt
	test -x $(ZOO)/bin/python || $(PYTHON) -m venv $(ZOO)
	$(ZOO)/bin/python -m pip install --quiet --disable-pip-version-check --no-cache-dir --constraint constraints-zoo.txt \
	  --editable '.[timm,transformers]' torchvision pytest hypothesis
	@touch $@

$(RAY)/.installed: pyproject.toml constraints.txt
	test -x $(RAY)/bin/python || $(PYTHON) -m venv $(RAY)
	$(RAY)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	  --editable '.[compare,ray]' pytest hypothesis
	@touch $@

$(INTEGRATIONS)/.installed: pyproject.toml constraints-integrations.txt
	test -x $(INTEGRATIONS)/bin/python || $(PYTHON) -m venv $(INTEGRATIONS)
	$(INTEGRATIONS)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-integrations.txt \
	  --editable '.[compare,lightning,transformers,accelerate,peft,skorch]' keras tensorboard pytest hypothesis
	@touch $@

$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	test -x $(OLDEST)/bin/python || $(OLDEST_PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-cache-dir --constraint constraints-oldest.txt \
	  --editable '.[pandas]' pytest hypothesis
	@touch $@

clean:
	rm -rf $(VENV) $(ZOO) $(RAY) $(INTEGRATIONS) $(OLDEST) build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
