# The two commands of the README, and what contributors run. Python 3.11 or newer and make are all that must be there.
#   make demo PIP_ARGS="..."     whatever stands in PIP_ARGS reaches pip
#   make test PYTHON=python3.12  another interpreter for .venv

PYTHON ?= python3
PIP_ARGS ?=
WORKERS ?= 2

RUN := .venv/bin/python
OLDEST_TRITON := .venv/triton-3.6.0
STAMP := .venv/.installed
PROMPT := The following

.PHONY: demo test test-slow check coverage inspect clean
.DEFAULT_GOAL := test

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "$$($(PYTHON) --version) is too old, 3.11 is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(RUN) || $(PYTHON) -m venv .venv
	$(RUN) -m pip install --disable-pip-version-check -c constraints.txt $(PIP_ARGS) -e '.[plot,data,test,dev]'
	@touch $@

# Trains in one process and writes in another, from the checkpoint alone.
demo: $(STAMP)
	@set -e; out=runs/demo-$$(date -u +%Y%m%d-%H%M%S); \
	$(RUN) -m train --preset demo --out "$$out"; \
	echo "--- a new process reads $$out and writes:"; \
	$(RUN) -m infer --model "$$out" --prompt "$(PROMPT)" --temperature 0.5; \
	echo "--- loss curve: $$out/loss.png   more text: $(RUN) -m infer --model $$out --prompt '...'"

# Two workers of one thread each use two cores better than one process of two threads.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(WORKERS)

# With transformers, whose Llama is a witness of the trunk and of the export.
test-slow: $(STAMP)
	$(RUN) -m pip install --disable-pip-version-check -q -c constraints.txt $(PIP_ARGS) -e '.[parity,log]'
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(WORKERS) -m "not gpu"

check: $(STAMP)
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m pyright
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(WORKERS)

coverage: $(STAMP)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(WORKERS) --cov --cov-report=term-missing

# What the compiler makes of the kernels, for every architecture; by the tested Triton, and by the oldest that may work,
# which lies in a folder of its own before the other on the path. No GPU is needed.
inspect: $(STAMP) $(OLDEST_TRITON)/.installed
	@export OMP_NUM_THREADS=1; status=0; \
	$(RUN) -m kernels inspect || status=1; \
	PYTHONPATH=$(CURDIR)/$(OLDEST_TRITON) $(RUN) -m kernels inspect || status=1; exit $$status

$(OLDEST_TRITON)/.installed: | $(STAMP)
	$(RUN) -m pip install --disable-pip-version-check $(PIP_ARGS) --no-deps --upgrade --target $(@D) \
	    triton==$(subst .venv/triton-,,$(OLDEST_TRITON))
	@touch $@

# Leaves runs/ alone: they are yours.
clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .coverage .coverage.* htmlcov
	find . -name __pycache__ -not -path './runs/*' -prune -exec rm -rf {} +
